/* SPDX-License-Identifier: GPL-2.0-only */
/* Maps of maps, programs, perf events, stacks and cgroups, from a program's side. */
#include "maps.h"

struct inner_array {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
};

struct inner_hash {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8);
	__type(key, __u32);
	__type(value, __u64);
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 4);
	__type(key, __u32);
	__array(values, struct inner_array);
} by_index SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, 4);
	__type(key, __u32);
	__array(values, struct inner_hash);
} by_key SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 4);
	__uint(key_size, 4);
	__uint(value_size, 4);
} targets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__uint(key_size, 4);
	__uint(value_size, 4);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_STACK_TRACE);
	__uint(max_entries, 16);
	__uint(key_size, 4);
	__uint(value_size, 8 * 32);
} stacks SEC(".maps");

struct {
	__uint(type, CGROUP_ARRAY);
	__uint(max_entries, 2);
	__uint(key_size, 4);
	__uint(value_size, 4);
} groups SEC(".maps");

/* Returns the value of key b in the inner map of a, or -1. */
#define READS(name)                                               \
	SEC("raw_tp")                                             \
	int read_##name(struct arguments *arguments)              \
	{                                                         \
		__u32 outer = arguments->a, key = arguments->b;   \
		void *inner = bpf_map_lookup_elem(&name, &outer); \
		__u64 *value;                                     \
                                                                  \
		if (!inner)                                       \
			return -1;                                \
		value = bpf_map_lookup_elem(inner, &key);         \
		return value ? (*value)++ : -1;                   \
	}
READS(by_index)
READS(by_key)

SEC("xdp")
int jump(struct xdp_md *context)
{
	bpf_tail_call(context, &targets, 3);
	return XDP_PASS;
}

SEC("xdp")
int landing(struct xdp_md *context)
{
	return XDP_DROP;
}

/* Writes a and b to the perf buffer of the CPU it runs on. */
SEC("raw_tp")
int emit(struct arguments *arguments)
{
	__u64 sample[2] = {arguments->a, arguments->b};

	return bpf_perf_event_output(arguments, &events, BPF_F_CURRENT_CPU, sample, sizeof(sample));
}

/* Returns the id of the stack it was called on. */
SEC("raw_tp")
int trace_stack(struct arguments *arguments)
{
	return bpf_get_stackid(arguments, &stacks, 0);
}

/* Returns whether the caller is in the cgroup in slot a. */
SEC("raw_tp")
int under(struct arguments *arguments)
{
	return bpf_current_task_under_cgroup(&groups, arguments->a);
}
