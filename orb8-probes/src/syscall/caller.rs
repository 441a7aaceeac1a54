//! Who calls, and which row that caller has.

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::generated::{bpf_get_current_cgroup_id, bpf_get_smp_processor_id},
};
use orb8_common::syscall::{CallerKey, Cpu, NO_ROW};
use orb8_probes::atomic;

use crate::maps;

/// A caller and its row.
#[derive(Clone, Copy)]
pub(crate) struct Caller {
    pub(crate) cgroup: u64,
    /// Or [`NO_ROW`].
    pub(crate) row: u32,
}

/// What this CPU keeps.
#[inline(always)]
pub(crate) fn cpu() -> Option<&'static mut Cpu> {
    // SAFETY: no arguments.
    let id = unsafe { bpf_get_smp_processor_id() };
    let cpu = maps::CPUS.get_ptr_mut(id)?;
    // SAFETY: this CPU's element, whose programs run one at a time; what user space writes are whole words.
    Some(unsafe { &mut *cpu })
}

impl Caller {
    /// The current task's, found without a look-up if this CPU's last caller was the same.
    #[inline(always)]
    pub(crate) fn current(cpu: &mut Cpu, abi: u32) -> Self {
        // SAFETY: no arguments.
        let cgroup = unsafe { bpf_get_current_cgroup_id() };
        // One read: user space may zero it at any time.
        // SAFETY: a valid reference.
        let cached = unsafe { (&raw const cpu.caller).read_volatile() };
        if cpu.cgroup == cgroup && cached as u32 == abi + 1 {
            return Self {
                cgroup,
                row: (cached >> 32) as u32,
            };
        }
        let row = find(cgroup, abi);
        cpu.cgroup = cgroup;
        cpu.caller = u64::from(row) << 32 | u64::from(abi + 1);
        Self { cgroup, row }
    }

    /// Counts a call for which there is no row. Returns how many it is now: the verifier
    /// wants a function to have a result, and the compiler removes one that is always the same.
    #[inline(never)]
    pub(crate) fn count_in_remainder(self, cpu: &mut Cpu) -> u32 {
        if let Some(count) = maps::REMAINDER.get_ptr_mut(&self.cgroup) {
            // SAFETY: a map value.
            unsafe {
                atomic::add(count, 1);
                return *count as u32;
            }
        }
        if maps::REMAINDER
            .insert(&self.cgroup, &1, BPF_NOEXIST as u64)
            .is_err()
        {
            // Entered by another CPU meanwhile, or full.
            match maps::REMAINDER.get_ptr_mut(&self.cgroup) {
                // SAFETY: a map value.
                Some(count) => unsafe { atomic::add(count, 1) },
                None => cpu.lost += 1,
            }
        }
        self.row
    }
}

/// The caller's row, a new one if it has none, or [`NO_ROW`].
#[inline(never)]
fn find(cgroup: u64, abi: u32) -> u32 {
    let key = CallerKey {
        cgroup,
        abi,
        reserved: 0,
    };
    // SAFETY: one word, copied at once.
    if let Some(&row) = unsafe { maps::CALLERS.get(&key) } {
        return if is_of(row, &key) { row } else { NO_ROW };
    }
    let Ok(Some(row)) = maps::FREE_ROWS.pop() else {
        return NO_ROW;
    };
    // User space looks at rows that have an owner, so the owner comes before the first count.
    if let Some(owner) = maps::OWNERS.get_ptr_mut(row) {
        // SAFETY: a map value of a row that nobody else has.
        unsafe { *owner = key };
    }
    if maps::CALLERS.insert(&key, &row, BPF_NOEXIST as u64).is_ok() {
        return row;
    }
    // Another CPU was first.
    if let Some(owner) = maps::OWNERS.get_ptr_mut(row) {
        // SAFETY: as above.
        unsafe { *owner = CallerKey::default() };
    }
    // There is room: it has just been taken out.
    let _ = maps::FREE_ROWS.push(row, 0);
    // SAFETY: one word, copied at once.
    match unsafe { maps::CALLERS.get(&key) } {
        Some(&row) if is_of(row, &key) => row,
        _ => NO_ROW,
    }
}

/// Whether a row is this caller's. It is not if user space took it away at this moment: what was found may then already
/// be another caller's entry.
#[inline(always)]
fn is_of(row: u32, key: &CallerKey) -> bool {
    // SAFETY: a map value.
    maps::OWNERS
        .get_ptr(row)
        .is_some_and(|owner| unsafe { (*owner).cgroup == key.cgroup && (*owner).abi == key.abi })
}
