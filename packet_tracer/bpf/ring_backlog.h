/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What rings have no room for while nobody reads: a thread takes it out of them before they are full, and readers have it from
 * here. The kernel's memory for rings is there from the start; this comes and goes as it is needed. A part of shim.c.
 */
#ifndef PTRACE_RING_BACKLOG_H
#define PTRACE_RING_BACKLOG_H

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <time.h>

#include "ring_reader.h"

/* How long to wait where there is no room for more. */
#define BACKLOG_PAUSE_MS 5

/* A batch in memory of its own: its data, then offsets and sizes. Pages that it does not fill never come into being. */
struct block {
	struct block *next;
	struct batch batch;
};

struct backlog {
	struct ptrace_rings *rings;
	pthread_t thread;
	pid_t process; /* that the thread is of; 0: there is none */
	int epoll_fd;
	int stop_fd;
	__u64 window_ns;
	size_t data_size; /* of a block, as of the batches that readers have room for */
	__u32 capacity;
	size_t limit;
	size_t held;
	struct block *first;
	struct block *last;
};

static size_t block_size(const struct backlog *backlog)
{
	return backlog->data_size + 2 * sizeof(__u32) * (size_t)backlog->capacity;
}

static void block_free(const struct backlog *backlog, struct block *block)
{
	munmap(block->batch.data, block_size(backlog));
	free(block);
}

static struct block *block_new(const struct backlog *backlog)
{
	struct block *block = calloc(1, sizeof(*block));
	size_t size = block_size(backlog);
	void *memory;

	if (!block)
		return NULL;
	memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (memory == MAP_FAILED) {
		free(block);
		return NULL;
	}
	madvise(memory, size, MADV_NOHUGEPAGE); /* or a few records would take megabytes */
	block->batch.data = memory;
	block->batch.data_size = backlog->data_size;
	block->batch.offsets = (__u32 *)(block->batch.data + backlog->data_size);
	block->batch.sizes = block->batch.offsets + backlog->capacity;
	block->batch.capacity = backlog->capacity;
	return block;
}

static __u64 monotonic_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (__u64)now.tv_sec * 1000000000 + (__u64)now.tv_nsec;
}

/* Memory that a block has come to use. */
static size_t block_held(const struct backlog *backlog, const struct block *block)
{
	return block->batch.used + 2 * sizeof(__u32) * block->batch.count + 3 * backlog->rings->page_size;
}

/* The block to fill: the last one while it has room for any record, or a new one, which is not among the others yet. */
static struct block *block_to_fill(const struct backlog *backlog)
{
	struct block *last = backlog->last;

	if (last && last->batch.count < last->batch.capacity &&
	    last->batch.used + backlog->rings->max_record + 8 <= last->batch.data_size)
		return last;
	return block_new(backlog);
}

/* Take what lies in the rings, unless somebody waits for it. Returns false if there is no room for it. The lock is held. */
static bool backlog_keep(struct backlog *backlog)
{
	__u64 before = backlog->window_ns ? monotonic_ns() - backlog->window_ns : ~(__u64)0;
	struct block *last = backlog->last, *block;

	if (backlog->rings->waited_for)
		return true;
	if (backlog->held >= backlog->limit)
		return false;
	block = block_to_fill(backlog);
	if (!block)
		return false;
	if (block == last)
		backlog->held -= block_held(backlog, block);
	rings_take(backlog->rings, before, &block->batch);
	if (!block->batch.count) {
		block_free(backlog, block);
		return true;
	}
	backlog->held += block_held(backlog, block);
	if (!last)
		backlog->first = block;
	else if (block != last)
		last->next = block;
	backlog->last = block;
	return true;
}

