/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The wire format between the kernel side and its readers: the one definition of every record.
 *
 * The build reads this layout out of the compiled object's debug info and generates
 * packet_tracer/events/_layout.py from it; nothing repeats it by hand. A record is a fixed head
 * followed by `captured_length` bytes of the packet, padded to the ring's eight bytes.
 * Members are ordered by size, so there is no hidden padding. All integers are in the byte order
 * of the host; addresses are in network order, IPv4 as v4-mapped IPv6.
 */
#ifndef PTRACE_RECORDS_H
#define PTRACE_RECORDS_H

#define PTRACE_RECORD_VERSION 1
#define PTRACE_COMM_LENGTH 16
#define PTRACE_NO_SKB 0xff
/* Largest number of packet bytes one record carries. */
#define PTRACE_SNAPLEN_MAX 9216

/* Where in the stack a record was taken: how `verdict`, `direction` and the bytes are to be read. */
enum ptrace_hook {
	PTRACE_HOOK_TRACEPOINT = 1,
	PTRACE_HOOK_XDP = 2,
	PTRACE_HOOK_TC = 3,
	PTRACE_HOOK_NETFILTER = 4,
	PTRACE_HOOK_CGROUP = 5,
	PTRACE_HOOK_FUNCTION = 6,
	PTRACE_HOOK_FUNCTION_RETURN = 7,
	PTRACE_HOOK_PROGRAM = 8,
	PTRACE_HOOK_PROGRAM_RETURN = 9,
};

/* Probes known when the objects are built. Kernel functions are numbered from PTRACE_PROBE_FUNCTION on. */
enum ptrace_probe {
	PTRACE_PROBE_NETIF_RECEIVE_SKB = 1,
	PTRACE_PROBE_NETIF_RX = 2,
	PTRACE_PROBE_NAPI_GRO_RECEIVE_ENTRY = 3,
	PTRACE_PROBE_NET_DEV_QUEUE = 4,
	PTRACE_PROBE_NET_DEV_START_XMIT = 5,
	PTRACE_PROBE_NET_DEV_XMIT = 6,
	PTRACE_PROBE_KFREE_SKB = 7,
	PTRACE_PROBE_CONSUME_SKB = 8,
	PTRACE_PROBE_XDP = 16,
	PTRACE_PROBE_TC_INGRESS = 17,
	PTRACE_PROBE_TC_EGRESS = 18,
	/* + netfilter hook number (0 prerouting .. 4 postrouting) */
	PTRACE_PROBE_NETFILTER_IPV4 = 24,
	PTRACE_PROBE_NETFILTER_IPV6 = 32,
	PTRACE_PROBE_FUNCTION = 64,
};

enum ptrace_direction {
	PTRACE_DIRECTION_UNKNOWN = 0,
	PTRACE_DIRECTION_INGRESS = 1,
	PTRACE_DIRECTION_EGRESS = 2,
	PTRACE_DIRECTION_FORWARD = 3,
};

