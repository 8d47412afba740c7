/* SPDX-License-Identifier: GPL-2.0-only */
/* A ring buffer, from a program's side. */
#include "maps.h"

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} ring SEC(".maps");

/* Writes the numbers from a on, b of them; returns how many fitted. */
SEC("raw_tp")
int fill(struct arguments *arguments)
{
	__u64 first = arguments->a, number, *record;
	int written = 0;

	for (number = 0; number < 1000; number++) {
		if (number >= arguments->b)
			break;
		record = bpf_ringbuf_reserve(&ring, 16, 0);
		if (!record)
			break;
		record[0] = first + number;
		record[1] = ~record[0];
		bpf_ringbuf_submit(record, 0);
		written++;
	}
	return written;
}
