/* SPDX-License-Identifier: GPL-2.0-only */
/* What the probes of kernel functions have in common, whatever they are attached by. */
#ifndef PTRACE_FUNCTIONS_BPF_H
#define PTRACE_FUNCTIONS_BPF_H

#include "remember.bpf.h"

/* How an argument leads to the packet; packet_tracer/probes/functions.py: ArgumentKind. */
enum argument_kind {
	ARGUMENT_SKB = 0,
	ARGUMENT_SKB_POINTER = 1,
	ARGUMENT_XDP_BUFF = 2,
	ARGUMENT_XDP_FRAME = 3,
};

/* What of the register a return value takes; packet_tracer/probes/trampolines.py: Returns. */
enum return_kind {
	RETURN_REGISTER = 0,
	RETURN_INT = 1,
	RETURN_UNSIGNED = 2,
	RETURN_BYTE = 3,
	RETURN_NOTHING = 4,
};

/*
 * What a probe knows of the function it is on: probe id in the lower 16 bits, then 8 bits with the argument's index, 4 with
 * its kind, and 4 with the kind of what is returned. An attach cookie in kprobe-multi, where one program serves all functions; a constant of each clone elsewhere.
 */
#define COOKIE_PROBE(cookie) ((__u16)(cookie))
#define COOKIE_ARGUMENT(cookie) ((__u8)((cookie) >> 16))
#define COOKIE_KIND(cookie) ((__u8)((cookie) >> 24 & 0xf))
#define COOKIE_RETURNS(cookie) ((__u8)((cookie) >> 28 & 0xf))

/* Patched in each clone; see packet_tracer/bpf/constants.py. */
__weak __noinline __u64 function_cookie(void)
{
	return 0;
}

/* Offsets no function has; packet_tracer/probes/trampolines.py puts the right ones in their place. */
#define ARGUMENT_OFFSET 0x7e8
#define RETURN_OFFSET 0x7f0
#define CONTEXT_VALUE(ctx, offset) (*(volatile __u64 *)((void *)(ctx) + (offset)))

/* A pointer's value as a mere number: of one that the verifier knows for a pointer it allows hardly anything. */
static __always_inline __u64 as_number(__u64 pointer)
{
	__u64 number = 0;

	bpf_probe_read_kernel(&number, sizeof(number), &pointer);
	return number;
}

static __always_inline struct sk_buff *pointed_to(__u64 argument)
{
	struct sk_buff *skb = 0;

	bpf_probe_read_kernel(&skb, sizeof(skb), (void *)argument);
	return skb;
}

/*
 * A trampoline's argument by its index. Where it is a pointer to a pointer the context must not be read, so by helper:
 * f92c1e183604 (v5.17).
 */
static __always_inline __u64 argument_of(void *ctx, __u64 cookie)
{
	__u64 argument = 0;

	bpf_get_func_arg(ctx, COOKIE_ARGUMENT(cookie), &argument);
	return argument;
}

/*
 * A call that goes through a trampoline: what it was made with, and where on the stack its context lies, which is one for its
 * entry and its return. One call with an skb may be inside of another one with it: devices on top of each other.
 */
static __always_inline struct call_key traced_call(void *ctx, __u64 argument, __u32 probe_id)
{
	return (struct call_key){argument, probe_id, as_number((__u64)ctx)};
}

/* A sender's packet gets its protocol (skb->protocol) only when it is handed to IP's output, long after its header. */
static __always_inline void guess_protocol(struct packet_view *view)
{
	__u8 version = 0;

	if (view->protocol || view->link_header || view->start != view->data || view->start == view->linear_end ||
	    view->start != READ(view->skb, network_header))
		return;
	bpf_probe_read_kernel(&version, sizeof(version), view->head + view->start);
	if (version >> 4 == 4)
		view->protocol = ETH_P_IP;
	else if (version >> 4 == 6)
		view->protocol = ETH_P_IPV6;
}

/* Returns whether a function's packet passes every filter; its view is then complete. */
static __always_inline bool function_passes(struct packet_view *view, struct sk_buff *skb, struct facts *facts)
{
	if (!view_if_passing(view, skb, POSITION_BY_SKB, facts) || is_message(skb))
		return false;
	guess_protocol(view);
	return true;
}

/* Returns whether the packet passed every filter; then it has an event. */
static __always_inline bool function_seen(void *ctx, struct sk_buff *skb, __u8 hook, __u32 probe_id)
{
	struct packet_view view;
	struct facts facts;
	__u32 flags = 0;

	if (!valid_pointer(skb) || !bytes_pass(&view, skb, POSITION_BY_SKB, &flags)) {
		count_rejected(probe_id);
		return false;
	}
	facts = (struct facts){.hook = hook, .probe_id = probe_id, .flags = flags};
	if (!function_passes(&view, skb, &facts)) {
		count_rejected(probe_id);
		return false;
	}
	take_stack(ctx, &facts);
	emit_skb(&view, &facts);
	return true;
}

static __always_inline int trace_function(void *ctx, struct sk_buff *skb, __u8 hook, __u32 probe_id)
{
	function_seen(ctx, skb, hook, probe_id);
	return 0;
}

/* Runs beside the entry's program, or behind what it does, where returns are wanted. Returns whether the packet passed. */
static __always_inline bool remember_function(const struct call_key *call, struct sk_buff *skb)
{
	struct packet_view view;
	struct facts facts;
	__u32 flags = 0;

	if (!valid_pointer(skb) || !bytes_pass(&view, skb, POSITION_BY_SKB, &flags))
		return false;
	facts = (struct facts){.hook = PTRACE_HOOK_FUNCTION, .probe_id = call->callee, .flags = flags};
	if (!function_passes(&view, skb, &facts))
		return false;
	remember_call(&view, &facts, call);
	return true;
}

/* The bits above a value are whatever the function left there. */
static __always_inline __s64 returned(__u64 value, __u8 kind)
{
	switch (kind) {
	case RETURN_INT:
		return (__s32)value;
	case RETURN_UNSIGNED:
		return (__u32)value;
	case RETURN_BYTE:
		return (__u8)value;
	case RETURN_NOTHING:
		return 0;
	}
	return value;
}

/* The cookie is the entry's; the return has the next probe id. */
static __always_inline int trace_return(const struct call_key *call, __u64 cookie, __u64 value)
{
	struct facts facts = {.hook = PTRACE_HOOK_FUNCTION_RETURN,
			      .probe_id = COOKIE_PROBE(cookie) + 1,
			      .return_value = returned(value, COOKIE_RETURNS(cookie))};

	emit_remembered(call, &facts);
	return 0;
}

#endif