/* What the head holds; a member whose bit is missing is zero because it is not known, not because it is zero. */
enum ptrace_event_flags {
	PTRACE_EVENT_LINK_HEADER = 1 << 0,	/* bytes start with a link-layer header */
	PTRACE_EVENT_IP = 1 << 1,		/* addresses, TTL, L4 protocol, packet length are parsed */
	PTRACE_EVENT_PORTS = 1 << 2,		/* ports are parsed */
	PTRACE_EVENT_TCP = 1 << 3,		/* TCP sequence, acknowledgement, flags are parsed */
	PTRACE_EVENT_ICMP = 1 << 4,		/* ICMP type and code (and id, sequence of an echo) are parsed */
	PTRACE_EVENT_ARP = 1 << 5,		/* addresses are ARP's sender and target protocol addresses */
	PTRACE_EVENT_FRAGMENT = 1 << 6,		/* one fragment of an IP packet */
	PTRACE_EVENT_VLAN = 1 << 7,		/* vlan_tci is valid */
	PTRACE_EVENT_VLAN_IN_METADATA = 1 << 8, /* ... and lies in the skb, not in the bytes */
	PTRACE_EVENT_DROP_REASON = 1 << 9,	/* drop_reason is valid */
	PTRACE_EVENT_DROP_LOCATION = 1 << 10,	/* location is valid */
	PTRACE_EVENT_VERDICT = 1 << 11,		/* verdict (or return value) is valid */
	PTRACE_EVENT_NO_PACKET =
		1 << 12, /* the skb could not be read any more: flow members are remembered ones */
	PTRACE_EVENT_ENCAPSULATED = 1 << 13, /* skb->encapsulation */
	PTRACE_EVENT_FIRST_SIGHT = 1 << 14,  /* the first record of this packet id */
	PTRACE_EVENT_FOLLOWED = 1 << 15,     /* did not match the filter itself; follows a packet that did */
	PTRACE_EVENT_BYTES_MISSING =
		1 << 16,	    /* captured fewer than asked for: they lie in pages that cannot be read */
	PTRACE_EVENT_XDP = 1 << 17, /* before there is an skb: skb_address is that of an xdp_buff or xdp_frame */
	PTRACE_EVENT_MERGED = 1 << 18, /* part of another packet by now, its parent */
	/* At its end: its device is hardware, and this CPU is not in that driver's transmit call. */
	PTRACE_EVENT_OUTSIDE_TRANSMIT = 1 << 19,
	/* At an skb's end: others hold its bytes, too, so it was a clone or has some, and the packet lives on. */
	PTRACE_EVENT_SHARED = 1 << 20,
};

struct ptrace_event {
	__u32 size;	    /* of the whole record, head and captured bytes, unpadded */
	__u8 version;	    /* PTRACE_RECORD_VERSION */
	__u8 hook;	    /* enum ptrace_hook */
	__u16 probe_id;	    /* enum ptrace_probe, or from PTRACE_PROBE_FUNCTION on */
	__u64 timestamp_ns; /* CLOCK_MONOTONIC */
	__u64 packet_id;    /* 0: not tracked */
	__u64 skb_address;  /* struct sk_buff; with PTRACE_EVENT_XDP struct xdp_buff or xdp_frame */
	__u32 cpu;
	__u32 pid; /* thread that runs; not necessarily the packet's owner */
	__u32 tgid;
	__u32 netns_inode;     /* 0: unknown */
	__u32 ifindex;	       /* 0: the packet has no device here */
	__u32 packet_length;   /* bytes of the whole packet, skb->len */
	__u32 drop_reason;     /* enum skb_drop_reason, subsystem in the upper 16 bits */
	__s32 verdict;	       /* XDP_*, TC_ACT_*, NF_*, NETDEV_TX_*, by hook */
	__u32 flags;	       /* enum ptrace_event_flags */
	__u32 mtu;	       /* of the device; 0: no device */
	__u16 captured_length; /* bytes that follow the head */
	__u16 protocol;	       /* EtherType, host order; 0: unknown */
	__u8 l4_protocol;      /* IPPROTO_* */
	__u8 direction;	       /* enum ptrace_direction */
	__u8 tos;	       /* DSCP and ECN; IPv6 traffic class */
	__u8 arp_operation;    /* 1 request, 2 reply */
	__u16 source_port;
	__u16 destination_port;
	__u16 vlan_tci;
	__u8 tcp_flags;
	__u8 ttl; /* hop limit in IPv6 */
	__u8 source[16];
	__u8 destination[16];
	__u8 comm[PTRACE_COMM_LENGTH];

