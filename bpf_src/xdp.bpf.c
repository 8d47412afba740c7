// SPDX-License-Identifier: GPL-2.0-only
/* XDP: the packet before there is an skb, at the driver or, generic, just after. It always passes. */
#define READ_DIRECT 0
#define HOOK_XDP
#include "emit.bpf.h"

char LICENSE[] SEC("license") = "GPL";

static __always_inline __u32 packet_length(struct xdp_md *ctx, __u32 linear)
{
	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_xdp_get_buff_len))
		return bpf_xdp_get_buff_len(ctx);
	return linear;
}

static __always_inline void copy_buffer(const struct copy *copy, struct xdp_md *ctx, __u64 data, __u32 linear)
{
	__u32 part = at_least_one(walk_of(copy)->wanted);

	if (part > copy->room)
		return;
	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_xdp_load_bytes)) {
		if (!bpf_xdp_load_bytes(ctx, 0, data_of(copy), part))
			add_copied(copy, part);
	} else if (part <= linear && !bpf_probe_read_kernel(data_of(copy), part, (void *)data)) {
		add_copied(copy, part);
	}
}

static __noinline int fill_xdp(struct ptrace_event *record, struct xdp_md *ctx, struct packet_view *view,
			       __u32 room)
{
	struct facts facts = {.hook = PTRACE_HOOK_XDP,
			      .probe_id = PTRACE_PROBE_XDP,
			      .direction = PTRACE_DIRECTION_INGRESS,
			      .verdict = XDP_PASS,
			      .flags = PTRACE_EVENT_VERDICT | PTRACE_EVENT_XDP};
	struct copy copy = {.record = record, .room = room};
	struct xdp_buff *xdp = (struct xdp_buff *)ctx;

	fill_head(record, &facts);
	view_device(view);
	fill_namespace(record, view);
	record->skb_address = (__u64)xdp;
	/* The buffer the skb will be built on, and veth's was: what joins this packet to its skb. */
	record->head_address = READ_ADDRESS(xdp, data_hard_start);
	record->packet_type = PTRACE_NO_SKB;
	record->queue = READ(READ(xdp, rxq), queue_index);
	record->packet_length = view->length;
	record->data_length = view->nonlinear;
	record->flags |= PTRACE_EVENT_LINK_HEADER;
	walk_of(&copy)->wanted = bytes_wanted(view->length);
	copy_buffer(&copy, ctx, (__u64)view->head, view->linear_end);
	return finish_bytes(&copy);
}

static __always_inline void emit_xdp(struct xdp_md *ctx, struct packet_view *view)
{
	struct ptrace_counters *count = probe_counters(PTRACE_PROBE_XDP);
	__u32 room = bytes_wanted(view->length);
	void *ring = begin_event(count);

	if (count && ring)
		EMIT(room, ring, count, fill_xdp, ctx, view);
}

SEC("xdp.frags")
int xdp(struct xdp_md *ctx)
{
	/* In an XDP program the context register holds the address of the xdp_buff itself. */
	struct xdp_buff *buffer = (struct xdp_buff *)ctx;
	struct packet_view view = {.dev = READ(READ(buffer, rxq), dev)};
	__u64 data = READ_ADDRESS(buffer, data);

	view.net = net_of(view.dev, 0);
	view.netns_inode = net_inode(view.net);
	view.ifindex = READ(view.dev, ifindex);
	hand_over_nothing();
	if (!passes_metadata(&view)) {
		count_rejected(PTRACE_PROBE_XDP);
		return XDP_PASS;
	}
	view.head = (unsigned char *)data;
	view.linear_end = READ_ADDRESS(buffer, data_end) - data;
	view.length = packet_length(ctx, view.linear_end);
	view.nonlinear = view.length - view.linear_end;
	if (filter_xdp(ctx, true))
		emit_xdp(ctx, &view);
	else
		count_rejected(PTRACE_PROBE_XDP);
	return XDP_PASS;
}
