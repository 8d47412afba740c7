/* SPDX-License-Identifier: GPL-2.0-only */
/* The cgroup v2 that a socket and a task are in, as addresses, and the way up from there. */
#ifndef PTRACE_CGROUPS_BPF_H
#define PTRACE_CGROUPS_BPF_H

#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

/* Deeper than that no tree was seen; systemd's go to about six. */
#define CGROUP_LEVELS_MAX 16

static __always_inline __u64 cgroup_of_task(struct task_struct *task)
{
	return (__u64)BPF_CORE_READ(task, cgroups, dfl_cgrp);
}

/* Returns 0 without a full socket: a request's or a time-wait's has no cgroup. */
static __always_inline __u64 cgroup_of_socket(struct sock *sk)
{
	struct sock_cgroup_data___val *old;
	__u8 state;

	if (!sk)
		return 0;
	state = BPF_CORE_READ(sk, __sk_common.skc_state);
	if (state == TCP_TIME_WAIT || state == TCP_NEW_SYN_RECV)
		return 0;
	if (bpf_core_field_exists(sk->sk_cgrp_data.cgroup))
		return (__u64)BPF_CORE_READ(sk, sk_cgrp_data.cgroup);
	/* Until 8520e224f547 (v5.15) a word that holds either that or, its lowest bit set, v1's class ids. */
	old = (void *)&sk->sk_cgrp_data;
	state = BPF_CORE_READ(old, val) & 1;
	return state ? 0 : BPF_CORE_READ(old, val);
}

static __always_inline __u64 cgroup_id(__u64 cgroup)
{
	return BPF_CORE_READ((struct cgroup *)cgroup, kn, id);
}

/* A cgroup begins with its own state, whose parent is the state that the cgroup above begins with. */
static __always_inline __u64 cgroup_parent(__u64 cgroup)
{
	return (__u64)BPF_CORE_READ((struct cgroup *)cgroup, self.parent);
}

#endif
