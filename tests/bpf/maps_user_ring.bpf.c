/* SPDX-License-Identifier: GPL-2.0-only */
/* A ring buffer that user space fills, from a program's side. */
#include "maps.h"

struct {
	__uint(type, USER_RINGBUF);
	__uint(max_entries, 4096);
} ring SEC(".maps");

static long add(struct bpf_dynptr *record, __u64 *sum)
{
	__u32 value;

	if (!bpf_dynptr_read(&value, sizeof(value), record, 0, 0))
		*sum += value;
	return 0;
}

__u64 total;

/* Returns the number of records there were; adds their first numbers to total. */
SEC("raw_tp")
int drain(struct arguments *arguments)
{
	__u64 sum = 0;
	long records = bpf_user_ringbuf_drain(&ring, add, &sum, 0);

	total += sum;
	return records;
}