static void *backlog_run(void *argument)
{
	struct backlog *backlog = argument;
	struct epoll_event events[64];
	bool room;
	int ready, i;

	for (;;) {
		ready = epoll_wait(backlog->epoll_fd, events, 64, -1);
		for (i = 0; i < ready; i++)
			if (events[i].data.fd == backlog->stop_fd)
				return NULL;
		pthread_mutex_lock(&backlog->rings->lock);
		room = backlog_keep(backlog);
		pthread_mutex_unlock(&backlog->rings->lock);
		if (!room) /* above the level that wakes, each record wakes */
			poll(&(struct pollfd){.fd = backlog->stop_fd, .events = POLLIN}, 1, BACKLOG_PAUSE_MS);
	}
}

static bool backlog_has(const struct backlog *backlog)
{
	return backlog && backlog->first;
}

/* Hand out the oldest of what was kept. Returns false where nothing is. The lock is held. */
static bool backlog_give(struct backlog *backlog, struct batch *batch)
{
	struct block *block;

	if (!backlog_has(backlog))
		return false;
	block = backlog->first;
	memcpy(batch->data, block->batch.data, block->batch.used);
	memcpy(batch->offsets, block->batch.offsets, block->batch.count * sizeof(__u32));
	memcpy(batch->sizes, block->batch.sizes, block->batch.count * sizeof(__u32));
	batch->used = block->batch.used;
	batch->bytes = block->batch.bytes;
	batch->count = block->batch.count;
	backlog->held -= block_held(backlog, block);
	backlog->first = block->next;
	if (!backlog->first)
		backlog->last = NULL;
	block_free(backlog, block);
	return true;
}

static void backlog_free(struct backlog *backlog)
{
	__u64 one = 1;

	if (!backlog)
		return;
	/* A fork has no such thread, and would end its parent's. */
	if (backlog->process == getpid() && write(backlog->stop_fd, &one, sizeof(one)) == sizeof(one))
		pthread_join(backlog->thread, NULL);
	while (backlog->first) {
		struct block *block = backlog->first;

		backlog->first = block->next;
		block_free(backlog, block);
	}
	if (backlog->stop_fd >= 0)
		close(backlog->stop_fd);
	if (backlog->epoll_fd >= 0)
		close(backlog->epoll_fd);
	free(backlog);
}

static int backlog_watch(struct backlog *backlog, int fd)
{
	struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.fd = fd};

	return epoll_ctl(backlog->epoll_fd, EPOLL_CTL_ADD, fd, &event) ? errno : 0;
}

static int backlog_start(struct backlog *backlog, const int *map_fds)
{
	sigset_t all, before;
	int error = 0;
	__u32 i;

	backlog->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	backlog->stop_fd = eventfd(0, EFD_CLOEXEC);
	if (backlog->epoll_fd < 0 || backlog->stop_fd < 0)
		return errno;
	error = backlog_watch(backlog, backlog->stop_fd);
	for (i = 0; i < backlog->rings->count && !error; i++)
		error = backlog_watch(backlog, map_fds[i]);
	if (error)
		return error;
	/* Signals are for the threads that run Python. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(&backlog->thread, NULL, backlog_run, backlog);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (!error)
		backlog->process = getpid();
	return error;
}

/*
 * Keep up to `limit` bytes of what readers don't come to read, in blocks that batches of this room can take. Returns a negative
 * error number where that is impossible.
 */
static int ptrace_rings_keep(struct ptrace_rings *rings, const int *map_fds, size_t limit, __u64 window_ns,
			     size_t data_size, __u32 capacity)
{
	struct backlog *backlog = calloc(1, sizeof(*backlog));
	int error;

	if (!backlog)
		return -ENOMEM;
	backlog->rings = rings;
	backlog->epoll_fd = backlog->stop_fd = -1;
	backlog->limit = limit;
	backlog->window_ns = window_ns;
	backlog->data_size = data_size;
	backlog->capacity = capacity;
	error = backlog_start(backlog, map_fds);
	if (error)
		backlog_free(backlog);
	else
		rings->backlog = backlog;
	return -error;
}

#endif
