/* SPDX-License-Identifier: GPL-2.0-only */
/* Storage of cgroups, from the side of a program that is attached to none. */
#include "maps.h"

struct cgroup;
struct css_set___test {
	struct cgroup *dfl_cgrp;
} __attribute__((preserve_access_index));
struct task_struct___test {
	struct css_set___test *cgroups;
} __attribute__((preserve_access_index));

struct {
	__uint(type, CGRP_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u64);
} marks SEC(".maps");

/* Adds a to the value of the caller's cgroup; returns the sum. */
SEC("raw_tp")
int add(struct arguments *arguments)
{
	struct task_struct___test *task = (void *)bpf_get_current_task_btf();
	__u64 *value;

	value = bpf_cgrp_storage_get(&marks, task->cgroups->dfl_cgrp, 0, STORAGE_CREATE);
	return value ? *value += arguments->a : 0;
}
