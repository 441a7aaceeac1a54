//! The object in the kernel: its maps, and the programs that do not belong to a library.

use std::{collections::BTreeMap, fs, path::Path};

use aya::{
    Ebpf, EbpfLoader,
    maps::{MapData, PerCpuArray, Queue},
    programs::{
        ProgramError, RawTracePoint, UProbe,
        raw_trace_point::RawTracePointLink,
        uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLink, UProbeScope},
    },
};
use orb8_common::cuda::Stats;
use tracing::warn;

use super::{CudaOptions, CudaSink, CudaStats, Held, OBJECT, ReadError, read::Reader};
use crate::{
    bpf::fd_info::{FdInfo, fd_info},
    preflight::{Feature, Features},
    probe::{
        btf,
        object::{LoadError, MapFds, Shared, needs, program, typed},
    },
};

const FAMILY: &str = "cuda";

/// Names of the programs.
pub(super) const ENTER: &str = "orb8_cuda_enter";
pub(super) const RETURN: &str = "orb8_cuda_return";
const EXIT: &str = "orb8_cuda_exit";
const EXEC: &str = "orb8_cuda_exec";
pub(super) const PROGRAMS: [&str; 4] = [ENTER, RETURN, EXIT, EXEC];

/// How the programs call the machine.
const MACHINE: u32 = if cfg!(target_arch = "aarch64") { 1 } else { 0 };

/// The loaded object.
pub(super) struct Loaded {
    ebpf: Ebpf,
    maps: MapFds,
    stats: PerCpuArray<MapData, Shared<Stats>>,
    executed: Queue<MapData, u32>,
    reader: Reader,
    /// At the end of processes.
    _links: Vec<RawTracePointLink>,
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loaded")
            .field("reader", &self.reader)
            .finish_non_exhaustive()
    }
}

/// Where the kernel's structures have what the programs read of them, by the programs' settings.
fn kernel_offsets() -> Result<Vec<(&'static str, u32)>, LoadError> {
    let file = Path::new("/sys/kernel/btf/vmlinux");
    let bytes = fs::read(file)
        .map_err(|error| LoadError::Setting(format!("cannot read {}: {error}", file.display())))?;
    let mut offsets = Vec::new();
    // The number of a process's threads that have not ended.
    for (setting, structure, member) in [
        ("TASK_SIGNAL", "task_struct", "signal"),
        ("SIGNAL_LIVE", "signal_struct", "live"),
    ] {
        let offset = btf::member_offset(&bytes, structure, member)
            .ok_or_else(|| LoadError::Setting(format!("{} has no {structure}.{member}", file.display())))?;
        offsets.push((setting, offset));
    }
    // Returns that somebody traces. A kernel that keeps them elsewhere is traced by none but us, as far as is known.
    let returns: Option<Vec<_>> = [
        ("TASK_UTASK", "task_struct", "utask"),
        ("UTASK_RETURNS", "uprobe_task", "return_instances"),
        ("RETURN_STACK", "return_instance", "stack"),
        ("RETURN_ADDRESS", "return_instance", "orig_ret_vaddr"),
        ("RETURN_NEXT", "return_instance", "next"),
    ]
    .into_iter()
    .map(|(setting, structure, member)| Some((setting, btf::member_offset(&bytes, structure, member)?)))
    .collect();
    if returns.is_none() {
        warn!(
            file = %file.display(),
            "a CUDA call whose return another tracer follows may count twice: this kernel's return_instance is not known"
        );
    }
    offsets.extend(returns.unwrap_or_default());
    Ok(offsets)
}

