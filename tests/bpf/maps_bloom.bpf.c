/* SPDX-License-Identifier: GPL-2.0-only */
/* A Bloom filter, from a program's side. */
#include "maps.h"

struct {
	__uint(type, BLOOM_FILTER);
	__uint(max_entries, 64);
	__uint(map_extra, 3);
	__type(value, __u32);
} seen SEC(".maps");

/* Returns whether a may be in the filter. */
SEC("raw_tp")
int has(struct arguments *arguments)
{
	__u32 value = arguments->a;

	return bpf_map_peek_elem(&seen, &value) == 0;
}

SEC("raw_tp")
int add(struct arguments *arguments)
{
	__u32 value = arguments->a;

	return bpf_map_push_elem(&seen, &value, BPF_ANY);
}
