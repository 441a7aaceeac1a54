// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
//
// The baseline of `cargo xtask bench`: the least that a flow counter in C can do with a packet. It parses Ethernet,
// IPv4 (with options) or IPv6 (without extension headers) and the ports, looks the 5-tuple up in a shared hash map
// and adds packet and bytes atomically; a new flow is inserted. No VLAN tags, fragments, super-packets, totals,
// ledger, times or flags.
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

struct key {
	__u8 src[16];
	__u8 dst[16];
	__u16 sport;
	__u16 dport;
	__u8 protocol;
	__u8 reserved[3];
};

struct value {
	__u64 packets;
	__u64 bytes;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 262144);
	__type(key, struct key);
	__type(value, struct value);
} FLOWS SEC(".maps");

SEC("classifier")
int minimal(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	struct key key = {};
	__u64 bytes;
	__be16 *ports;

	if ((void *)(eth + 1) > end)
		return TC_ACT_UNSPEC;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(eth + 1);
		if ((void *)(ip + 1) > end)
			return TC_ACT_UNSPEC;
		key.src[10] = key.src[11] = key.dst[10] = key.dst[11] = 0xff;
		__builtin_memcpy(&key.src[12], &ip->saddr, 4);
		__builtin_memcpy(&key.dst[12], &ip->daddr, 4);
		key.protocol = ip->protocol;
		bytes = bpf_ntohs(ip->tot_len);
		ports = (void *)ip + (ip->ihl & 15) * 4;
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = (void *)(eth + 1);
		if ((void *)(ip + 1) > end)
			return TC_ACT_UNSPEC;
		__builtin_memcpy(key.src, &ip->saddr, 16);
		__builtin_memcpy(key.dst, &ip->daddr, 16);
		key.protocol = ip->nexthdr;
		bytes = sizeof(*ip) + bpf_ntohs(ip->payload_len);
		ports = (void *)(ip + 1);
	} else {
		return TC_ACT_UNSPEC;
	}
	if (key.protocol == IPPROTO_TCP || key.protocol == IPPROTO_UDP) {
		if ((void *)(ports + 2) > end)
			return TC_ACT_UNSPEC;
		key.sport = bpf_ntohs(ports[0]);
		key.dport = bpf_ntohs(ports[1]);
	}

	struct value *value = bpf_map_lookup_elem(&FLOWS, &key);
	if (value) {
		__sync_fetch_and_add(&value->packets, 1);
		__sync_fetch_and_add(&value->bytes, bytes);
	} else {
		struct value first = { .packets = 1, .bytes = bytes };
		bpf_map_update_elem(&FLOWS, &key, &first, BPF_NOEXIST);
	}
	return TC_ACT_UNSPEC;
}

// What attaching and being called costs, without any work.
SEC("classifier")
int empty(struct __sk_buff *skb)
{
	return TC_ACT_UNSPEC;
}

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} TARGET SEC(".maps");

struct cycle {
	__u32 next;
	__u32 flows;
	__u32 step;
	__u32 reserved;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct cycle);
} CYCLE SEC(".maps");

// For BPF_PROG_TEST_RUN, which repeats one packet: makes it the next flow's (destination address and source port of
// an IPv4 packet without options), then runs TARGET on it. It adds the same to every program measured.
SEC("classifier")
int drive(struct __sk_buff *skb)
{
	__u32 zero = 0;
	struct cycle *cycle = bpf_map_lookup_elem(&CYCLE, &zero);
	__u8 *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;

	if (!cycle || data + 38 > end)
		return TC_ACT_SHOT;
	__u32 flow = cycle->next + cycle->step;
	if (flow >= cycle->flows)
		flow -= cycle->flows;
	cycle->next = flow;
	*(__be16 *)(data + 32) = bpf_htons(flow & 0xffff);
	*(__be16 *)(data + 34) = bpf_htons(20000 + (flow >> 16));
	bpf_tail_call(skb, &TARGET, 0);
	return TC_ACT_SHOT;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
