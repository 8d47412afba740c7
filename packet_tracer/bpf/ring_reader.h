/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Reads several ring buffers as one, merged by time: a consumer of our own, because libbpf's calls back for every
 * record and knows nothing of other rings. A part of shim.c.
 */
#ifndef PTRACE_RING_READER_H
#define PTRACE_RING_READER_H

#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/timerfd.h>
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
	__u32 full; /* the last read stopped for want of room */
	__u64 used; /* bytes of data that the last read filled */
	__u32 count;
	__u32 timestamp_offset;
	__u32 max_record;
	int epoll_fd;
	int timer_fd;
	size_t page_size;
	__u32 *heap; /* indices of rings that have a record, the oldest record first */
	struct ring *rings;
};

static void ptrace_rings_free(struct ptrace_rings *rings)
{
	__u32 i;

	if (!rings)
		return;
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

static int ptrace_rings_fileno(const struct ptrace_rings *rings)
{
	return rings->epoll_fd;
}

/*
 * Make the descriptor readable after delay_ns, and every 100 ms from then on: for records that were written
 * without waking anybody, when somebody else's loop does the waiting.
 */
static int ptrace_rings_announce(struct ptrace_rings *rings, __u64 delay_ns)
{
	struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.u32 = rings->count};
	struct itimerspec timer = {
		.it_value = {(time_t)(delay_ns / 1000000000), (long)(delay_ns % 1000000000)},
		.it_interval = {0, 100000000},
	};

	if (rings->timer_fd < 0) {
		rings->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
		if (rings->timer_fd < 0)
			return -errno;
		if (epoll_ctl(rings->epoll_fd, EPOLL_CTL_ADD, rings->timer_fd, &event))
			return -errno;
	}
	return timerfd_settime(rings->timer_fd, 0, &timer, NULL) ? -errno : 0;
}

static int rings_wait(struct ptrace_rings *rings, int timeout_ms, const sigset_t *signals_blocked)
{
	struct epoll_event events[64];
	int ready = epoll_pwait(rings->epoll_fd, events, 64, timeout_ms, signals_blocked), i;
	__u64 expired;

	if (ready < 0)
		return -errno;
	for (i = 0; i < ready; i++) {
		/* The kernel starts a periodic timer's next round only when this one is read (timerfd_read()). */
		if (events[i].data.u32 == rings->count && read(rings->timer_fd, &expired, sizeof(expired)) < 0)
			continue; /* somebody set it anew in the meantime */
	}
	return ready;
}

static int ptrace_rings_wait(struct ptrace_rings *rings, int timeout_ms)
{
	return rings_wait(rings, timeout_ms, NULL);
}

static int ptrace_rings_pending(const struct ptrace_rings *rings)
{
	__u32 i;

	for (i = 0; i < rings->count; i++) {
		const struct ring *ring = &rings->rings[i];

		if (__atomic_load_n((const __u64 *)ring->producer, __ATOMIC_RELAXED) != ring->position)
			return 1;
	}
	return 0;
}

/*
 * Wait for records: those that are announced, and every look_ms also those that are not. Returns 0 after timeout_ms, -EINTR
 * for a signal: none comes between two looks, where it would not be noticed before the end. Here and not in Python, whose
 * turn each look would be: that was most of what an idle capture cost.
 */
static int ptrace_rings_watch(struct ptrace_rings *rings, int look_ms, int timeout_ms)
{
	sigset_t all, before;
	int ready, slice;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	do {
		slice = look_ms < timeout_ms ? look_ms : timeout_ms;
		ready = rings_wait(rings, slice, &before);
		timeout_ms -= slice;
	} while (!ready && timeout_ms > 0 && !ptrace_rings_pending(rings));
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return ready;
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
static void batch_reorder(struct ptrace_rings *rings, const __u8 *data, __u32 *offsets, __u32 *sizes, __u32 last,
			  __u64 timestamp)
{
	__u32 offset = offsets[last], size = sizes[last], steps = 0;
	__u64 before = 0;

	for (; last > 0 && steps < RING_INVERSIONS_MAX; last--, steps++) {
		memcpy(&before, data + offsets[last - 1] + rings->timestamp_offset, 8);
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
 * Take records not newer than before_ns from all rings, oldest first, until none is left or data, offsets and sizes
 * are full. Returns their number. One copy a record.
 */
static int ptrace_rings_read(struct ptrace_rings *rings, __u64 before_ns, __u8 *data, size_t data_size,
			     __u32 *offsets, __u32 *sizes, __u32 capacity)
{
	__u64 newest = rings->last_timestamp, limit;
	__u32 taken = 0, waiting = 0, i;
	size_t used = 0;

	rings->held_timestamp = 0;
	rings->full = 0;
	for (i = 0; i < rings->count; i++) {
		struct ring *ring = &rings->rings[i];

		ring->end = __atomic_load_n((const __u64 *)ring->producer, __ATOMIC_ACQUIRE);
		if (ring_peek(rings, ring))
			rings->heap[waiting++] = i;
	}
	for (i = waiting / 2; i-- > 0;)
		heap_sink(rings, i, waiting);

	while (waiting && !rings->full) {
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

			if (taken == capacity || used + padded > data_size) {
				rings->full = 1;
				break;
			}
			memcpy(data + used, ring->data + (ring->position & ring->mask) + RING_HEADER, padded);
			offsets[taken] = (__u32)used;
			sizes[taken] = ring->length;
			if (ring->timestamp >= newest)
				newest = ring->timestamp;
			else
				batch_reorder(rings, data, offsets, sizes, taken, ring->timestamp);
			taken++;
			used += padded;
			rings->bytes += ring->length;
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
	rings->records += taken;
	rings->used = used;
	return (int)taken;
}

#endif
