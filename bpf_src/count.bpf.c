// SPDX-License-Identifier: GPL-2.0-only
/* Counting packets by what they are: rows in a map of the kernel, no record for any of them. */
#define READ_DIRECT 1
#include "filter.bpf.h"
#include "flow.bpf.h"
#include "records.h"
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "GPL";

/* enum ptrace_count_by; the map's key size is the loader's to set. */
const volatile __u8 count_by = PTRACE_COUNT_BY_FLOW;
/* What goes out at a loopback device is not counted: it comes in there again. */
const volatile bool count_skip_loopback = false;

struct {
	__uint(type, BPF_MAP_TYPE_LRU_PERCPU_HASH);
	__uint(max_entries, 16384);
	__uint(key_size, sizeof(struct ptrace_count_key));
	__uint(value_size, sizeof(struct ptrace_count));
} rows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ptrace_count_totals);
} totals SEC(".maps");

/*
 * In one instruction: a value is this CPU's own, but a softirq may come between a load and a store of a program that runs for
 * a system call, and count the same.
 */
static __always_inline void add(__u64 *counter, __u64 number)
{
	__sync_fetch_and_add(counter, number);
}

/* Adds a packet to the row of a key. */
static __noinline int add_to_row(const struct ptrace_count_key *key, struct ptrace_count_totals *total,
				 __u32 length)
{
	struct ptrace_count *row = bpf_map_lookup_elem(&rows, key), first = {};
	long result;

	if (!row) {
		/* Empty: between this and what follows another CPU may begin the same row, and nothing is lost. */
		result = bpf_map_update_elem(&rows, key, &first, BPF_NOEXIST);
		row = bpf_map_lookup_elem(&rows, key);
		if (!result)
			add(&total->inserted, 1);
	}
	if (!row) {
		add(&total->failed, 1);
		return 0;
	}
	add(&row->packets, 1);
	add(&row->bytes, length);
	add(&total->added, 1);
	return 0;
}

/* Adds a packet to the rows of its ports or addresses: both ends, one where they are the same. */
static __always_inline void add_ends(struct ptrace_count_key *key, struct ptrace_count_totals *total, __u32 length)
{
	__u32 *source = (__u32 *)key->source, *destination = (__u32 *)key->destination;
	bool same;

	if (count_by == PTRACE_COUNT_BY_PORT)
		same = key->source_port == key->destination_port;
	else
		same = source[0] == destination[0] && source[1] == destination[1] && source[2] == destination[2] &&
		       source[3] == destination[3];
	if (!same) {
		struct ptrace_count_key other = {.number = key->number,
						 .protocol = key->protocol,
						 .l4_protocol = key->l4_protocol,
						 .flags = key->flags};

		if (count_by == PTRACE_COUNT_BY_PORT)
			other.source_port = key->destination_port;
		else
			__builtin_memcpy(other.source, key->destination, sizeof(other.source));
		add_to_row(&other, total, length);
	}
	if (count_by == PTRACE_COUNT_BY_PORT)
		key->destination_port = 0;
	add_to_row(key, total, length);
}

/* Leaves of what was found in a packet's headers what rows are kept by. */
static __always_inline void reduce(struct ptrace_count_key *key)
{
	if (count_by == PTRACE_COUNT_BY_PORT) {
		if (key->l4_protocol)
			key->protocol = 0;
		key->flags &= PTRACE_COUNT_PORTS;
	} else if (count_by == PTRACE_COUNT_BY_ADDRESS) {
		if (key->flags & PTRACE_COUNT_ADDRESSES)
			key->protocol = key->l4_protocol = 0;
		key->source_port = key->destination_port = 0;
		key->flags &= PTRACE_COUNT_ADDRESSES;
	} else if (count_by == PTRACE_COUNT_BY_PROTOCOL) {
		key->flags = 0;
	}
}

static __always_inline void count_packet(const struct packet_view *view, __u32 reason)
{
	struct ptrace_count_key key = {};
	struct ptrace_count_totals *total;
	__u32 zero = 0;

	total = bpf_map_lookup_elem(&totals, &zero);
	if (!total)
		return;
	add(&total->packets, 1);
	add(&total->bytes, view->length);
	if (count_by == PTRACE_COUNT_BY_NETNS) {
		key.number = view->netns_inode;
	} else if (count_by == PTRACE_COUNT_BY_DROP_REASON) {
		key.number = reason;
	} else {
		find_flow(view, &key);
		reduce(&key);
	}
	if (count_by == PTRACE_COUNT_BY_PORT || count_by == PTRACE_COUNT_BY_ADDRESS)
		add_ends(&key, total, view->length);
	else
		add_to_row(&key, total, view->length);
}

/* A packet counts at the device where it is; a drop, which may be anywhere, also at the one that it came in by. */
static __always_inline bool passes_metadata(const struct packet_view *view, bool drop)
{
	return match_netns(view->netns_inode) &&
	       match_interface(view->netns_inode, view->ifindex, drop ? view->rx_ifindex : view->ifindex) &&
	       match_mark(view->mark) && match_task(socket_of(view->skb));
}

static __always_inline int count_skb(struct sk_buff *skb, enum packet_position position,
				     enum ptrace_direction direction, bool drop, __u32 reason)
{
	struct packet_view view;

	view_metadata(&view, skb, valid_device(device_of(skb)));
	if (!passes_metadata(&view, drop))
		return 0;
	view_bytes(&view, position);
	if (match_drop_reason(drop, reason) && filter_skb(&view, direction))
		count_packet(&view, reason);
	return 0;
}

SEC("tp_btf/netif_receive_skb")
int BPF_PROG(count_received, struct sk_buff *skb)
{
	return count_skb(skb, POSITION_AT_NETWORK, PTRACE_DIRECTION_INGRESS, false, 0);
}

SEC("tp_btf/net_dev_start_xmit")
int BPF_PROG(count_sent, struct sk_buff *skb, struct net_device *dev)
{
	if (count_skip_loopback && (dev->flags & IFF_LOOPBACK))
		return 0;
	return count_skb(skb, POSITION_AT_LINK, PTRACE_DIRECTION_EGRESS, false, 0);
}

/* Reasons came with c504e5c2f964 (v5.17). */
SEC("tp_btf/kfree_skb")
int BPF_PROG(count_dropped, struct sk_buff *skb, void *location, enum skb_drop_reason reason)
{
	return count_skb(skb, POSITION_BY_SKB, PTRACE_DIRECTION_UNKNOWN, true, reason);
}
