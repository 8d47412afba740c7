/* SPDX-License-Identifier: GPL-2.0-only */
/* Storage of tasks, from a program's side. */
#include "maps.h"

struct {
	__uint(type, TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u64);
} marks SEC(".maps");

/* Adds a to the value of the calling task; returns the sum. */
SEC("raw_tp")
int add(struct arguments *arguments)
{
	__u64 *value = bpf_task_storage_get(&marks, (void *)bpf_get_current_task_btf(), 0, STORAGE_CREATE);

	return value ? *value += arguments->a : 0;
}
