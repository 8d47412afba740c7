/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A packet before there is an skb, read from outside: the xdp_buff or xdp_frame that a function or another's XDP program
 * was given. Such a pointer may lead to a struct that nobody has filled yet, so what does not look like one tells nothing.
 */
#ifndef PTRACE_XDP_BUFFER_BPF_H
#define PTRACE_XDP_BUFFER_BPF_H

#include "remember.bpf.h"
#include "xdp_frame.bpf.h"

#define XDP_FLAGS_HAS_FRAGS 1
/* No driver's buffers are larger: pages of 64 KiB, and some with two of them. */
#define BUFFER_MAX (1 << 17)
/* Inode numbers of namespaces start about here: include/linux/proc_ns.h, include/uapi/linux/nsfs.h. */
#define NAMESPACE_INODE_MIN 0xefffff00
/* SMP_CACHE_BYTES: what an skb_shared_info is aligned to. */
#define CACHE_LINE 64

struct buffer_view {
	struct packet_view packet;
	__u64 address; /* of the xdp_buff or xdp_frame */
	__u64 shared;  /* the skb_shared_info of further pages, 0 for none */
	__u32 queue;
};

/* Returns whether that can be a buffer: `room` bytes from `start` on, the packet in them. */
static __always_inline bool view_room(struct packet_view *view, __u64 start, __u64 data, __u64 end, __u32 room)
{
	if ((__s64)start >= 0 || data < start || end < data || room > BUFFER_MAX || end - start > room)
		return false;
	view->head = (unsigned char *)start;
	view->start = view->data = data - start;
	view->linear_end = end - start;
	view->length = end - data;
	return true;
}

/* Adds the pages behind the linear part; there are none before v5.18. */
static __always_inline void view_pages(struct buffer_view *view, __u32 room)
{
	__u32 info_bytes = (bpf_core_type_size(struct skb_shared_info) + CACHE_LINE - 1) & ~(CACHE_LINE - 1);
	struct skb_shared_info *shared = (void *)view->packet.head + room - info_bytes;

	if (!bpf_core_field_exists(shared->xdp_frags_size))
		return;
	view->shared = (__u64)shared;
	view->packet.nonlinear = BPF_CORE_READ(shared, xdp_frags_size);
	view->packet.length += view->packet.nonlinear;
}

/* A device without link-layer header hands IP packets to generic XDP. */
static __always_inline void view_link(struct packet_view *view)
{
	__u16 type = view->dev ? READ(view->dev, type) : ARPHRD_ETHER;
	__u8 version = 0;

	view->link_header = type == ARPHRD_ETHER || type == ARPHRD_LOOPBACK;
	if (view->link_header)
		return;
	bpf_probe_read_kernel(&version, sizeof(version), view->head + view->start);
	view->protocol = version >> 4 == 4 ? ETH_P_IP : version >> 4 == 6 ? ETH_P_IPV6 : 0;
}

/* Views an xdp_buff. Returns false for what is none. */
static __always_inline bool view_buff(struct buffer_view *view, struct xdp_buff *xdp)
{
	struct packet_view *packet = &view->packet;
	__u32 room = READ(xdp, frame_sz);

	packet->dev = valid_device(READ(READ(xdp, rxq), dev));
	packet->net = net_of(packet->dev, 0);
	packet->netns_inode = net_inode(packet->net);
	if (packet->netns_inode < NAMESPACE_INODE_MIN)
		return false;
	packet->ifindex = READ(packet->dev, ifindex);
	if (!view_room(packet, READ_ADDRESS(xdp, data_hard_start), READ_ADDRESS(xdp, data),
		       READ_ADDRESS(xdp, data_end), room))
		return false;
	view->address = (__u64)xdp;
	view->queue = READ(READ(xdp, rxq), queue_index);
	if (bpf_core_field_exists(xdp->flags) && READ(xdp, flags) & XDP_FLAGS_HAS_FRAGS)
		view_pages(view, room);
	view_link(packet);
	return true;
}

/*
 * Views an xdp_frame. Returns false for what is none. A frame knows no device (dev_rx is set for cpumaps only); place and
 * namespace are those where its buffer was last seen.
 */
static __always_inline bool view_frame(struct buffer_view *view, struct xdp_frame *frame, struct facts *facts)
{
	struct packet_view *packet = &view->packet;
	__u64 data = READ_ADDRESS(frame, data), start = frame_start(frame);
	__u32 room = READ_BITS(frame, frame_sz);
	struct tracked *known;

	if (!view_room(packet, start, data, data + READ_BITS(frame, len), room) || data - (__u64)frame > room)
		return false;
	view->address = (__u64)frame;
	if (bpf_core_field_exists(frame->flags) && READ(frame, flags) & XDP_FLAGS_HAS_FRAGS)
		view_pages(view, room);
	view_link(packet);
	known = find_tracked(start);
	if (known) {
		packet->netns_inode = known->netns_inode;
		packet->ifindex = known->ifindex;
		if (filter_netns_count || filter_interface_count)
			facts->flags |= PTRACE_EVENT_FOLLOWED; /* not shown, should it turn out to be another */
	}
	return true;
}

static __always_inline bool buffer_passes(const struct buffer_view *view, struct facts *facts)
{
	const struct packet_view *packet = &view->packet;
	__u64 head = (__u64)packet->head;

	return passes_metadata(packet) &&
	       (filter_buffer(packet, head + packet->start, head + packet->linear_end, view->shared) ||
		follow(packet->head, facts));
}

/* Fills a record that has `room` bytes behind its head. The view is settled. Returns whether to keep it: identify(). */
static __noinline int fill_buffer(struct ptrace_event *record, struct buffer_view *view, const struct facts *facts,
				  __u32 room)
{
	struct packet_view *packet = &view->packet;
	struct copy copy = {.record = record, .room = room};

	fill_head(record, facts);
	fill_namespace(record, packet);
	record->flags |= PTRACE_EVENT_XDP;
	if (packet->link_header)
		record->flags |= PTRACE_EVENT_LINK_HEADER;
	record->skb_address = view->address;
	record->head_address = (__u64)packet->head;
	record->queue = view->queue;
	record->packet_type = PTRACE_NO_SKB;
	record->packet_length = packet->length;
	record->data_length = packet->nonlinear;
	record->protocol = packet->protocol;
	start_walk(record, packet);
	copy_linear(&copy);
	return finish_bytes(&copy);
}

/* Emits one event of a buffer that passed every filter. */
static __always_inline void emit_buffer(struct buffer_view *view, struct facts *facts)
{
	struct ptrace_counters *count = probe_counters(facts->probe_id);
	void *ring = begin_event(count);
	__u32 room;

	if (!count || !ring)
		return;
	settle(&view->packet, facts);
	room = bytes_wanted(view->packet.length);
	if (config_snaplen <= ROOM_SMALL && config_linear_only)
		room = 0;
	EMIT(room, ring, count, fill_buffer, view, facts);
}

#endif
