/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A packet's identity. An id is not the skb's address, which the slab hands out again at once: it is born when a packet is
 * first seen, follows the buffer that holds its bytes (skb->head, which clones share and which veth and XDP carry from
 * one end to the other) and dies with that buffer.
 *
 * Tracepoints see most deaths, but not all: TCP frees what it has read in silence. So a buffer that turns up again with
 * another content is another packet; better two ids for one packet than one id for two.
 */
#ifndef PTRACE_TRACKING_BPF_H
#define PTRACE_TRACKING_BPF_H

#include "handover.bpf.h"
#include "maps.bpf.h"
#include "packet.bpf.h"
#include "protocols.bpf.h"
#include "records.h"

#define TRACKED_PACKETS 65536

/* What matched once is shown from then on, whatever becomes of its headers. */
const volatile bool config_follow = false;
/* All births and deaths of buffers are seen (kernel functions): a buffer's content need not be compared. */
const volatile bool config_exact_identity = false;

struct tracked {
	__u64 id;
	__u64 parent_id;
	__u64 content; /* what does not change on the way: see content_of() */
	__u64 skb_address;
	__u32 netns_inode;
	__u32 ifindex;
	__u32 ip_length;
	/* Where it was first seen: a packet does not come by there again. */
	__u32 birth_netns;
	__u32 birth_ifindex;
	__u32 birth_probe;
	__u8 ttl;
	__u8 merged; /* into its parent */
	/* Last seen where a buffer may end, or begin anew, unseen: the content decides whether it is still this packet. */
	__u8 unsure;
};

/* By skb->head. LRU: when it is full the packet longest unseen is forgotten. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, TRACKED_PACKETS);
	__type(key, __u64);
	__type(value, struct tracked);
} packets SEC(".maps");

/* Whether there has ever been one: until then nothing has to be looked for among them, and most captures wait for one packet. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} any_packets SEC(".maps");

/*
 * What was in buffers that their skbs gave up, by where they start: with XDP_TX and XDP_REDIRECT veth frees the skb that an XDP
 * program ran for, and its buffer lives on as an xdp_frame.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct tracked);
} released SEC(".maps");

/* Births and deaths, so that the reader can tell how many packets were forgotten: births - deaths - entries. */
struct tracking_totals {
	__u64 births;
	__u64 deaths;
	__u64 last_id;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tracking_totals);
} tracking SEC(".maps");

/*
 * A new packet id, without an atomic: one CPU is once at one nanosecond, and where the clock is too coarse for that, one step
 * behind the last one. 54 bits of time are 208 days of uptime.
 */
static __always_inline __u64 new_packet_id(__u64 timestamp_ns)
{
	__u64 id = timestamp_ns << 10 | (bpf_get_smp_processor_id() & 1023);
	struct tracking_totals *totals;
	__u32 zero = 0;

	totals = bpf_map_lookup_elem(&tracking, &zero);
	if (!totals)
		return id;
	if (id <= totals->last_id)
		id = totals->last_id + 1024;
	totals->last_id = id;
	return id;
}

/* Set in what content_of() returns: the bytes were parsed; they name the packet beyond doubt. */
#define CONTENT_KNOWN 1
#define CONTENT_UNIQUE 2

/*
 * Folds what names a packet and survives routing, and NAT as far as can be: identification, transport protocol, sequence
 * numbers; without such numbers the ports.
 */
static __always_inline __u64 content_of(const struct ptrace_event *record)
{
	__u64 content =
		(__u64)record->ip_id << 32 ^ (__u64)record->protocol << 48 ^ (__u64)record->l4_protocol << 8;
	bool unique = record->ip_id;

	if (!(record->flags & (PTRACE_EVENT_IP | PTRACE_EVENT_ARP)))
		return 0;
	if (record->flags & PTRACE_EVENT_TCP) {
		content ^= (__u64)record->tcp_sequence << 20 ^ (__u64)record->tcp_acknowledgement << 7;
		unique = true;
	} else if (record->icmp_sequence) {
		content ^= (__u64)record->icmp_id << 16 ^ (__u64)record->icmp_sequence << 36 ^
			   record->icmp_type << 24;
		unique = true;
	} else {
		content ^= (__u64)record->source_port << 16 ^ (__u64)record->destination_port << 37;
	}
	return (content & ~3ULL) | CONTENT_KNOWN | (unique ? CONTENT_UNIQUE : 0);
}

/*
 * The length that the IP header tells, 0 without one: the same wherever the packet is, with whatever link header or padding.
 * Only GRO changes it, within one skb.
 */
static __always_inline __u32 ip_length(const struct ptrace_event *record)
{
	__u32 at = *(volatile __u16 *)&record->network_offset;

	if (!(record->flags & PTRACE_EVENT_IP))
		return 0;
	at += record->protocol == ETH_P_IP ? 2 : 4;
	asm volatile("" : "+r"(at));
	if (at > 128 - sizeof(__u16)) /* the smallest room behind a record */
		return 0;
	return *(__u16 *)((void *)(record + 1) + at);
}

