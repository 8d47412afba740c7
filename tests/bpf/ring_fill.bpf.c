/* SPDX-License-Identifier: GPL-2.0-only */
/* Fills a ring buffer of an array of them with numbered records, on request: a syscall program run by test-run. */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include "records.h"

#define RECORD_MAX 4096

struct request {
	__u32 ring;	/* index into rings */
	__u32 size;	/* of each record, at least 24 */
	__u32 count;	/* of records to write */
	__u32 producer; /* put into each record */
	__u64 age_ns;	/* how much older than now records say they are */
	__u64 flags;	/* BPF_RB_* of the submit */
	__u32 discard;	/* discard every so manieth record instead; 0: none */
	__u32 swap;	/* exchange the times of every so manieth record and its successor; 0: none */
	__u64 first;	/* number of the first record */
	/* results */
	__u32 written;
	__u32 refused;
};

struct record {
	__u32 size;
	__u32 producer;
	__u64 timestamp_ns;
	__u64 number;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 8);
	__type(key, __u32);
	__array(
		values, struct {
			__uint(type, BPF_MAP_TYPE_RINGBUF);
			__uint(max_entries, 4096);
		});
} rings SEC(".maps");

struct work {
	struct request request;
	void *ring;
	__u64 last;
};

/* One check for NULL after each reserve, and no merging of several reserves before it: to 6.1's verifier a second
 * check of the same record may fail, and the record is then one that nobody submits.
 */
static __always_inline long write(struct work *work, __u32 index, __u32 size, bool is_event)
{
	struct record *record = bpf_ringbuf_reserve(work->ring, size, 0);
	__u64 now = bpf_ktime_get_ns() - work->request.age_ns;
	__u32 swap = work->request.swap;

	if (!record) {
		work->request.refused++;
		return 0;
	}
	if (is_event) { /* of records.h; its second word is the request's producer */
		struct ptrace_event *event = (void *)record;

		__builtin_memset(event, 0, sizeof(*event));
		event->captured_length = size - sizeof(*event);
	}
	record->size = size;
	record->producer = work->request.producer;
	record->timestamp_ns = now;
	if (swap && index % swap == swap - 1)
		record->timestamp_ns = work->last - 1;
	work->last = now;
	record->number = work->request.first + index;
	if (work->request.discard && index % work->request.discard == 0) {
		bpf_ringbuf_discard(record, work->request.flags);
	} else {
		bpf_ringbuf_submit(record, work->request.flags);
		work->request.written++;
	}
	return 0;
}

/* Sizes must be constants to the verifier: those that the tests use. */
static long write_one(__u32 index, void *context)
{
	struct work *work = context;

	switch (work->request.size) {
	case 24:
		return write(work, index, 24, false);
	case 104:
		return write(work, index, 104, false);
	case 240:
		return write(work, index, 240, true);
	case 336:
		return write(work, index, 336, true);
	case 4096:
		return write(work, index, 4096, false);
	}
	work->request.refused++;
	return 0;
}

SEC("syscall")
int fill(struct request *request)
{
	struct work work = {.request = *request};
	__u32 ring = request->ring;

	work.ring = bpf_map_lookup_elem(&rings, &ring);
	if (!work.ring)
		return -1;
	bpf_loop(request->count, write_one, &work, 0);
	request->written = work.request.written;
	request->refused = work.request.refused;
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
