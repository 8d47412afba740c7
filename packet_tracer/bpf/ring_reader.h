/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Reads several ring buffers as one, merged by time: a consumer of our own, because libbpf's calls back for every
 * record and knows nothing of other rings. A part of shim.c.
 */
#ifndef PTRACE_RING_READER_H
#define PTRACE_RING_READER_H

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <unistd.h>

#include <linux/bpf.h>

#define RING_HEADER 8
#define RING_LENGTH(header) ((header) & ~(BPF_RINGBUF_BUSY_BIT | BPF_RINGBUF_DISCARD_BIT))
#define RING_INVERSIONS_MAX 256

/*
 * A ring as the kernel lays it out (kernel/bpf/ringbuf.c): a page that we write (the consumer's position), a page
 * that the kernel writes (the producer's), then the data, mapped twice in a row so that no record wraps.
 */
struct ring {
	__u64 *consumer;
	const __u8 *producer;
	const __u8 *data;
	__u64 mask;
	__u64 position;	 /* of the next record to take; what the kernel knows lags behind */
	__u64 published; /* the position the kernel knows */
	__u64 end;	 /* the producer's position when it was last looked at */
	__u64 timestamp; /* of the record at position, once ring_peek() said there is one */
	__u32 length;
};

struct ptrace_rings {
	__u64 records;
	__u64 bytes;
	__u64 discarded;
	__u64 out_of_order;   /* records older than one already handed out */
	__u64 last_timestamp; /* the newest handed out */
	__u64 held_timestamp; /* the oldest left in the rings because it is too recent; 0: none */
	__u64 bad_records;    /* skipped for their size: longer than max_record, or too short for a timestamp */
	__u32 bad_size;	      /* of the last of them */
	__u32 bad_ring;
	__u64 used; /* bytes of data that the last read filled */
	__u32 count;
	__u32 timestamp_offset;
	__u32 max_record;
	int epoll_fd;
	int timer_fd;
	size_t page_size;
	__u32 *heap; /* indices of rings that have a record, the oldest record first */
	struct ring *rings;
	pthread_mutex_t lock; /* of all but what tells readers of their reads */
	bool waited_for;      /* a reader is waiting for what comes */
	struct backlog *backlog;
};

/* Room for records, and what of it was filled. */
struct batch {
	__u8 *data;
	size_t data_size;
	__u32 *offsets;
	__u32 *sizes;
	__u32 capacity;
	__u32 count;
	size_t used;
	__u64 bytes;
};

/* ring_backlog.h */
static void backlog_free(struct backlog *backlog);
static bool backlog_give(struct backlog *backlog, struct batch *batch);

static void ptrace_rings_free(struct ptrace_rings *rings)
{
	__u32 i;

	if (!rings)
		return;
	backlog_free(rings->backlog); /* its thread uses all the rest */
	for (i = 0; i < rings->count; i++) {
		struct ring *ring = &rings->rings[i];

		if (ring->producer)
			munmap((void *)ring->producer, rings->page_size + 2 * (ring->mask + 1));
		if (ring->consumer)
			munmap(ring->consumer, rings->page_size);
	}
	if (rings->timer_fd >= 0)
		close(rings->timer_fd);
	if (rings->epoll_fd >= 0)
		close(rings->epoll_fd);
	free(rings->heap);
	free(rings->rings);
	pthread_mutex_destroy(&rings->lock);
	free(rings);
}

static int ring_open(struct ptrace_rings *rings, __u32 index, int fd, __u32 size)
{
	/* Edge-triggered: records left for being too recent must not keep the descriptor readable. */
	struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.u32 = index};
	struct ring *ring = &rings->rings[index];
	void *pages;

	ring->mask = size - 1;
	pages = mmap(NULL, rings->page_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (pages == MAP_FAILED)
		return -errno;
	ring->consumer = pages;
	pages = mmap(NULL, rings->page_size + 2 * (size_t)size, PROT_READ, MAP_SHARED, fd,
		     (off_t)rings->page_size);
	if (pages == MAP_FAILED)
		return -errno;
	ring->producer = pages;
	ring->data = ring->producer + rings->page_size;
	ring->position = ring->published = __atomic_load_n(ring->consumer, __ATOMIC_RELAXED);
	return epoll_ctl(rings->epoll_fd, EPOLL_CTL_ADD, fd, &event) ? -errno : 0;
}

