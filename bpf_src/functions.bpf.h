/* SPDX-License-Identifier: GPL-2.0-only */
/* What the probes of kernel functions have in common, whatever they are attached by. */
#ifndef PTRACE_FUNCTIONS_BPF_H
#define PTRACE_FUNCTIONS_BPF_H

#include "remember.bpf.h"

/* How an argument leads to the packet; packet_tracer/probes/functions.py: ArgumentKind. */
enum argument_kind {
	ARGUMENT_SKB = 0,
	ARGUMENT_SKB_POINTER = 1,
};

/*
 * What a probe knows of the function it is on: probe id in the lower 16 bits, then 8 bits with the argument's index and 8 with
 * its kind. An attach cookie in kprobe-multi, where one program serves all functions; a constant of each clone elsewhere.
 */
#define COOKIE_PROBE(cookie) ((__u16)(cookie))
#define COOKIE_ARGUMENT(cookie) ((__u8)((cookie) >> 16))
#define COOKIE_KIND(cookie) ((__u8)((cookie) >> 24))

/* A call's key. A thread calls once at a time with one skb; the idle threads of all CPUs have one number. */
static __always_inline struct call_key function_call(__u64 skb, __u32 probe_id)
{
	__u32 thread = bpf_get_current_pid_tgid();

	return (struct call_key){skb, probe_id, thread ? thread : ~bpf_get_smp_processor_id()};
}

static __always_inline int trace_function(void *ctx, struct sk_buff *skb, struct facts *facts)
{
	struct packet_view view;

	if (!valid_pointer(skb))
		return 0;
	view_metadata(&view, skb, valid_device(READ(skb, dev)));
	remember_namespace(&view, facts);
	if (!passes_metadata(&view) || is_message(skb)) {
		count_rejected(facts->probe_id);
		return 0;
	}
	view_bytes(&view, POSITION_BY_SKB);
	if (!passes_filter(&view, facts)) {
		count_rejected(facts->probe_id);
		return 0;
	}
	take_stack(ctx, facts);
	emit_skb(&view, facts);
	return 0;
}

/* Attached beside the entry's program where returns are wanted. */
static __always_inline int remember_function(struct sk_buff *skb, __u32 probe_id)
{
	struct call_key key = function_call((__u64)skb, probe_id);
	struct facts facts = {.hook = PTRACE_HOOK_FUNCTION, .probe_id = probe_id};
	struct packet_view view;

	if (!valid_pointer(skb))
		return 0;
	view_metadata(&view, skb, valid_device(READ(skb, dev)));
	remember_namespace(&view, &facts);
	if (!passes_metadata(&view) || is_message(skb))
		return 0;
	view_bytes(&view, POSITION_BY_SKB);
	if (passes_filter(&view, &facts))
		remember_call(&view, &facts, &key);
	return 0;
}

/* `probe_id` is the entry's; the return has the next one. */
static __always_inline int trace_return(__u64 skb, __u32 probe_id, __s64 value)
{
	struct call_key key = function_call(skb, probe_id);
	struct facts facts = {
		.hook = PTRACE_HOOK_FUNCTION_RETURN, .probe_id = probe_id + 1, .return_value = value};

	emit_remembered(&key, &facts);
	return 0;
}

#endif
