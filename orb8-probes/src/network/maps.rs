//! Maps of the network family. The agent sets the sizes before it loads the object.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
};
use orb8_common::network::{
    Comm, Control, EpochLoad, FlowCounters, FlowKey, HOOKS, HookStats, RemainderKey, TcpHealth, TcpKey,
};
use orb8_probes::network::parse::{FragmentKey, Packet};

/// The two maps that take turns. Not preallocated: memory follows what is active, and a map is emptied only when no
/// program uses it any more, so an entry is never reused under a program's hands.
pub(crate) type Pair<K, V> = [&'static HashMap<K, V>; 2];

/// Which map of each pair is in use, and whether events are wanted.
#[map]
pub(crate) static CONTROL: Array<Control> = Array::with_max_entries(1, 0);

/// Counters of each hook.
#[map]
pub(crate) static STATS: PerCpuArray<HookStats> = PerCpuArray::with_max_entries(HOOKS, 0);

#[map]
static FLOWS_0: HashMap<FlowKey, FlowCounters> = HashMap::with_max_entries(131_072, BPF_F_NO_PREALLOC);
#[map]
static FLOWS_1: HashMap<FlowKey, FlowCounters> = HashMap::with_max_entries(131_072, BPF_F_NO_PREALLOC);
/// Flows of an epoch.
pub(crate) const FLOWS: Pair<FlowKey, FlowCounters> = [&FLOWS_0, &FLOWS_1];

/// The packet that a classifier has in hand: one slot a hook. In a map, so that the verifier forgets by which path it
/// was parsed (it would follow each path to the end otherwise), and off the stack. Classifiers run with bottom halves
/// off: one at a time on a CPU.
#[map]
pub(crate) static PACKET: PerCpuArray<Packet> = PerCpuArray::with_max_entries(2, 0);

/// How full each of [`FLOWS`] is.
#[map]
pub(crate) static LOAD: Array<EpochLoad> = Array::with_max_entries(2, 0);

#[map]
static REMAINDER_0: HashMap<RemainderKey, FlowCounters> = HashMap::with_max_entries(4096, BPF_F_NO_PREALLOC);
#[map]
static REMAINDER_1: HashMap<RemainderKey, FlowCounters> = HashMap::with_max_entries(4096, BPF_F_NO_PREALLOC);
/// Totals of what had no room in [`FLOWS`].
pub(crate) const REMAINDER: Pair<RemainderKey, FlowCounters> = [&REMAINDER_0, &REMAINDER_1];

#[map]
static TCP_0: HashMap<TcpKey, TcpHealth> = HashMap::with_max_entries(32_768, BPF_F_NO_PREALLOC);
#[map]
static TCP_1: HashMap<TcpKey, TcpHealth> = HashMap::with_max_entries(32_768, BPF_F_NO_PREALLOC);
/// Health of an epoch's connections.
pub(crate) const TCP: Pair<TcpKey, TcpHealth> = [&TCP_0, &TCP_1];

/// When connect() was called, by socket cookie. An entry goes when the connection is made or has failed.
#[map]
pub(crate) static CONNECTING: LruHashMap<u64, u64> = LruHashMap::with_max_entries(8192, 0);

/// Ports of a fragmented packet, from its first fragment: source in the high half. Least recently used out
/// first; what is forgotten is counted on the port-less flow.
#[map]
pub(crate) static FRAGMENTS: LruHashMap<FragmentKey, u32> = LruHashMap::with_max_entries(4096, 0);

/// When a flow was last new in an epoch, by its hash: seconds in the low 24 bits, hash above. Liveness only.
#[map]
pub(crate) static RECENT: Array<u64> = Array::with_max_entries(RECENT_SLOTS, 0);
/// Slots of [`RECENT`], a power of two.
pub(crate) const RECENT_SLOTS: u32 = 65_536;

/// Events.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// DNS answers.
#[map]
pub(crate) static DNS_ANSWERS: RingBuf = RingBuf::with_byte_size(256 << 10, 0);

/// Process (tgid) that made a socket, by socket cookie; goes with the socket.
#[map]
pub(crate) static SOCKET_TGID: LruHashMap<u64, u32> = LruHashMap::with_max_entries(32_768, 0);

/// Names of the processes in [`SOCKET_TGID`]: they outlive the process, so that a short one keeps its name.
#[map]
pub(crate) static PROCESS_NAMES: LruHashMap<u32, Comm> = LruHashMap::with_max_entries(8192, 0);

/// Network namespaces, beside the agent's own, whose sockets are counted at the socket: their interface does not
/// show all of their packets. By cookie; the value is not used.
#[map]
pub(crate) static SOCKET_NETNS: HashMap<u64, u8> = HashMap::with_max_entries(4096, BPF_F_NO_PREALLOC);
