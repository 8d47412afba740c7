/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What Python cannot do through libbpf alone, and nothing else: keep libbpf's messages off stderr, walk
 * BTF in one pass, collect perf samples, and read ring buffers without running Python for each record.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <linux/perf_event.h>

#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>

/* --- libbpf's messages: the last few of this thread, to go into an exception ---------------------- */

#define LOG_SIZE 4096

static __thread char log_text[LOG_SIZE];
static __thread size_t log_used;

static int log_print(enum libbpf_print_level level, const char *format, va_list arguments)
{
	char message[1024];
	size_t size;
	int printed;

	if (level == LIBBPF_DEBUG)
		return 0;
	printed = vsnprintf(message, sizeof(message), format, arguments);
	if (printed < 0)
		return 0;
	size = (size_t)printed < sizeof(message) ? (size_t)printed : sizeof(message) - 1;
	if (log_used + size >= LOG_SIZE) {
		/* Newest messages name the cause; forget the older half. */
		size_t kept = log_used < LOG_SIZE / 2 ? log_used : LOG_SIZE / 2;

		memmove(log_text, log_text + log_used - kept, kept);
		log_used = kept;
	}
	memcpy(log_text + log_used, message, size);
	log_used += size;
	log_text[log_used] = 0;
	return 0;
}

static void ptrace_log_install(void)
{
	libbpf_set_print(log_print);
}

static void ptrace_log_clear(void)
{
	log_used = 0;
	log_text[0] = 0;
}

static const char *ptrace_log_text(void)
{
	return log_text;
}

/* --- BTF: every type of one kind, in one pass -------------------------------------------------------- */

struct ptrace_btf_entry {
	__u32 id;
	__u32 type;	 /* of a function: its prototype; else what the type refers to, or its size */
	__u32 count;	 /* of a function: parameters; else members or values */
	__s32 argument;	 /* first parameter that points to the struct asked for; -1: none */
	__u32 traceable; /* a function a BPF trampoline can serve, by its prototype */
};

static const struct btf_type *btf_skip(const struct btf *btf, __u32 id)
{
	const struct btf_type *type = btf__type_by_id(btf, id);

	while (type && (btf_is_mod(type) || btf_is_typedef(type)))
		type = btf__type_by_id(btf, type->type);
	return type;
}

static bool btf_points_to(const struct btf *btf, __u32 id, const char *name)
{
	const struct btf_type *type = btf_skip(btf, id);

	if (!type || !btf_is_ptr(type))
		return false;
	type = btf_skip(btf, type->type);
	return type && btf_is_struct(type) && !strcmp(btf__name_by_offset(btf, type->name_off), name);
}

/* The rules of the kernel's btf_distill_func_proto (kernel/bpf/btf.c), as they are since Linux 6.1. */
static bool btf_traceable(const struct btf *btf, const struct btf_type *prototype)
{
	const struct btf_param *parameters = btf_params(prototype);
	const struct btf_type *type;
	__u32 i, count = btf_vlen(prototype);

	if (count > 12)
		return false;
	if (prototype->type) {
		type = btf_skip(btf, prototype->type);
		if (!type || !(btf_is_int(type) || btf_is_ptr(type) || btf_is_any_enum(type)))
			return false;
	}
	for (i = 0; i < count; i++) {
		if (!parameters[i].type)
			return false; /* varargs */
		type = btf_skip(btf, parameters[i].type);
		if (!type)
			return false;
		if (btf_is_composite(type) ? type->size > 16
					   : !(btf_is_int(type) || btf_is_ptr(type) || btf_is_any_enum(type)))
			return false;
	}
	return true;
}

/* With entries NULL it measures: returns the number of entries and sets *names_size. */
static int ptrace_btf_index(const struct btf *btf, __u32 first, __u32 kind, const char *argument,
			    struct ptrace_btf_entry *entries, char *names, size_t *names_size)
{
	__u32 id, end = btf__type_cnt(btf);
	size_t used = 0;
	int found = 0;

	for (id = first; id < end; id++) {
		const struct btf_type *type = btf__type_by_id(btf, id), *prototype;
		const char *name;
		size_t size;

		if (btf_kind(type) != kind)
			continue;
		name = btf__name_by_offset(btf, type->name_off);
		size = strlen(name);
		if (entries) {
			struct ptrace_btf_entry *entry = &entries[found];

			if (used + size + 1 > *names_size)
				return -ENOSPC;
			memcpy(names + used, name, size);
			names[used + size] = '\n';
			*entry = (struct ptrace_btf_entry){ id, type->type, btf_vlen(type), -1, 0 };
			prototype = kind == BTF_KIND_FUNC ? btf__type_by_id(btf, type->type) : NULL;
			if (prototype && btf_is_func_proto(prototype)) {
				__u32 i;

				entry->count = btf_vlen(prototype);
				entry->traceable = btf_traceable(btf, prototype);
				for (i = 0; argument && i < entry->count && entry->argument < 0; i++)
					if (btf_points_to(btf, btf_params(prototype)[i].type, argument))
						entry->argument = (__s32)i;
			}
		}
		used += size + 1;
		found++;
	}
	*names_size = used;
	return found;
}