impl Loaded {
    pub(super) fn new(options: &CudaOptions, features: Features) -> Result<Self, LoadError> {
        needs(FAMILY, features.raw_tracepoint, Feature::RawTracepoint)?;
        needs(FAMILY, features.task_storage, Feature::TaskStorage)?;
        needs(FAMILY, features.current_task, Feature::CurrentTask)?;
        let offsets = kernel_offsets()?;
        let mut loader = EbpfLoader::new();
        for (setting, offset) in &offsets {
            loader.override_global(setting, offset, true);
        }
        let mut ebpf = loader
            // Nothing in the object is relocated: the offsets that it needs are written into it.
            .btf(None)
            // Storage of tasks, which aya has no type for.
            .allow_unsupported_maps()
            .override_global("MACHINE", &MACHINE, true)
            .map_max_entries("CALLS", options.calls)
            .map_max_entries("HOLDERS", options.holders)
            .map_max_entries("ALLOCATIONS", options.allocations)
            .load(OBJECT)
            .map_err(|source| LoadError::Object {
                family: FAMILY,
                source,
            })?;
        let maps = MapFds::of(&ebpf);
        let stats = typed(&mut ebpf, "STATS")?;
        let executed = typed(&mut ebpf, "EXECUTED")?;
        let reader = Reader::new(&mut ebpf, &maps)?;
        for name in [RETURN, ENTER] {
            let uprobe: &mut UProbe = program(&mut ebpf, name)?;
            uprobe
                .load()
                .map_err(|source| LoadError::Program { name, source })?;
        }
        let mut links = Vec::new();
        for (name, tracepoint) in [(EXIT, "sched_process_exit"), (EXEC, "sched_process_exec")] {
            let refused = |source| LoadError::Program { name, source };
            let program: &mut RawTracePoint = program(&mut ebpf, name)?;
            program.load().map_err(refused)?;
            let id = program.attach(tracepoint).map_err(refused)?;
            links.push(program.take_link(id).map_err(refused)?);
        }
        Ok(Self {
            ebpf,
            maps,
            stats,
            executed,
            reader,
            _links: links,
        })
    }

    /// Attaches one program to an offset of the file at `path`.
    pub(super) fn attach(
        &mut self,
        name: &'static str,
        path: &Path,
        offset: u64,
        cookie: u64,
    ) -> Result<UProbeLink, ProgramError> {
        let program: &mut UProbe = self
            .ebpf
            .program_mut(name)
            .ok_or(ProgramError::NotLoaded)?
            .try_into()?;
        let point = UProbeAttachPoint {
            location: UProbeAttachLocation::AbsoluteOffset(offset),
            cookie: Some(cookie),
        };
        let id = program.attach(point, path, UProbeScope::AllProcesses)?;
        program.take_link(id)
    }

    /// A process that has executed a program since the last call.
    pub(super) fn next_executed(&mut self) -> Option<u32> {
        self.executed.pop(0).ok()
    }

    /// Removes what is held by processes that there are not any more, should their end have been missed.
    pub(super) fn forget_holders(&mut self, exists: impl FnMut(u32) -> bool) {
        self.reader.forget_holders(exists);
    }

    pub(super) fn read(
        &mut self,
        gone: &mut dyn FnMut(u64) -> bool,
        sink: &mut dyn CudaSink,
    ) -> Result<(), ReadError> {
        let ended = self.sum().ended;
        self.reader.read(ended, gone, sink)
    }

    pub(super) const fn held(&self) -> &BTreeMap<u64, Held> {
        self.reader.held()
    }

    /// What the kernel says of a program.
    pub(super) fn info(&self, name: &str) -> Option<FdInfo> {
        fd_info(self.ebpf.program(name)?.fd().ok()?).ok()
    }

    pub(super) fn map_bytes(&self) -> u64 {
        self.maps.bytes()
    }

    fn sum(&self) -> Stats {
        let mut sum = Stats::default();
        // The one element of an array is always there.
        let Ok(values) = self.stats.get(&0, 0) else {
            return sum;
        };
        for Shared(cpu) in values.iter() {
            sum.seen += cpu.seen;
            sum.nested += cpu.nested;
            sum.lost += cpu.lost;
            sum.unreturned += cpu.unreturned;
            sum.unmeasured += cpu.unmeasured;
            sum.returned += cpu.returned;
            sum.allocated += cpu.allocated;
            sum.not_held += cpu.not_held;
            sum.ended += cpu.ended;
            sum.untold += cpu.untold;
        }
        sum
    }

    pub(super) fn stats(&self) -> CudaStats {
        let sum = self.sum();
        // Calls during which the kernel could not run the program.
        let missed = self.info(ENTER).map_or(0, |info| info.recursion_misses);
        CudaStats {
            seen: sum.seen + missed,
            nested: sum.nested,
            lost: sum.lost + missed,
            returned: sum.returned,
            unmeasured: sum.unmeasured,
            allocated: sum.allocated,
            not_held: sum.not_held,
            ended: sum.ended,
            untold: sum.untold,
            files_turned_away: 0,
        }
    }
}
