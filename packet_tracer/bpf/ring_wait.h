/* SPDX-License-Identifier: GPL-2.0-only */
/* Waiting for records: those that are announced, and those that are not. A part of shim.c. */
#ifndef PTRACE_RING_WAIT_H
#define PTRACE_RING_WAIT_H

#include <signal.h>
#include <sys/timerfd.h>

#include "ring_backlog.h"

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

static int ptrace_rings_pending(struct ptrace_rings *rings)
{
	int pending;
	__u32 i;

	pthread_mutex_lock(&rings->lock);
	pending = backlog_has(rings->backlog);
	for (i = 0; i < rings->count && !pending; i++) {
		const struct ring *ring = &rings->rings[i];

		pending = __atomic_load_n((const __u64 *)ring->producer, __ATOMIC_RELAXED) != ring->position;
	}
	pthread_mutex_unlock(&rings->lock);
	return pending;
}

static void rings_waited_for(struct ptrace_rings *rings, bool waited_for)
{
	pthread_mutex_lock(&rings->lock);
	rings->waited_for = waited_for;
	pthread_mutex_unlock(&rings->lock);
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
	rings_waited_for(rings, true);
	do {
		slice = look_ms < timeout_ms ? look_ms : timeout_ms;
		ready = rings_wait(rings, slice, &before);
		timeout_ms -= slice;
	} while (!ready && timeout_ms > 0 && !ptrace_rings_pending(rings));
	rings_waited_for(rings, false);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return ready;
}

#endif
