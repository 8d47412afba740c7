/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Configuration and maps that every capture program shares. The loader gives each object of a capture the same
 * maps and the same configuration; what is configured off is pruned by the verifier.
 */
#ifndef PTRACE_MAPS_BPF_H
#define PTRACE_MAPS_BPF_H

#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include "records.h"

/* Packet bytes a record may carry, 0 .. PTRACE_SNAPLEN_MAX. */
const volatile __u32 config_snaplen = 96;
/* The reader is woken when a ring holds this many bytes; below that its own timer finds them. */
const volatile __u32 config_wakeup_bytes = 1 << 20;
/* Bit N: probe N emits events. A program may be attached for what it tells the tracking alone. */
const volatile __u64 config_emitting = ~0ULL;
/* Count events that a filter rejected: a map access for each, so off unless asked for. */
const volatile __u8 config_count_rejected = 0;
/*
 * Leave out what lies in pages. The walk over them is most of the verifier's work, and a program that is cloned for each of
 * many functions is verified each time.
 */
const volatile bool config_linear_only = false;
/* Take kernel stacks. */
const volatile bool config_stacks = false;
/* bpf_dynptr_from_skb() may be called by this program type here: probed by the loader. */
const volatile __u8 config_skb_dynptr = 0;
/*
 * Where a page's bytes lie: address = page_base + (page / sizeof(struct page) << page_shift), as for every
 * linear mapping over a virtual memory map. 0: not known, bytes in pages are then left out and the record says so.
 */
const volatile __u64 config_page_base = 0;
const volatile __u32 config_page_struct_bytes = 64;
const volatile __u32 config_page_shift = 12;

/* One ring per CPU: a shared one costs twice as much on two busy CPUs, and more on more. */
struct ring {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct ring);
} rings SEC(".maps");

/* By probe id. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, PTRACE_PROBE_FUNCTION);
	__type(key, __u32);
	__type(value, struct ptrace_counters);
} counters SEC(".maps");

#endif
