/* SPDX-License-Identifier: GPL-2.0-only */
/* Programs at kernel functions; each counts its calls, by cookie where it has one. */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 8);
	__type(key, __u32);
	__type(value, __u64);
} counts SEC(".maps");

static void count(__u32 slot)
{
	__u64 *value = bpf_map_lookup_elem(&counts, &slot);

	if (value)
		__sync_fetch_and_add(value, 1);
}

/* Each clone of a program gets a slot of its own. */
__weak __noinline __u64 slot(void)
{
	return 0;
}

SEC("fentry/icmp_rcv")
int on_entry(void *context)
{
	count(slot());
	return 0;
}

SEC("fexit/icmp_rcv")
int on_exit(void *context)
{
	count(slot());
	return 0;
}

SEC("fentry/icmp_rcv")
int on_entry_cookie(void *context)
{
	count(bpf_get_attach_cookie(context));
	return 0;
}

SEC("kprobe")
int on_kprobe(void *context)
{
	count(slot());
	return 0;
}

SEC("kprobe.multi")
int on_kprobe_multi(void *context)
{
	count(bpf_get_attach_cookie(context));
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
