/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The metadata filters: what can be decided from the skb and the task, before any packet byte is read.
 * Ordered by cost, so that a packet of somebody else's is left alone as early as can be.
 */
#ifndef PTRACE_PREDICATES_BPF_H
#define PTRACE_PREDICATES_BPF_H

#include "maps.bpf.h"

#define FILTER_NETNS_MAX 16
#define FILTER_INTERFACES_MAX 32

/* 0: any. Inode numbers of network namespaces. */
const volatile __u32 filter_netns_count = 0;
const volatile __u32 filter_netns[FILTER_NETNS_MAX] = {};

struct interface_key {
	__u32 netns_inode; /* 0: any namespace */
	__u32 ifindex;
};

/* 0: any. The device the packet is at, or came in by. */
const volatile __u32 filter_interface_count = 0;
const volatile struct interface_key filter_interfaces[FILTER_INTERFACES_MAX] = {};

/* Matches where (skb->mark & filter_mark_mask) == filter_mark; a mask of 0 matches all. */
const volatile __u32 filter_mark = 0;
const volatile __u32 filter_mark_mask = 0;

static __always_inline bool match_netns(__u32 inode)
{
	if (!filter_netns_count)
		return true;
	for (__u32 i = 0; i < FILTER_NETNS_MAX; i++) {
		if (i >= filter_netns_count)
			break;
		if (filter_netns[i] == inode)
			return true;
	}
	return false;
}

static __always_inline bool match_interface(__u32 inode, __u32 ifindex, __u32 rx_ifindex)
{
	if (!filter_interface_count)
		return true;
	for (__u32 i = 0; i < FILTER_INTERFACES_MAX; i++) {
		if (i >= filter_interface_count)
			break;
		if (filter_interfaces[i].netns_inode && filter_interfaces[i].netns_inode != inode)
			continue;
		if (filter_interfaces[i].ifindex == ifindex || filter_interfaces[i].ifindex == rx_ifindex)
			return true;
	}
	return false;
}

static __always_inline bool match_mark(__u32 mark)
{
	return (mark & filter_mark_mask) == filter_mark;
}

#endif
