// SPDX-License-Identifier: GPL-2.0-only
/* Netfilter's hooks, by links of their own (84601d6ee68a, v6.4). A packet is looked at and always accepted. */
#define READ_DIRECT 1
#include "emit.bpf.h"

char LICENSE[] SEC("license") = "GPL";

#define NF_INET_FORWARD 2

static __always_inline enum ptrace_direction direction_of(__u32 hook)
{
	if (hook == NF_INET_FORWARD)
		return PTRACE_DIRECTION_FORWARD;
	return hook < NF_INET_FORWARD ? PTRACE_DIRECTION_INGRESS : PTRACE_DIRECTION_EGRESS;
}

/* The device the packet is at: where it came in, for the hooks that have that, else where it goes out. */
static __always_inline struct net_device *hook_device(const struct nf_hook_state *state)
{
	struct net_device *in = state->in, *out = state->out;

	return in ? in : out;
}

SEC("netfilter")
int netfilter_hook(struct bpf_nf_ctx *ctx)
{
	const struct nf_hook_state *state = ctx->state;
	struct sk_buff *skb = ctx->skb;
	__u32 hook = state->hook;
	struct facts facts = {
		.hook = PTRACE_HOOK_NETFILTER,
		.direction = direction_of(hook),
		.verdict = NF_ACCEPT,
		.flags = PTRACE_EVENT_VERDICT,
		.probe_id =
			(state->pf == NFPROTO_IPV6 ? PTRACE_PROBE_NETFILTER_IPV6 : PTRACE_PROBE_NETFILTER_IPV4) +
			hook,
	};
	struct packet_view view;

	view_metadata(&view, skb, hook_device(state));
	if (!passes_metadata(&view)) {
		count_rejected(facts.probe_id);
		return NF_ACCEPT;
	}
	view_bytes(&view, POSITION_BY_SKB);
	if (passes_filter(&view, &facts))
		emit_skb(&view, &facts);
	else
		count_rejected(facts.probe_id);
	return NF_ACCEPT;
}
