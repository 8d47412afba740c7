/* SPDX-License-Identifier: GPL-2.0-only */
/* Where the bytes of an skb's pages lie. */
#ifndef PTRACE_PAGES_BPF_H
#define PTRACE_PAGES_BPF_H

#include "maps.bpf.h"
#include "read.bpf.h"

/* sizeof(skb_frag_t), which is a bio_vec before v6.10. */
#define SKB_FRAG_BYTES 16

/* Reads where a page of a packet lies. Returns its length, -1 where it is no memory that can be read. */
static __always_inline long locate_page(struct skb_frag *frag, __u64 *address)
{
	struct bio_vec *old = (void *)frag;
	__u64 page, offset;
	__u32 length;

	if (bpf_core_field_exists(frag->netmem)) {
		page = BPF_CORE_READ(frag, netmem);
		offset = BPF_CORE_READ(frag, offset);
		length = BPF_CORE_READ(frag, len);
	} else {
		page = (__u64)BPF_CORE_READ(old, bv_page);
		offset = BPF_CORE_READ(old, bv_offset);
		length = BPF_CORE_READ(old, bv_len);
	}
	if (page & 1) /* net_iov: the memory of a device (8ab79ed50cf1, v6.8) */
		return -1;
	*address = offset + config_page_base + (page / config_page_struct_bytes << config_page_shift);
	return length;
}

#endif
