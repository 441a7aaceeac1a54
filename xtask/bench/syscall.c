// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
//
// Baselines of `cargo xtask bench syscall`: the least that programs in C do on system calls. No ABIs, no numbers out of
// range, no remainder, no events, no errors.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct key {
	__u64 cgroup;
	__u64 number;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, struct key);
	__type(value, __u64);
} COUNTS SEC(".maps");

// What attaching and being called costs, without any work.
SEC("raw_tp/sys_enter")
int empty(struct bpf_raw_tracepoint_args *ctx)
{
	return 0;
}

static __always_inline int add(struct bpf_raw_tracepoint_args *ctx)
{
	struct key key = { bpf_get_current_cgroup_id(), ctx->args[1] };
	__u64 *value = bpf_map_lookup_elem(&COUNTS, &key), first = 1;

	if (value)
		__sync_fetch_and_add(value, 1);
	else
		bpf_map_update_elem(&COUNTS, &key, &first, BPF_NOEXIST);
	return 0;
}

// Counts by cgroup and number.
SEC("raw_tp/sys_enter")
int count(struct bpf_raw_tracepoint_args *ctx)
{
	return add(ctx);
}

struct in_flight {
	__u64 start;
	__u64 number;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct in_flight);
} IN_FLIGHT SEC(".maps");

struct latency {
	__u64 count;
	__u64 total;
	__u64 slots[40];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, struct key);
	__type(value, struct latency);
} LATENCIES SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct latency);
} NONE SEC(".maps");

// The least that measuring can cost: the clock, read as a call is entered and as it returns.
SEC("raw_tp/sys_enter")
int clock(struct bpf_raw_tracepoint_args *ctx)
{
	return bpf_ktime_get_ns();
}

// Counts as `count` does, and measures from entry to return by an in-flight hash map: the usual way.
SEC("raw_tp/sys_enter")
int latency_enter(struct bpf_raw_tracepoint_args *ctx)
{
	add(ctx);

	__u32 tid = bpf_get_current_pid_tgid();
	struct in_flight call = { bpf_ktime_get_ns(), ctx->args[1] };

	bpf_map_update_elem(&IN_FLIGHT, &tid, &call, BPF_ANY);
	return 0;
}

static __always_inline __u32 bits(__u64 value)
{
	__u32 result = 0;

	if (value >> 32) { value >>= 32; result += 32; }
	if (value >> 16) { value >>= 16; result += 16; }
	if (value >> 8) { value >>= 8; result += 8; }
	if (value >> 4) { value >>= 4; result += 4; }
	if (value >> 2) { value >>= 2; result += 2; }
	if (value >> 1) { value >>= 1; result += 1; }
	return result + value;
}

SEC("raw_tp/sys_exit")
int latency_exit(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 tid = bpf_get_current_pid_tgid(), zero = 0;
	struct in_flight *call = bpf_map_lookup_elem(&IN_FLIGHT, &tid);
	struct latency *latency, *none;
	struct key key;
	__u64 elapsed;
	__u32 slot;

	if (!call)
		return 0;
	elapsed = bpf_ktime_get_ns() - call->start;
	key.cgroup = bpf_get_current_cgroup_id();
	key.number = call->number;
	bpf_map_delete_elem(&IN_FLIGHT, &tid);
	latency = bpf_map_lookup_elem(&LATENCIES, &key);
	if (!latency) {
		none = bpf_map_lookup_elem(&NONE, &zero);
		if (!none)
			return 0;
		bpf_map_update_elem(&LATENCIES, &key, none, BPF_NOEXIST);
		latency = bpf_map_lookup_elem(&LATENCIES, &key);
		if (!latency)
			return 0;
	}
	slot = bits(elapsed);
	if (slot > 39)
		slot = 39;
	__sync_fetch_and_add(&latency->count, 1);
	__sync_fetch_and_add(&latency->total, elapsed);
	__sync_fetch_and_add(&latency->slots[slot], 1);
	return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