	__u64 parent_id;    /* packet id this one was made from (segment, fragment, copy); 0: none */
	__u64 head_address; /* skb->head, or where an XDP buffer starts: the same for the skb built on it */
	__u64 netns_cookie; /* 0: unknown, or a kernel without cookies */
	__u64 location;	    /* address of the code that dropped it, or of the traced function */
	__s64 return_value;
	__u64 duration_ns; /* time inside a function, at its return */
	__u32 rx_ifindex;  /* skb->skb_iif */
	__u32 mark;
	__u32 hash;
	__u32 tcp_sequence;
	__u32 tcp_acknowledgement;
	__u32 ip_id;	       /* identification; 32 bits of it in an IPv6 fragment header */
	__s32 stack_id;	       /* -1: none */
	__u32 data_length;     /* bytes in the non-linear part, skb->data_len */
	__u16 fragment_offset; /* in bytes */
	__u16 icmp_id;
	__u16 icmp_sequence;
	__u8 icmp_type;
	__u8 icmp_code;
	__u16 network_offset;	/* of the IP or ARP header in the captured bytes */
	__u16 transport_offset; /* of the TCP, UDP, ICMP header in the packet's bytes; 0: not found */
	__u16 gso_size;
	__u16 gso_segments;
	__u32 gso_type;	  /* SKB_GSO_* */
	__u16 queue;	  /* skb->queue_mapping, or the receive queue at XDP */
	__u8 packet_type; /* PACKET_HOST, ...; PTRACE_NO_SKB where there is none yet */
	__u8 checksum;	  /* CHECKSUM_*: skb->ip_summed */
};

_Static_assert(sizeof(struct ptrace_event) == 240, "records.h: the record's head changed size");
_Static_assert(sizeof(struct ptrace_event) % 8 == 0, "records.h: captured bytes must start aligned");

/* Counters of one probe, one per CPU. seen = kept + lost_ring + lost_tracking always holds. */
struct ptrace_counters {
	__u64 seen;	  /* passed every filter */
	__u64 kept;	  /* submitted to the ring */
	__u64 lost_ring;  /* the ring was full */
	__u64 lost_stack; /* kept, but without the stack that was asked for */
	__u64 rejected;	  /* by a filter; counted only when asked for */
	__u64 untracked;  /* kept, but the tracking table was full: packet_id is 0 */
};

/* What a counter keeps its rows by: members of ptrace_count_key up to those that are needed. */
enum ptrace_count_by {
	PTRACE_COUNT_BY_NETNS = 1,
	PTRACE_COUNT_BY_DROP_REASON = 2,
	PTRACE_COUNT_BY_PROTOCOL = 3,
	PTRACE_COUNT_BY_PORT = 4,
	PTRACE_COUNT_BY_ADDRESS = 5,
	PTRACE_COUNT_BY_FLOW = 6,
};

/* What a row's key holds beside the protocols. */
enum ptrace_count_flags {
	PTRACE_COUNT_ADDRESSES = 1 << 0,
	PTRACE_COUNT_PORTS = 1 << 1,
};

/* The key of a row. Its map takes only the first bytes, as many as its kind has; one port or address is the source's. */
struct ptrace_count_key {
	__u32 number;	   /* inode of the namespace, or drop reason */
	__u16 protocol;	   /* EtherType, host order; 0: not part of the key, or unknown */
	__u8 l4_protocol;  /* IPPROTO_* */
	__u8 flags;	   /* enum ptrace_count_flags */
	__u16 source_port; /* host order */
	__u16 destination_port;
	__u8 source[16]; /* IPv4 is v4-mapped */
	__u8 destination[16];
};

/* A row's value, one per CPU. */
struct ptrace_count {
	__u64 packets;
	__u64 bytes; /* from the first header on */
};

/* Of all rows of a counter, one per CPU. added = what is in rows + what was in rows that had to make room. */
struct ptrace_count_totals {
	__u64 packets;	/* passed every filter */
	__u64 bytes;	/* theirs */
	__u64 added;	/* to rows: a packet counts at both its ports or addresses */
	__u64 inserted; /* rows begun, those included that had to make room for others */
	__u64 failed;	/* to be added to a row */
};

#endif
