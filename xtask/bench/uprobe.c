// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
//
// Baseline of `cargo xtask bench cuda`: what a uprobe costs without any work.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("uprobe")
int empty(void *ctx)
{
	return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
