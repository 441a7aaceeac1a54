//! Maps of the syscall family. The agent sets the sizes before it loads the object.

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    macros::{btf_map, map},
    maps::{Array, HashMap, PerCpuArray, RingBuf, Stack},
};
use orb8_common::syscall::{
    CALL_SLOTS, CallSlot, CallerKey, Cpu, ErrorKey, InCall, Latency, LatencyIndex, NUMBERS, Row, Watch, abi,
};
use orb8_probes::task_storage::TaskStorage;

/// Calls by number, a row for each caller. User space reads it in its own memory.
#[map]
pub(crate) static ROWS: Array<Row> = Array::with_max_entries(1024, BPF_F_MMAPABLE);
/// Whose each row is; zeros: nobody's.
#[map]
pub(crate) static OWNERS: Array<CallerKey> = Array::with_max_entries(1024, BPF_F_MMAPABLE);
/// Which row a caller has.
#[map]
pub(crate) static CALLERS: HashMap<CallerKey, u32> = HashMap::with_max_entries(1024, 0);
/// Rows that are nobody's. User space fills it.
#[map]
pub(crate) static FREE_ROWS: Stack<u32> = Stack::with_max_entries(1024, 0);
/// Calls of callers that have no row, by cgroup.
#[map]
pub(crate) static REMAINDER: HashMap<u64, u64> = HashMap::with_max_entries(4096, 0);

/// What each CPU keeps. An array rather than a per-CPU one: user space reads and writes it in its own memory.
#[map]
pub(crate) static CPUS: Array<Cpu> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// How each number is treated: [`NUMBERS`] for each ABI.
#[map]
pub(crate) static WATCHES: Array<Watch> = Array::with_max_entries(abi::COUNT * NUMBERS as u32, 0);
/// Calls since the last that was told, of numbers that are sampled.
#[map]
pub(crate) static SINCE_EVENT: PerCpuArray<u32> =
    PerCpuArray::with_max_entries(abi::COUNT * NUMBERS as u32, 0);
/// Events.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(512 << 10, 0);

/// The calls of most tasks. User space opens and closes it.
#[map]
pub(crate) static SLOTS: Array<CallSlot> = Array::with_max_entries(CALL_SLOTS, BPF_F_MMAPABLE);
/// The calls of tasks that found no slot.
#[btf_map]
pub(crate) static IN_CALL: TaskStorage<InCall> = TaskStorage::new();
/// Which of [`LATENCIES`] each number of a row has.
#[map]
pub(crate) static LATENCY_INDEX: Array<LatencyIndex> = Array::with_max_entries(1024, BPF_F_MMAPABLE);
/// Histograms.
#[map]
pub(crate) static LATENCIES: Array<Latency> = Array::with_max_entries(8192, BPF_F_MMAPABLE);
/// Histograms that are nobody's. User space fills it.
#[map]
pub(crate) static FREE_LATENCIES: Stack<u32> = Stack::with_max_entries(8192, 0);
/// Errors.
#[map]
pub(crate) static ERRORS: HashMap<ErrorKey, u64> = HashMap::with_max_entries(8192, 0);
