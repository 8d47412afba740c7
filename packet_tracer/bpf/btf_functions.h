/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Which functions of a BTF blob take or return which structs. A kernel has 150,000 types, so they are walked here and
 * not in Python. Nothing in the blob is trusted: each offset and type id is checked, each chain of types has an end.
 * A part of shim.c. Format: Documentation/bpf/btf.rst, include/uapi/linux/btf.h.
 */
#ifndef PTRACE_BTF_FUNCTIONS_H
#define PTRACE_BTF_FUNCTIONS_H

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <linux/btf.h>

/* What a BPF trampoline takes: MAX_BPF_FUNC_ARGS in include/linux/bpf.h, btf_distill_func_proto in kernel/bpf/btf.c */
#define TRAMPOLINE_PARAMETERS 12
#define TRAMPOLINE_SLOT_BYTES 8
#define TRAMPOLINE_VALUE_BYTES 16
/* Longer chains of references there are not; a circle would be one without an end. */
#define TYPES_CHAIN 64

/* The types of a blob: the kernel's, or a module's on top of the kernel's. It borrows the blob's memory. */
struct ptrace_types {
	const struct ptrace_types *base;
	const __u32 *words; /* the type section */
	const char *strings;
	__u32 strings_size;
	/* Ids and offsets go on where the base's end; id 0 is void. */
	__u32 first_id, end_id;
	__u32 first_string, end_string;
	__u32 *starts;		/* where each type begins, in words */
	__u32 bad_id, bad_kind; /* what ptrace_types_read did not know */
};

/* A function that has to do with one of the structs asked for. Structs are told by their place among these. */
struct ptrace_function {
	__u32 id;
	__u32 name;	  /* its offset among the strings */
	__u32 prototypes; /* functions of this name in the blob */
	__s32 returned;	  /* the struct whose address it returns, or -1 */
	__u32 trampoline; /* whether a BPF trampoline takes its prototype */
	__u32 parameters; /* how many lead to one of the structs */
};

struct ptrace_parameter {
	__u32 slot; /* of the registers that carry arguments */
	__u32 structure;
	__u32 pointers; /* 1 for "struct *", 2 for "struct **" */
};

/* Words that follow a type's three, and that each of its elements takes; -1 for a kind that there is not. */
static int types_words(__u32 info)
{
	__u32 count = BTF_INFO_VLEN(info);

	switch (BTF_INFO_KIND(info)) {
	case BTF_KIND_INT:
	case BTF_KIND_VAR:
	case BTF_KIND_DECL_TAG:
		return 1;
	case BTF_KIND_ARRAY:
		return 3;
	case BTF_KIND_STRUCT:
	case BTF_KIND_UNION:
	case BTF_KIND_DATASEC:
	case BTF_KIND_ENUM64:
		return 3 * count;
	case BTF_KIND_ENUM:
	case BTF_KIND_FUNC_PROTO:
		return 2 * count;
	case BTF_KIND_PTR:
	case BTF_KIND_FWD:
	case BTF_KIND_TYPEDEF:
	case BTF_KIND_VOLATILE:
	case BTF_KIND_CONST:
	case BTF_KIND_RESTRICT:
	case BTF_KIND_FUNC:
	case BTF_KIND_FLOAT:
	case BTF_KIND_TYPE_TAG:
		return 0;
	default:
		return -1;
	}
}

/*
 * Notes where each type begins. "types" is all zero but for its base; ptrace_types_free it, whatever is returned:
 * 0, -EINVAL for what is not BTF of this byte order, -EBADMSG for what is cut off, -ENOTSUP for a kind not known.
 */
