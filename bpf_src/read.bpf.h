/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Reading kernel memory. A program whose skb the verifier knows by type (tp_btf, netfilter) dereferences it: a plain load. The
 * others say what a pointer is and do the same, or before bpf_rdonly_cast() go through bpf_probe_read_kernel(), which takes ten
 * times as long. A file of programs defines READ_DIRECT to 1 or 0 before it includes anything of ours.
 */
#ifndef PTRACE_READ_BPF_H
#define PTRACE_READ_BPF_H

#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#ifndef READ_DIRECT
#error "define READ_DIRECT"
#endif

/* Since v6.2 (a35b9af4ec2c); costs nothing at run time. */
extern void *bpf_rdonly_cast(const void *object, __u32 type) __ksym __weak;

/* The pointer as one that may be dereferenced; what is not there reads as 0. */
#define TYPED(pointer) ((typeof(pointer))bpf_rdonly_cast(pointer, bpf_core_type_id_kernel(typeof(*(pointer)))))

#define READ_TYPED(pointer, member) ((pointer)->member)

#if READ_DIRECT
#define READ READ_TYPED
#define READ_BITS(pointer, member) BPF_CORE_READ_BITFIELD(pointer, member)
#else
/* The pointer is evaluated first: an access of our own structs on the way to it is not to be relocated. */
#define READ(pointer, member)                                   \
	({                                                      \
		typeof(pointer) __from = (pointer);             \
		typeof(__from->member) __read;                  \
                                                                \
		if (bpf_ksym_exists(bpf_rdonly_cast))           \
			__read = TYPED(__from)->member;         \
		else                                            \
			__read = BPF_CORE_READ(__from, member); \
		__read;                                         \
	})
#define READ_BITS(pointer, member) BPF_CORE_READ_BITFIELD_PROBED(pointer, member)
#endif

/*
 * A pointer's value. Loaded as what it is, it may be memory to the verifier since 2d5c91e1cc14 (v6.17), with which not all can be
 * done that can be with a number, so it is loaded as one.
 */
#define READ_ADDRESS(pointer, member)                                                              \
	({                                                                                         \
		typeof(pointer) __holder = (pointer);                                              \
		__u64 __address;                                                                   \
                                                                                                   \
		if (bpf_ksym_exists(bpf_rdonly_cast))                                              \
			__address = TYPED((struct timespec64 *)(void *)&__holder->member)->tv_sec; \
		else                                                                               \
			__address = (__u64)READ(__holder, member);                                 \
		__address;                                                                         \
	})

/*
 * The same skb as one the verifier does not trust. To follow a pointer to a struct from a trusted one it looks for two types
 * among all by name, each time and in each state: two thirds of the time a program takes to load.
 */
static __always_inline struct sk_buff *untrusted(struct sk_buff *skb)
{
	if (READ_DIRECT && bpf_ksym_exists(bpf_rdonly_cast))
		return TYPED(skb);
	return skb;
}

static __always_inline struct net_device *device_of(struct sk_buff *skb)
{
	skb = untrusted(skb);
	return READ(skb, dev);
}

static __always_inline struct sock *socket_of(struct sk_buff *skb)
{
	skb = untrusted(skb);
	return READ(skb, sk);
}

/* Returns the namespace of a device or of a socket, NULL if there is neither. */
static __always_inline struct net *net_of(struct net_device *dev, struct sock *sk)
{
	if (dev)
		return READ(dev, nd_net.net);
	if (sk)
		return READ(sk, __sk_common.skc_net.net);
	return 0;
}

static __always_inline __u32 net_inode(struct net *net)
{
	return net ? READ(net, ns.inum) : 0;
}

static __always_inline __u64 net_cookie(struct net *net)
{
	struct net___atomic_cookie *old = (void *)net;

	if (!net)
		return 0;
	if (bpf_core_field_exists(old->net_cookie.counter))
		return BPF_CORE_READ(old, net_cookie.counter);
	if (bpf_core_field_exists(net->net_cookie))
		return READ(net, net_cookie);
	return 0;
}

/* Returns the VLAN tag that lies beside the packet, with bit 16 set; 0 if there is none. */
static __always_inline __u32 metadata_vlan(struct sk_buff *skb)
{
	struct sk_buff___vlan_present *old = (void *)skb;
	bool present;

	if (bpf_core_field_exists(old->vlan_present))
		present = BPF_CORE_READ_BITFIELD_PROBED(old, vlan_present);
	else
		present = READ(skb, vlan_all) != 0;
	return present ? READ(skb, vlan_tci) | 1 << 16 : 0;
}

#endif
