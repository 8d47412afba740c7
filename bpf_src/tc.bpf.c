// SPDX-License-Identifier: GPL-2.0-only
/* TC ingress and egress of a device: TCX where there is one, clsact below. The packet always goes on. */
#define READ_DIRECT 0
#define HOOK_TC
#include "emit.bpf.h"

char LICENSE[] SEC("license") = "GPL";

static __always_inline int trace_tc(struct __sk_buff *ctx, enum ptrace_probe probe_id,
				    enum ptrace_direction direction)
{
	/* In a TC program the context register holds the address of the skb itself. */
	struct sk_buff *skb = (struct sk_buff *)ctx;
	struct facts facts = {.hook = PTRACE_HOOK_TC,
			      .probe_id = probe_id,
			      .direction = direction,
			      .verdict = TCX_NEXT,
			      .flags = PTRACE_EVENT_VERDICT};
	struct packet_view view;

	view_metadata(&view, skb, valid_device(device_of(skb)));
	if (!passes_metadata(&view)) {
		count_rejected(probe_id);
		return TCX_NEXT;
	}
	view_bytes(&view, POSITION_AT_LINK);
	if (filter_tc(ctx, &view, direction == PTRACE_DIRECTION_EGRESS) || follow(view.head, &facts))
		emit_skb(&view, &facts);
	else
		count_rejected(probe_id);
	return TCX_NEXT;
}

SEC("tc")
int tc_ingress(struct __sk_buff *ctx)
{
	return trace_tc(ctx, PTRACE_PROBE_TC_INGRESS, PTRACE_DIRECTION_INGRESS);
}

SEC("tc")
int tc_egress(struct __sk_buff *ctx)
{
	return trace_tc(ctx, PTRACE_PROBE_TC_EGRESS, PTRACE_DIRECTION_EGRESS);
}
