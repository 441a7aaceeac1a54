//! Maps of the CUDA family. The agent sets the sizes before it loads the object.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::{btf_map, map},
    maps::{HashMap, PerCpuArray, Queue},
};
use orb8_common::cuda::{AllocationKey, CallKey, Calls, Holder, InCall, Stats};
use orb8_probes::task_storage::TaskStorage;

/// Calls by cgroup and function. Programs only add to it.
#[map]
pub(crate) static CALLS: HashMap<CallKey, Calls> = HashMap::with_max_entries(4096, 0);
/// The call that each thread is in, or was in last.
#[btf_map]
pub(crate) static IN_CALL: TaskStorage<InCall> = TaskStorage::new();
/// Processes that hold memory, or held some.
#[map]
pub(crate) static HOLDERS: HashMap<u32, Holder> = HashMap::with_max_entries(4096, BPF_F_NO_PREALLOC);
/// What they hold.
#[map]
pub(crate) static ALLOCATIONS: HashMap<AllocationKey, u64> =
    HashMap::with_max_entries(131_072, BPF_F_NO_PREALLOC);
/// Processes that have just executed a program, and may load a library.
#[map]
pub(crate) static EXECUTED: Queue<u32> = Queue::with_max_entries(1024, 0);
/// What this CPU's programs count.
#[map]
pub(crate) static STATS: PerCpuArray<Stats> = PerCpuArray::with_max_entries(1, 0);