static __always_inline volatile __u32 *any_tracked(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&any_packets, &zero);
}

static __always_inline struct tracked *find_tracked(__u64 head)
{
	volatile __u32 *any = any_tracked();

	return any && *any ? bpf_map_lookup_elem(&packets, &head) : 0;
}

static __always_inline void count_tracking(__u64 births, __u64 deaths)
{
	__u32 zero = 0;
	struct tracking_totals *totals = bpf_map_lookup_elem(&tracking, &zero);

	if (!totals)
		return;
	/* In one instruction each, for a softirq may come between: see add_count(). */
	if (births)
		__sync_fetch_and_add(&totals->births, births);
	if (deaths)
		__sync_fetch_and_add(&totals->deaths, deaths);
}

/* Returns whether a packet that a filter turned away is one that matched before. */
static __always_inline bool is_followed(unsigned char *head)
{
	return config_follow && find_tracked((__u64)head);
}

/*
 * The buffer an skb had when its packet was first seen, by the skb's address: a head that was expanded (as forwarding does to
 * what TCP sent) is found again by it. Not needed where the expansion itself is seen.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, TRACKED_PACKETS / 4);
	__type(key, __u64);
	__type(value, __u64);
} buffers SEC(".maps");

/*
 * Whether a packet leaves another namespace than it was in last. With its TTL one less it may have been routed there, or else be
 * a segment of what GRO has put together there.
 */
static __always_inline bool leaves_elsewhere(const struct tracked *known, const struct ptrace_event *record)
{
	return record->direction == PTRACE_DIRECTION_EGRESS && record->netns_inode && known->netns_inode &&
	       record->netns_inode != known->netns_inode;
}

/*
 * Whether a packet is again where it was first seen, or has a larger TTL than before: then it is a new one. So is one that
 * nothing but its ports tell, if it leaves a namespace that it did not come into; and a UDP datagram: the segments of one that
 * was sent without DF count up from its identification, and those of the next one do so from the number after that. Clones may
 * end one after the other at the same place (what asks for a neighbour's address is one each time), if nothing else is known
 * like it.
 */
static __always_inline bool is_reborn(const struct tracked *known, const struct ptrace_event *record)
{
	if (record->ttl > known->ttl && known->ttl)
		return true;
	if ((!(known->content & CONTENT_UNIQUE) || record->l4_protocol == IPPROTO_UDP) &&
	    leaves_elsewhere(known, record))
		return true;
	if (record->flags & PTRACE_EVENT_SHARED && known->content & CONTENT_UNIQUE)
		return false;
	return record->probe_id == known->birth_probe && record->ifindex == known->birth_ifindex &&
	       record->netns_inode == known->birth_netns;
}

static __always_inline bool before_skb(const struct ptrace_event *record)
{
	return record->flags & PTRACE_EVENT_XDP;
}

/*
 * Whether the buffer still holds the packet it is known for. Bytes that can't be parsed tell nothing, so then the skb has to be
 * the same, and to hold a packet: netlink's messages use the same buffers, and have no protocol. A driver's XDP buffer dies
 * without a function that could be watched, so there the content always counts, and once more when an skb has taken it over.
 */
static __always_inline bool same_packet(const struct tracked *known, const struct ptrace_event *record,
					__u64 content)
{
	if (config_exact_identity && !before_skb(record) && !known->unsure)
		return true;
	if (!content || !known->content)
		return record->protocol && known->skb_address == record->skb_address;
	/* An acknowledgement and the data sent with the same numbers differ in length alone; what GRO has merged does too. */
	if (known->skb_address != record->skb_address && known->ip_length != ip_length(record) &&
	    !(known->unsure && record->gso_size))
		return false;
	return known->content == content && !is_reborn(known, record);
}

/* Returns the packet that an skb with a new buffer had in its old one, if it surely is the same, and puts it down anew. */
static __always_inline struct tracked *find_moved(const struct ptrace_event *record, __u64 content)
{
	__u64 skb = record->skb_address, head = record->head_address;
	struct tracked *known;
	__u64 *before;

	if (config_exact_identity || before_skb(record) || !(content & CONTENT_UNIQUE))
		return 0;
	before = bpf_map_lookup_elem(&buffers, &skb);
	if (!before)
		return 0;
	known = find_tracked(*before);
	if (!known || known->content != content || known->netns_inode != record->netns_inode ||
	    known->ip_length != ip_length(record) || is_reborn(known, record))
		return 0;
	if (bpf_map_update_elem(&packets, &head, known, BPF_ANY))
		return 0;
	bpf_map_update_elem(&buffers, &skb, &head, BPF_ANY);
	count_tracking(1, 0);
	return find_tracked(head);
}

