/* SPDX-License-Identifier: GPL-2.0-only */
/* What the probes of kernel functions that take an xdp_buff or xdp_frame have in common. */
#ifndef PTRACE_BUFFER_FUNCTIONS_BPF_H
#define PTRACE_BUFFER_FUNCTIONS_BPF_H

#include "functions.bpf.h"
#include "xdp_buffer.bpf.h"

static __always_inline bool takes_buffer(__u64 cookie)
{
	return COOKIE_KIND(cookie) == ARGUMENT_XDP_BUFF || COOKIE_KIND(cookie) == ARGUMENT_XDP_FRAME;
}

/* Returns whether the argument is a packet that passes every filter; its view is then complete. */
static __always_inline bool argument_passes(struct buffer_view *view, __u64 argument, __u64 cookie,
					    struct facts *facts)
{
	bool found;

	if (COOKIE_KIND(cookie) == ARGUMENT_XDP_FRAME)
		found = view_frame(view, (struct xdp_frame *)argument, facts);
	else
		found = view_buff(view, (struct xdp_buff *)argument);
	return found && buffer_passes(view, facts);
}

/* Returns whether the packet passed every filter; then it has an event. */
static __always_inline bool buffer_seen(void *ctx, __u64 argument, __u64 cookie)
{
	struct facts facts = {.hook = PTRACE_HOOK_FUNCTION, .probe_id = COOKIE_PROBE(cookie)};
	struct buffer_view view = {};

	if (!argument_passes(&view, argument, cookie, &facts)) {
		count_rejected(facts.probe_id);
		return false;
	}
	take_stack(ctx, &facts);
	emit_buffer(&view, &facts);
	return true;
}

static __always_inline int trace_buffer(void *ctx, __u64 argument, __u64 cookie)
{
	buffer_seen(ctx, argument, cookie);
	return 0;
}

/* Runs beside the entry's program, or behind what it does, where returns are wanted. Returns whether the packet passed. */
static __always_inline bool remember_buffer(const struct call_key *call, __u64 argument, __u64 cookie)
{
	struct facts facts = {.hook = PTRACE_HOOK_FUNCTION, .probe_id = COOKIE_PROBE(cookie)};
	struct buffer_view view = {};
	struct call *kept;

	if (!argument_passes(&view, argument, cookie, &facts))
		return false;
	settle(&view.packet, &facts);
	kept = begin_call(&facts, call);
	if (kept && !fill_buffer(&kept->event, &view, &facts, ROOM_SMALL))
		forget_call(&facts, call);
	return true;
}

#endif
