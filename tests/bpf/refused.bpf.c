/* SPDX-License-Identifier: GPL-2.0-only */
/* Programs that the kernel must refuse, each for a reason of its own; none is loaded unless asked for. */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} map SEC(".maps");

SEC("?xdp")
int no_null_check(struct xdp_md *context)
{
	__u32 key = 0;
	__u64 *value = bpf_map_lookup_elem(&map, &key);

	return *value;
}

/* The same mistake after so many branches that the log does not fit its first buffer. */
SEC("?xdp")
int long_log(struct xdp_md *context)
{
	__u32 key = 0, sum = 0;
	__u64 *value;

	for (int i = 0; i < 4000; i++)
		if (bpf_get_prandom_u32() & 1)
			sum += i;
	value = bpf_map_lookup_elem(&map, &key);
	return *value + sum;
}

struct sk_buff___never {
	int not_in_any_kernel;
} __attribute__((preserve_access_index));

SEC("?tp_btf/netif_receive_skb")
int missing_field(__u64 *context)
{
	struct sk_buff___never *skb = (void *)context[0];

	return BPF_CORE_READ(skb, not_in_any_kernel) & 1;
}

SEC("?tp_btf/no_such_tracepoint")
int missing_target(__u64 *context)
{
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