static int ptrace_types_read(struct ptrace_types *types, const void *data, size_t size)
{
	const struct btf_header *header = data;
	size_t at, end, section, text;
	__u32 id;

	if (size < sizeof(*header) || (uintptr_t)data % 4 || header->magic != BTF_MAGIC)
		return -EINVAL;
	section = (size_t)header->hdr_len + header->type_off;
	text = (size_t)header->hdr_len + header->str_off;
	if (section % 4 || section + header->type_len > size || text + header->str_len > size)
		return -EBADMSG;
	types->words = (const __u32 *)((const char *)data + section);
	types->strings = (const char *)data + text;
	types->strings_size = header->str_len;
	if (header->str_len && types->strings[header->str_len - 1])
		return -EBADMSG;
	types->first_id = types->base ? types->base->end_id : 1;
	types->first_string = types->base ? types->base->end_string : 0;
	types->end_id = types->first_id;
	types->end_string = types->first_string + types->strings_size;
	if (types->end_string < types->first_string)
		return -EBADMSG;
	end = header->type_len / 4;
	types->starts = malloc((end / 3 + 1) * sizeof(*types->starts));
	if (!types->starts)
		return -ENOMEM;
	for (at = 0, id = types->first_id; at < end; id++) {
		int more;

		if (at + 3 > end)
			return -EBADMSG;
		more = types_words(types->words[at + 1]);
		if (more < 0) {
			types->bad_id = id;
			types->bad_kind = BTF_INFO_KIND(types->words[at + 1]);
			return -ENOTSUP;
		}
		types->starts[id - types->first_id] = at;
		at += 3 + (size_t)more;
		if (at > end)
			return -EBADMSG;
		types->end_id = id + 1;
	}
	return 0;
}

static void ptrace_types_free(struct ptrace_types *types)
{
	free(types->starts);
	types->starts = NULL;
}

/* A type's words: name, info, then what it refers to or its size. NULL for void and for what there is not. */
static const __u32 *ptrace_types_at(const struct ptrace_types *types, __u32 id)
{
	while (types && id < types->first_id)
		types = types->base;
	return types && id < types->end_id ? types->words + types->starts[id - types->first_id] : NULL;
}

/* A name; "" for what is none. */
static const char *ptrace_types_name(const struct ptrace_types *types, __u32 offset)
{
	while (types && offset < types->first_string)
		types = types->base;
	return types && offset < types->end_string ? types->strings + (offset - types->first_string) : "";
}

static bool types_is_modifier(__u32 kind)
{
	return kind == BTF_KIND_TYPEDEF || kind == BTF_KIND_VOLATILE || kind == BTF_KIND_CONST ||
	       kind == BTF_KIND_RESTRICT || kind == BTF_KIND_TYPE_TAG;
}

/* Which of the structs (names one behind the other, count of them) a type points to, and by how many pointers; -1. */
static int types_lead(const struct ptrace_types *types, __u32 id, const char *structs, __u32 count,
		      __u32 *pointers)
{
	const __u32 *type = ptrace_types_at(types, id);
	int steps;

	*pointers = 0;
	for (steps = 0; type && steps < TYPES_CHAIN; steps++, type = ptrace_types_at(types, type[2])) {
		__u32 kind = BTF_INFO_KIND(type[1]), i;

		if (kind == BTF_KIND_STRUCT || kind == BTF_KIND_FWD) {
			const char *name = ptrace_types_name(types, type[0]);

			for (i = 0; *pointers && i < count; i++, structs += strlen(structs) + 1)
				if (!strcmp(name, structs))
					return (int)i;
			return -1;
		}
		if (kind == BTF_KIND_PTR ? ++*pointers > 2 : !types_is_modifier(kind))
			return -1;
	}
	return -1;
}

/* The type behind typedefs and qualifiers. */
static const __u32 *types_behind(const struct ptrace_types *types, __u32 id)
{
	const __u32 *type = ptrace_types_at(types, id);
	int steps;

	for (steps = 0; type && types_is_modifier(BTF_INFO_KIND(type[1])); steps++)
		type = steps < TYPES_CHAIN ? ptrace_types_at(types, type[2]) : NULL;
	return type;
}