static __always_inline void take_identity(struct ptrace_event *record, struct tracked *known, __u64 content)
{
	record->packet_id = known->id;
	record->parent_id = known->parent_id;
	if (known->merged)
		record->flags |= PTRACE_EVENT_MERGED;
	if (content) {
		known->content = content;
		known->skb_address = record->skb_address;
		known->ip_length = ip_length(record);
	}
	if (record->ttl)
		known->ttl = record->ttl;
	known->unsure = before_skb(record);
	if (record->netns_inode)
		known->netns_inode = record->netns_inode;
	if (record->ifindex)
		known->ifindex = record->ifindex;
}

/* Gives the record a new packet id. */
static __always_inline void give_birth(struct ptrace_event *record, __u64 content)
{
	__u64 head = record->head_address, skb = record->skb_address;
	volatile __u32 *any = any_tracked();
	struct tracked born = {
		.id = new_packet_id(record->timestamp_ns),
		.content = content,
		.skb_address = record->skb_address,
		.ip_length = ip_length(record),
		.netns_inode = record->netns_inode,
		.ifindex = record->ifindex,
		.birth_netns = record->netns_inode,
		.birth_ifindex = record->ifindex,
		.birth_probe = record->probe_id,
		.ttl = record->ttl,
		.unsure = before_skb(record),
	};

	if (any && !*any)
		*any = 1;
	if (bpf_map_update_elem(&packets, &head, &born, BPF_ANY))
		return;
	if (!config_exact_identity)
		bpf_map_update_elem(&buffers, &skb, &head, BPF_ANY);
	count_tracking(1, 0);
	record->packet_id = born.id;
	record->flags |= PTRACE_EVENT_FIRST_SIGHT;
}

/*
 * Puts a packet back whose skb gave its buffer to an xdp_frame. Returns it, or NULL if there is none. The buffer may as well
 * have come back to a driver since: so only a content that is nobody else's counts, the next time it is looked at.
 */
static __always_inline struct tracked *revive(__u64 head)
{
	struct tracked *gone = bpf_map_lookup_elem(&released, &head);
	struct tracked known;

	if (!gone || !(gone->content & CONTENT_UNIQUE))
		return 0;
	known = *gone;
	known.unsure = 1;
	bpf_map_delete_elem(&released, &head);
	if (bpf_map_update_elem(&packets, &head, &known, BPF_ANY))
		return 0;
	count_tracking(1, 0);
	return find_tracked(head);
}

/* Returns the packet that a driver has copied from this buffer to another one, and puts it down anew; NULL if there is none. */
static __always_inline struct tracked *find_copied(__u64 buffer, __u64 head)
{
	struct tracked *known = buffer ? find_tracked(buffer) : 0;

	if (!known || bpf_map_update_elem(&packets, &head, known, BPF_ANY))
		return 0;
	bpf_map_delete_elem(&packets, &buffer);
	return find_tracked(head);
}

/*
 * Gives the record its packet id: the one of the packet in this buffer, or a new one. Returns false for a record that is
 * here only because its buffer was known (PTRACE_EVENT_FOLLOWED), and turns out to be of another packet.
 */
static __always_inline bool identify(struct ptrace_event *record)
{
	__u64 head = record->head_address, content = content_of(record);
	struct tracked *known = find_tracked(head);

	if (!known && config_exact_identity && before_skb(record))
		known = revive(head);
	if (known && !same_packet(known, record, content)) {
		count_tracking(0, 1); /* it ended unseen */
		if (record->flags & PTRACE_EVENT_FOLLOWED) {
			bpf_map_delete_elem(&packets, &head);
			return false;
		}
		if (before_skb(record) && !record->mtu) /* no device: place and namespace were the other one's */
			record->netns_inode = record->ifindex = 0;
		known = 0;
	}
	if (!known)
		known = find_moved(record, content);
	if (!known && config_gro_probe && record->probe_id == config_gro_probe)
		known = find_copied(handed_over(record->ifindex), head);
	if (known)
		take_identity(record, known, content);
	else
		give_birth(record, content);
	if (before_skb(record))
		hand_over(record);
	return true;
}

/* Whether this skb is the last that holds its buffer. */
static __always_inline bool holds_alone(struct sk_buff *skb, unsigned char *head)
{
	struct skb_shared_info *shared = (struct skb_shared_info *)(head + READ(skb, end));

	/* The lower half of dataref counts the skbs that share the buffer (SKB_DATAREF_SHIFT). */
	return !READ_BITS(skb, cloned) || (BPF_CORE_READ(shared, dataref.counter) & 0xffff) == 1;
}

/* Forgets the packet that is known to be in a buffer. */
static __always_inline void end_tracked(__u64 head)
{
	if (!bpf_map_delete_elem(&packets, &head))
		count_tracking(0, 1);
}

/* Forgets the packet in a buffer if this skb is the last that holds it. */
static __always_inline void forget(struct sk_buff *skb, unsigned char *head)
{
	__u64 key = (__u64)head;

	if (find_tracked(key) && holds_alone(skb, head))
		end_tracked(key);
}

#endif
