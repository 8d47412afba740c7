/* SPDX-License-Identifier: GPL-2.0-only */
/* A packet as its skb shows it: where its bytes start, how long it is, whose namespace and device it is in. */
#ifndef PTRACE_PACKET_BPF_H
#define PTRACE_PACKET_BPF_H

#include "read.bpf.h"
#include <bpf/bpf_endian.h>

#define ETH_P_IP 0x0800
#define ETH_P_ARP 0x0806
#define ETH_P_8021Q 0x8100
#define ETH_P_IPV6 0x86dd
#define ETH_P_8021AD 0x88a8
#define ETH_HLEN 14

/* Where the headers of an skb may be trusted to lie: what a hook knows better than the skb itself. */
enum packet_position {
	POSITION_BY_SKB,     /* use the skb's own offsets */
	POSITION_AT_NETWORK, /* skb->data is at the network header: receive tracepoints, before it is set */
	POSITION_AT_LINK,    /* skb->data is at the link header: transmit tracepoints, TC */
};

/*
 * `start` is the link header where there is one, else the network header, else skb->data; `length` counts from
 * there, so that one packet has one length at every hook. All positions are offsets from skb->head.
 */
struct packet_view {
	struct sk_buff *skb;
	struct net_device *dev; /* NULL: none, or skb->dev holds something else (UDP's dev_scratch) */
	struct net *net;	/* NULL: unknown */
	unsigned char *head;
	/* Numbers from here on. The next two are set by view_device(). */
	__u64 netns_cookie;
	__u32 mtu;
	__u32 start;
	__u32 data;
	__u32 linear_end;
	__u32 end; /* of the room for linear bytes: there is the skb_shared_info */
	__u32 length;
	__u32 nonlinear; /* bytes beyond the linear part */
	__u32 netns_inode;
	__u32 ifindex;
	__u32 rx_ifindex;
	__u32 mark;
	__u16 protocol; /* host order */
	bool link_header;
};

/*
 * A kernel address has its top bit set. In assembly: a typed pointer may be compared, but not shifted as the compiler would.
 * Of a pointer that is none, NULL remains.
 */
#define KERNEL_POINTER_OR_NULL(pointer) asm volatile("if %[p] s< 0 goto +1; %[p] = 0" : [p] "+r"(pointer))

static __always_inline bool valid_pointer(struct sk_buff *skb)
{
	KERNEL_POINTER_OR_NULL(skb);
	return skb;
}

/* UDP keeps lengths in skb->dev while a packet waits to be read. */
static __always_inline struct net_device *valid_device(struct net_device *dev)
{
	KERNEL_POINTER_OR_NULL(dev);
	return dev;
}

/* Unix and netlink sockets keep their messages in skbs too: no packets. */
static __always_inline bool is_message(struct sk_buff *skb)
{
	struct sock *sk = socket_of(skb);
	__u16 family = sk ? READ(sk, __sk_common.skc_family) : 0;

	return family == AF_UNIX || family == AF_NETLINK;
}

/* The cheap half: what the metadata filters need. */
static __always_inline void view_metadata(struct packet_view *view, struct sk_buff *skb, struct net_device *dev)
{
	view->skb = skb;
	view->dev = dev;
	view->net = net_of(dev, socket_of(skb));
	view->netns_inode = net_inode(view->net);
	view->ifindex = dev ? READ(dev, ifindex) : 0;
	view->rx_ifindex = READ(skb, skb_iif);
	view->mark = READ(skb, mark);
}

/* What a record says of namespace and device beyond what filters look at. */
static __always_inline void view_device(struct packet_view *view)
{
	view->netns_cookie = net_cookie(view->net);
	view->mtu = view->dev ? READ(view->dev, mtu) : 0;
}

/* True if the `bytes` between link and network header can be Ethernet with up to two VLAN tags. */
static __always_inline bool ethernet_length(__u32 bytes)
{
	return bytes == ETH_HLEN || bytes == ETH_HLEN + 4 || bytes == ETH_HLEN + 8;
}

/* What of an skb says where its bytes are. */
struct placement {
	__u64 head;
	__u64 data;
	__u32 length;
	__u32 nonlinear;
	__u32 network;
	__u32 mac;
	__u32 end;
	__u16 protocol; /* network order */
};

static __always_inline void place_bytes(struct packet_view *view, const struct placement *at,
					enum packet_position position)
{
	__u32 data = at->data - at->head, network = at->network, mac = at->mac;

	view->head = (unsigned char *)at->head;
	view->end = at->end;
	view->data = data;
	view->linear_end = data + at->length - at->nonlinear;
	view->nonlinear = at->nonlinear;
	view->protocol = bpf_ntohs(at->protocol);

	if (position == POSITION_AT_NETWORK)
		network = data;
	else if (position == POSITION_AT_LINK)
		mac = data;

	view->link_header = mac != 0xffff && network > mac && ethernet_length(network - mac);
	if (view->link_header)
		view->start = mac;
	else if (network && network <= view->linear_end)
		view->start = network;
	else
		view->start = data;
	/* A header already pulled lies before skb->data and still counts; one not yet reached does not. */
	view->length = at->length + data - view->start;
}

#define PLACEMENT(read, read_address, skb)                                                                        \
	{                                                                                                         \
		.head = (__u64)read_address(skb, head), .data = (__u64)read_address(skb, data),                   \
		.length = read(skb, len), .nonlinear = read(skb, data_len), .network = read(skb, network_header), \
		.mac = read(skb, mac_header), .end = read(skb, end), .protocol = read(skb, protocol),             \
	}

#if !READ_DIRECT

/*
 * These members lie close together, behind `len`. Where each would cost a call of a helper, one call reads them all: nine of them
 * were half of what a function's probe cost a packet that no filter wants.
 */
#define WINDOW_BYTES 120
#define WINDOW_START (bpf_core_field_offset(struct sk_buff, len) & ~7)
/* Nothing is to be known of the offset, or the compiler puts an OR in the place of the sum. */
#define READ_WINDOW(skb, member)                                                           \
	({                                                                                 \
		__u32 __at = bpf_core_field_offset(struct sk_buff, member) - WINDOW_START; \
		typeof((skb)->member) __value;                                             \
		asm volatile("" : "+r"(__at));                                             \
		if (__at <= WINDOW_BYTES - sizeof(__value))                                \
			__value = *(typeof(__value) *)((void *)window + __at);             \
		else                                                                       \
			__value = BPF_CORE_READ(skb, member);                              \
		__value;                                                                   \
	})

/* A function of its own, so that the window is off the stack again when more is called. */
static __noinline __attribute__((unused)) int view_window(struct packet_view *view, enum packet_position position)
{
	struct sk_buff *skb = view->skb;
	__u64 window[WINDOW_BYTES / 8];

	bpf_probe_read_kernel(window, sizeof(window), (void *)skb + WINDOW_START);
	{
		struct placement at = PLACEMENT(READ_WINDOW, READ_WINDOW, skb);

		place_bytes(view, &at, position);
	}
	return 0;
}

#endif

/* The other half: where the bytes are. */
static __always_inline void view_bytes(struct packet_view *view, enum packet_position position)
{
	struct sk_buff *skb = view->skb;

#if !READ_DIRECT
	if (!bpf_ksym_exists(bpf_rdonly_cast)) {
		view_window(view, position);
		return;
	}
	skb = TYPED(skb);
#endif
	{
		struct placement at = PLACEMENT(READ_TYPED, READ_ADDRESS, skb);

		place_bytes(view, &at, position);
	}
}

#endif