/* --- a perf event to hang a program on: a kprobe by name or address, or a tracepoint by number ------------- */

static int ptrace_perf_event_open(__u32 type, __u64 config, const char *function, __u64 address)
{
	struct perf_event_attr attributes = {
		.type = type,
		.size = sizeof(attributes),
		.config = config,
		.sample_period = 1,
		.wakeup_events = 1,
		.kprobe_func = (__u64)(uintptr_t)function,
		.kprobe_addr = address,
	};
	int fd = (int)syscall(SYS_perf_event_open, &attributes, -1, 0, -1, PERF_FLAG_FD_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

/* --- perf buffers: samples of one poll, each as { u32 cpu, u32 size, bytes padded to 8 } ---------------- */

struct ptrace_perf {
	struct perf_buffer *buffer;
	char *data;
	size_t used;
	size_t size;
	__u64 lost;
	__u64 truncated; /* samples that did not fit into memory */
};

static void perf_sample(void *context, int cpu, void *data, __u32 size)
{
	struct ptrace_perf *perf = context;
	size_t padded = 8 + (((size_t)size + 7) & ~(size_t)7);
	__u32 head[2] = { (__u32)cpu, size };

	if (perf->used + padded > perf->size) {
		size_t grown = (perf->used + padded) * 2;
		char *larger = realloc(perf->data, grown);

		if (!larger) {
			perf->truncated++;
			return;
		}
		perf->data = larger;
		perf->size = grown;
	}
	memcpy(perf->data + perf->used, head, sizeof(head));
	memcpy(perf->data + perf->used + 8, data, size);
	perf->used += padded;
}

static void perf_lost(void *context, int cpu, __u64 count)
{
	struct ptrace_perf *perf = context;

	(void)cpu;
	perf->lost += count;
}

static void ptrace_perf_free(struct ptrace_perf *perf)
{
	if (!perf)
		return;
	perf_buffer__free(perf->buffer);
	free(perf->data);
	free(perf);
}

static struct ptrace_perf *ptrace_perf_new(int map_fd, size_t pages)
{
	struct ptrace_perf *perf = calloc(1, sizeof(*perf));
	int error;

	if (!perf)
		return NULL;
	perf->buffer = perf_buffer__new(map_fd, pages, perf_sample, perf_lost, perf, NULL);
	if (!perf->buffer) {
		error = errno;
		ptrace_perf_free(perf);
		errno = error;
		return NULL;
	}
	return perf;
}

static int ptrace_perf_fileno(const struct ptrace_perf *perf)
{
	return perf_buffer__epoll_fd(perf->buffer);
}

/* Forgets the samples of the poll before. */
static int ptrace_perf_poll(struct ptrace_perf *perf, int timeout_ms)
{
	perf->used = 0;
	return perf_buffer__poll(perf->buffer, timeout_ms);
}

/* --- ring buffers: several, merged by time ------------------------------------------------------------------ */

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
	__u32 full;	      /* the last read stopped for want of room */
	__u64 used;	      /* bytes of data that the last read filled */
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
	struct epoll_event event = { .events = EPOLLIN | EPOLLET, .data.u32 = index };
	struct ring *ring = &rings->rings[index];
	void *pages;

	ring->mask = size - 1;
	pages = mmap(NULL, rings->page_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (pages == MAP_FAILED)
		return -errno;
	ring->consumer = pages;
	pages = mmap(NULL, rings->page_size + 2 * (size_t)size, PROT_READ, MAP_SHARED, fd, (off_t)rings->page_size);
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
	struct epoll_event event = { .events = EPOLLIN | EPOLLET, .data.u32 = rings->count };
	struct itimerspec timer = {
		.it_value = { (time_t)(delay_ns / 1000000000), (long)(delay_ns % 1000000000) },
		.it_interval = { 0, 100000000 },
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

static int ptrace_rings_wait(struct ptrace_rings *rings, int timeout_ms)
{
	struct epoll_event events[64];
	int ready = epoll_wait(rings->epoll_fd, events, 64, timeout_ms);

	return ready < 0 ? -errno : ready;
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
static int ptrace_rings_read(struct ptrace_rings *rings, __u64 before_ns, __u8 *data, size_t data_size, __u32 *offsets,
			     __u32 *sizes, __u32 capacity)
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
