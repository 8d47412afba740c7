/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The metadata filters: what can be decided from the skb and the task, before any packet byte is read.
 * Ordered by cost, so that a packet of somebody else's is left alone as early as can be.
 */
#ifndef PTRACE_PREDICATES_BPF_H
#define PTRACE_PREDICATES_BPF_H

#include "cgroups.bpf.h"
#include "maps.bpf.h"

#define FILTER_NETNS_MAX 16
#define FILTER_INTERFACES_MAX 32
#define FILTER_TASKS_MAX 16
#define FILTER_CGROUPS_MAX 8
#define FILTER_DROP_REASONS_MAX 32

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

/* 0: any. The thread that runs, or its process. */
const volatile __u32 filter_pid_count = 0;
const volatile __u32 filter_pids[FILTER_TASKS_MAX] = {};

/* 0: any. Names of threads, sixteen bytes each, zeros behind them. */
const volatile __u32 filter_comm_count = 0;
const volatile __u64 filter_comms[FILTER_TASKS_MAX][2] = {};

/* 0: any. Ids in the cgroup v2 tree; what is below one of them counts too. */
const volatile __u32 filter_cgroup_count = 0;
const volatile __u64 filter_cgroups[FILTER_CGROUPS_MAX] = {};

/* Bytes of the packet, from its first header on, both ends included. */
const volatile bool filter_length = false;
const volatile __u32 filter_length_minimum = 0;
const volatile __u32 filter_length_maximum = 0;

/* 0: any event; else only drops for one of these reasons. */
const volatile __u32 filter_drop_reason_count = 0;
const volatile __u32 filter_drop_reasons[FILTER_DROP_REASONS_MAX] = {};

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

static __always_inline bool match_pid(struct task_struct *task)
{
	__u32 pid, tgid;

	if (!filter_pid_count)
		return true;
	pid = BPF_CORE_READ(task, pid);
	tgid = BPF_CORE_READ(task, tgid);
	for (__u32 i = 0; i < FILTER_TASKS_MAX; i++) {
		if (i >= filter_pid_count)
			break;
		if (filter_pids[i] == pid || filter_pids[i] == tgid)
			return true;
	}
	return false;
}

static __always_inline bool match_comm(struct task_struct *task)
{
	__u64 comm[2] = {};

	if (!filter_comm_count)
		return true;
	/* Up to its end: what was there before lies behind a name until 06c5088aeedd (v5.17). */
	if (bpf_probe_read_kernel_str(comm, sizeof(comm), &task->comm) < 0)
		return false;
	for (__u32 i = 0; i < FILTER_TASKS_MAX; i++) {
		if (i >= filter_comm_count)
			break;
		if (filter_comms[i][0] == comm[0] && filter_comms[i][1] == comm[1])
			return true;
	}
	return false;
}

/* Verified once for each program: the tree is walked for the socket and for the task. */
__weak __noinline int match_cgroup(__u64 cgroup)
{
	if (!filter_cgroup_count)
		return 1;
	for (__u32 level = 0; level < CGROUP_LEVELS_MAX && cgroup; level++) {
		__u64 id = cgroup_id(cgroup);

		for (__u32 i = 0; i < FILTER_CGROUPS_MAX; i++) {
			if (i >= filter_cgroup_count)
				break;
			if (filter_cgroups[i] == id)
				return 1;
		}
		cgroup = cgroup_parent(cgroup);
	}
	return 0;
}

/* The process that runs, and whose the packet is: its socket's cgroup, or without a socket the running task's. */
static __always_inline bool match_task(struct sock *sk)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	__u64 cgroup;

	if (!match_pid(task) || !match_comm(task))
		return false;
	if (!filter_cgroup_count)
		return true;
	cgroup = cgroup_of_socket(sk);
	return match_cgroup(cgroup ? cgroup : cgroup_of_task(task));
}

static __always_inline bool match_length(__u32 length)
{
	return !filter_length || (length >= filter_length_minimum && length <= filter_length_maximum);
}

/* `known`: the event is a drop that tells its reason. */
static __always_inline bool match_drop_reason(bool known, __u32 reason)
{
	if (!filter_drop_reason_count)
		return true;
	if (!known)
		return false;
	for (__u32 i = 0; i < FILTER_DROP_REASONS_MAX; i++) {
		if (i >= filter_drop_reason_count)
			break;
		if (filter_drop_reasons[i] == reason)
			return true;
	}
	return false;
}

#endif