/* The size of a value of a type as far as parameters need it: 0 for what has none. */
static __u32 types_size(const struct ptrace_types *types, __u32 id)
{
	const __u32 *type = types_behind(types, id);

	if (!type)
		return 0;
	switch (BTF_INFO_KIND(type[1])) {
	case BTF_KIND_PTR:
	case BTF_KIND_ARRAY:
	case BTF_KIND_FUNC_PROTO:
		return TRAMPOLINE_SLOT_BYTES;
	default:
		return type[2];
	}
}

/* Looks at a prototype, and notes those of its parameters that lead to one of the structs as far as there is room. */
static void types_signature(const struct ptrace_types *types, const __u32 *prototype, const char *structs,
			    __u32 count, struct ptrace_function *function, struct ptrace_parameter *parameters,
			    __u32 room)
{
	const __u32 *returned = types_behind(types, prototype[2]);
	__u32 total = BTF_INFO_VLEN(prototype[1]), slot = 0, pointers, i;

	function->returned = types_lead(types, prototype[2], structs, count, &pointers);
	if (pointers != 1)
		function->returned = -1;
	function->parameters = 0;
	function->trampoline = total <= TRAMPOLINE_PARAMETERS;
	if (returned &&
	    (BTF_INFO_KIND(returned[1]) == BTF_KIND_STRUCT || BTF_INFO_KIND(returned[1]) == BTF_KIND_UNION))
		function->trampoline = false;
	for (i = 0; i < total; i++) {
		__u32 type = prototype[3 + 2 * i + 1], size = types_size(types, type);
		int found = types_lead(types, type, structs, count, &pointers);

		if (found >= 0) {
			if (function->parameters < room)
				parameters[function->parameters] =
					(struct ptrace_parameter){slot, (__u32)found, pointers};
			function->parameters++;
		}
		if (!size || size > TRAMPOLINE_VALUE_BYTES) {
			/* Variable arguments, or a struct in memory: where the rest goes differs by architecture. */
			function->trampoline = false;
			break;
		}
		slot += (size + TRAMPOLINE_SLOT_BYTES - 1) / TRAMPOLINE_SLOT_BYTES;
	}
}

/*
 * Fills in the functions that take or return a pointer to one of "count" structs, whose names follow each other with
 * a zero behind each, and their parameters one after the other. Returns how many functions there are, which may be
 * more than there was room for, and sets *parameters_used likewise; or -ENOMEM.
 */
static int ptrace_types_functions(const struct ptrace_types *types, const char *structs, __u32 count,
				  struct ptrace_function *functions, __u32 functions_room,
				  struct ptrace_parameter *parameters, __u32 parameters_room,
				  __u32 *parameters_used)
{
	__u32 *namesakes = calloc((size_t)types->end_string + 1, sizeof(*namesakes));
	__u32 id, i, room, used = 0, found = 0;

	if (!namesakes)
		return -ENOMEM;
	for (id = types->first_id; id < types->end_id; id++) {
		const __u32 *type = ptrace_types_at(types, id), *prototype;
		struct ptrace_function function = {.id = id, .name = type[0]};

		if (BTF_INFO_KIND(type[1]) != BTF_KIND_FUNC)
			continue;
		if (type[0] < types->end_string)
			namesakes[type[0]]++;
		prototype = ptrace_types_at(types, type[2]);
		if (!prototype || BTF_INFO_KIND(prototype[1]) != BTF_KIND_FUNC_PROTO)
			continue;
		room = used < parameters_room ? parameters_room - used : 0;
		types_signature(types, prototype, structs, count, &function, room ? parameters + used : NULL,
				room);
		if (!function.parameters && function.returned < 0)
			continue;
		if (found < functions_room)
			functions[found] = function;
		used += function.parameters;
		found++;
	}
	for (i = 0; i < found && i < functions_room; i++)
		if (functions[i].name < types->end_string)
			functions[i].prototypes = namesakes[functions[i].name];
	free(namesakes);
	*parameters_used = used;
	return (int)found;
}

#endif