static struct ptrace_rings *ptrace_rings_new(const int *map_fds, const __u32 *sizes, __u32 count,
					     __u32 timestamp_offset, __u32 max_record)
{
	struct ptrace_rings *rings = calloc(1, sizeof(*rings));
	int error = ENOMEM;
	__u32 i;

	if (!rings)
		return NULL;
	pthread_mutex_init(&rings->lock, NULL);
	rings->count = count;
	rings->timestamp_offset = timestamp_offset;
	rings->max_record = max_record;
	rings->page_size = (size_t)sysconf(_SC_PAGESIZE);
	rings->timer_fd = -1;
	rings->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	rings->heap = calloc(count, sizeof(*rings->heap));
	rings->rings = calloc(count, sizeof(*rings->rings));
	if (rings->epoll_fd < 0)
		error = errno;
	else if (rings->heap && rings->rings)
		error = 0;
	if (!rings->rings)
		rings->count = 0;
	for (i = 0; i < count && !error; i++)
		error = -ring_open(rings, i, map_fds[i], sizes[i]);
	if (!error)
		return rings;
	ptrace_rings_free(rings);
	errno = error;
	return NULL;
}

static __u64 ring_step(__u32 length)
{
	return ((__u64)length + RING_HEADER + 7) & ~(__u64)7;
}

/* Find the next record, passing over discarded and unfit ones. False: there is none, or it is still being written. */
static bool ring_peek(struct ptrace_rings *rings, struct ring *ring)
{
	while (ring->position < ring->end) {
		const __u8 *record = ring->data + (ring->position & ring->mask);
		/* Acquire: the bytes of a record are only there once its busy bit is seen cleared. */
		__u32 header = __atomic_load_n((const __u32 *)record, __ATOMIC_ACQUIRE);

		if (header & BPF_RINGBUF_BUSY_BIT)
			return false;
		ring->length = RING_LENGTH(header);
		if (header & BPF_RINGBUF_DISCARD_BIT) {
			rings->discarded++;
		} else if (ring->length > rings->max_record || ring->length < rings->timestamp_offset + 8) {
			rings->bad_records++;
			rings->bad_size = ring->length;
			rings->bad_ring = (__u32)(ring - rings->rings);
		} else {
			memcpy(&ring->timestamp, record + RING_HEADER + rings->timestamp_offset, 8);
			return true;
		}
		ring->position += ring_step(ring->length);
	}
	return false;
}

/* Let the kernel reuse what was taken. Release: our reads of the records come before. */
static void ring_publish(struct ring *ring)
{
	if (ring->published == ring->position)
		return;
	ring->published = ring->position;
	__atomic_store_n(ring->consumer, ring->position, __ATOMIC_RELEASE);
}

static __u64 heap_time(const struct ptrace_rings *rings, __u32 slot)
{
	return rings->rings[rings->heap[slot]].timestamp;
}

static void heap_sink(struct ptrace_rings *rings, __u32 slot, __u32 size)
{
	for (;;) {
		__u32 child = 2 * slot + 1, ring = rings->heap[slot];

		if (child >= size)
			return;
		if (child + 1 < size && heap_time(rings, child + 1) < heap_time(rings, child))
			child++;
		if (heap_time(rings, slot) <= heap_time(rings, child))
			return;
		rings->heap[slot] = rings->heap[child];
		rings->heap[child] = ring;
		slot = child;
	}
}

/*
 * A record older than its predecessor: on one CPU an interrupt may write between another program's reading the
 * clock and its reserving room. Move its entry (not its bytes) back to where it belongs.
 */
