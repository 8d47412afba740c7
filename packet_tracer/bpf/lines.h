/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Reads a kernel's table of symbols, and looks a few thousand keys up among its hundred thousand lines. A part of shim.c.
 */
#ifndef PTRACE_LINES_H
#define PTRACE_LINES_H

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct ptrace_text {
	char *data; /* to be freed */
	size_t size;
};

/* Reads all of a file that does not tell its size. Returns 0, or a negative errno. */
static int ptrace_text_read(const char *path, struct ptrace_text *text)
{
	size_t room = 0;
	ssize_t got = -1;
	int fd = open(path, O_RDONLY | O_CLOEXEC), error;

	*text = (struct ptrace_text){NULL, 0};
	while (fd >= 0 && got) {
		if (text->size == room) {
			char *larger = realloc(text->data, room = room ? 2 * room : 1 << 20);

			if (!larger) {
				errno = ENOMEM;
				break;
			}
			text->data = larger;
		}
		got = read(fd, text->data + text->size, room - text->size);
		if (got < 0 && errno != EINTR)
			break;
		text->size += got > 0 ? (size_t)got : 0;
	}
	error = got ? -errno : 0;
	if (fd >= 0)
		close(fd);
	return error;
}

static void ptrace_text_free(struct ptrace_text *text)
{
	free(text->data);
}

struct ptrace_hit {
	__u32 key;  /* its place among the keys */
	__u32 line; /* where the line begins in the text */
};

static __u32 lines_hash(const char *text, size_t size)
{
	__u32 hash = 2166136261u; /* FNV-1a */
	size_t i;

	for (i = 0; i < size; i++)
		hash = (hash ^ (unsigned char)text[i]) * 16777619u;
	return hash;
}

/* The end of the line that begins here: its newline, or the end of the text. */
static const char *lines_end(const char *begin, const char *end)
{
	const char *found = memchr(begin, '\n', (size_t)(end - begin));

	return found ? found : end;
}

/*
 * Notes each line that is one of the keys from its byte "skip" on. Each key ends in a newline. Returns the number of
 * such lines, which may be more than there was room for; or -ENOMEM.
 */
static int ptrace_lines_find(const char *text, size_t text_size, __u32 skip, const char *keys, size_t keys_size,
			     struct ptrace_hit *hits, __u32 room)
{
	const char *at, *stop, *end = keys + keys_size;
	struct slot {
		const char *key; /* NULL: the slot is free */
		__u32 size, place, hash;
	} * slots;
	__u32 count = 0, mask = 1, found = 0, place, hash, i;

	for (at = keys; at < end; at = lines_end(at, end) + 1)
		count++;
	while (mask < 2 * count)
		mask = mask << 1 | 1;
	slots = calloc((size_t)mask + 1, sizeof(*slots));
	if (!slots)
		return -ENOMEM;
	for (at = keys, place = 0; at < end; at = stop + 1, place++) {
		stop = lines_end(at, end);
		hash = lines_hash(at, (size_t)(stop - at));
		for (i = hash & mask; slots[i].key; i = (i + 1) & mask)
			;
		slots[i] = (struct slot){at, (__u32)(stop - at), place, hash};
	}
	end = text + text_size;
	for (at = text; at < end; at = stop + 1) {
		size_t size;

		stop = lines_end(at, end);
		if ((size_t)(stop - at) < skip)
			continue;
		size = (size_t)(stop - at) - skip;
		hash = lines_hash(at + skip, size);
		for (i = hash & mask; slots[i].key; i = (i + 1) & mask)
			if (slots[i].hash == hash && slots[i].size == size &&
			    !memcmp(slots[i].key, at + skip, size)) {
				if (found < room)
					hits[found] = (struct ptrace_hit){slots[i].place, (__u32)(at - text)};
				found++;
				break;
			}
	}
	free(slots);
	return (int)found;
}

#endif
