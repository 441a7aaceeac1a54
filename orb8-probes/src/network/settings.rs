//! Settings that the agent writes before it loads the object: the verifier removes what they switch off.

use orb8_probes::setting::Setting;

/// 1: `bpf_get_netns_cookie` works in cgroup skb programs (Linux 6.15).
#[unsafe(no_mangle)]
pub(crate) static SKB_NETNS_COOKIE: Setting<u32> = Setting::new(0);
/// 1: `bpf_get_netns_cookie` works in `sock_ops` programs (Linux 5.15).
#[unsafe(no_mangle)]
pub(crate) static SOCK_OPS_NETNS_COOKIE: Setting<u32> = Setting::new(0);
/// 1: `bpf_ktime_get_coarse_ns` exists (Linux 5.11).
#[unsafe(no_mangle)]
pub(crate) static COARSE_CLOCK: Setting<u32> = Setting::new(0);
/// The agent's own network namespace's cookie.
#[unsafe(no_mangle)]
pub(crate) static HOST_NETNS_COOKIE: Setting<u64> = Setting::new(0);
/// The agent's own gRPC port; 0: none.
#[unsafe(no_mangle)]
pub(crate) static SELF_GRPC_PORT: Setting<u32> = Setting::new(0);
/// The agent's own metrics port; 0: none.
#[unsafe(no_mangle)]
pub(crate) static SELF_METRICS_PORT: Setting<u32> = Setting::new(0);
/// 1: the agent listens on loopback only.
#[unsafe(no_mangle)]
pub(crate) static SELF_LOOPBACK: Setting<u32> = Setting::new(1);
/// Flows in a map from which on user space is asked to drain it before its time.
#[unsafe(no_mangle)]
pub(crate) static FLOW_PRESSURE: Setting<u32> = Setting::new(65_536);
/// Bytes of the event ring.
#[unsafe(no_mangle)]
pub(crate) static RING_BYTES: Setting<u32> = Setting::new(1 << 20);
/// 1: atomic `or` exists (Linux 5.12).
#[unsafe(no_mangle)]
pub(crate) static ATOMIC_OR: Setting<u32> = Setting::new(0);
/// 1: DNS answers are copied to user space.
#[unsafe(no_mangle)]
pub(crate) static DNS_WANTED: Setting<u32> = Setting::new(0);