static void batch_reorder(struct ptrace_rings *rings, const struct batch *batch, __u64 timestamp)
{
	__u32 *offsets = batch->offsets, *sizes = batch->sizes;
	__u32 last = batch->count, steps = 0, offset = offsets[last], size = sizes[last];
	__u64 before = 0;

	for (; last > 0 && steps < RING_INVERSIONS_MAX; last--, steps++) {
		memcpy(&before, batch->data + offsets[last - 1] + rings->timestamp_offset, 8);
		if (before <= timestamp)
			break;
		offsets[last] = offsets[last - 1];
		sizes[last] = sizes[last - 1];
	}
	offsets[last] = offset;
	sizes[last] = size;
	if (steps == RING_INVERSIONS_MAX || timestamp < rings->last_timestamp)
		rings->out_of_order++;
}

/*
 * Take records not newer than before_ns from all rings, oldest first, until none is left or the batch is full. One copy a
 * record. The lock is held.
 */
static void rings_take(struct ptrace_rings *rings, __u64 before_ns, struct batch *batch)
{
	__u64 newest = rings->last_timestamp, limit;
	__u32 waiting = 0, i;
	bool full = false;

	rings->held_timestamp = 0;
	for (i = 0; i < rings->count; i++) {
		struct ring *ring = &rings->rings[i];

		ring->end = __atomic_load_n((const __u64 *)ring->producer, __ATOMIC_ACQUIRE);
		if (ring_peek(rings, ring))
			rings->heap[waiting++] = i;
	}
	for (i = waiting / 2; i-- > 0;)
		heap_sink(rings, i, waiting);

	while (waiting && !full) {
		struct ring *ring = &rings->rings[rings->heap[0]];
		bool more = true;

		/* As long as this ring has the oldest record there is no need to look at the others. */
		limit = before_ns;
		for (i = 1; i < 3 && i < waiting; i++)
			if (heap_time(rings, i) < limit)
				limit = heap_time(rings, i);
		if (ring->timestamp > before_ns) {
			rings->held_timestamp = ring->timestamp;
			break;
		}
		do {
			size_t padded = ((size_t)ring->length + 7) & ~(size_t)7;

			if (batch->count == batch->capacity || batch->used + padded > batch->data_size) {
				full = true;
				break;
			}
			memcpy(batch->data + batch->used, ring->data + (ring->position & ring->mask) + RING_HEADER,
			       padded);
			batch->offsets[batch->count] = (__u32)batch->used;
			batch->sizes[batch->count] = ring->length;
			if (ring->timestamp >= newest)
				newest = ring->timestamp;
			else
				batch_reorder(rings, batch, ring->timestamp);
			batch->count++;
			batch->used += padded;
			batch->bytes += ring->length;
			ring->position += ring_step(ring->length);
			/* Not at every record: the producer's CPU reads this cache line at each of its reserves. */
			if (ring->position - ring->published > ring->mask / 8)
				ring_publish(ring);
			more = ring_peek(rings, ring);
		} while (more && ring->timestamp <= limit);
		if (!more)
			rings->heap[0] = rings->heap[--waiting];
		heap_sink(rings, 0, waiting);
	}
	for (i = 0; i < rings->count; i++)
		ring_publish(&rings->rings[i]);
	rings->last_timestamp = newest;
}

/* Take what was kept of the rings, or else what is in them, see rings_take(). Returns the number of records. */
static int ptrace_rings_read(struct ptrace_rings *rings, __u64 before_ns, __u8 *data, size_t data_size,
			     __u32 *offsets, __u32 *sizes, __u32 capacity)
{
	struct batch batch = {
		.data = data,
		.data_size = data_size,
		.offsets = offsets,
		.sizes = sizes,
		.capacity = capacity,
	};

	pthread_mutex_lock(&rings->lock);
	if (!backlog_give(rings->backlog, &batch))
		rings_take(rings, before_ns, &batch);
	pthread_mutex_unlock(&rings->lock);
	rings->records += batch.count;
	rings->bytes += batch.bytes;
	rings->used = batch.used;
	return (int)batch.count;
}

#endif
