/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The kernel types the probes touch, and no others.
 *
 * Every struct is preserve_access_index: only the names count, libbpf moves each access to where the
 * running kernel has the member (CO-RE). So the objects build on any host, without that host's BTF, and this
 * file shows all that the tracer depends on. tests/kernel/test_vmlinux.py holds it against the running
 * kernel, the matrix against the others. Where kernels differ, a flavour (`___name`) carries the other
 * shape, with the commit that made the difference.
 */
#ifndef PTRACE_VMLINUX_H
#define PTRACE_VMLINUX_H

#define __VMLINUX_H__ /* libbpf: registers have the kernel's names */

typedef signed char __s8;
typedef unsigned char __u8;
typedef short __s16;
typedef unsigned short __u16;
typedef int __s32;
typedef unsigned int __u32;
typedef long long __s64;
typedef unsigned long long __u64;
typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s32 s32;
typedef __s64 s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u64 __be64;
typedef __u16 __sum16;
typedef __u32 __wsum;
typedef _Bool bool;
enum { false = 0, true = 1 };

typedef struct {
	int counter;
} atomic_t;

typedef struct {
	s64 counter;
} atomic64_t;

/* include/uapi/linux/bpf.h */
enum bpf_map_type {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PROG_ARRAY = 3,
	BPF_MAP_TYPE_PERF_EVENT_ARRAY = 4,
	BPF_MAP_TYPE_PERCPU_HASH = 5,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_STACK_TRACE = 7,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_LRU_PERCPU_HASH = 10,
	BPF_MAP_TYPE_LPM_TRIE = 11,
	BPF_MAP_TYPE_ARRAY_OF_MAPS = 12,
	BPF_MAP_TYPE_HASH_OF_MAPS = 13,
	BPF_MAP_TYPE_RINGBUF = 27,
};

enum {
	BPF_ANY = 0,
	BPF_NOEXIST = 1,
	BPF_EXIST = 2,
	BPF_F_NO_PREALLOC = 1,
	BPF_F_CURRENT_CPU = 0xffffffffULL,
	BPF_F_REUSE_STACKID = 1 << 10,
	BPF_F_FAST_STACK_CMP = 1 << 9,
	BPF_RB_NO_WAKEUP = 1,
	BPF_RB_FORCE_WAKEUP = 2,
	BPF_RB_AVAIL_DATA = 0,
};

enum xdp_action { XDP_ABORTED = 0, XDP_DROP, XDP_PASS, XDP_TX, XDP_REDIRECT };
enum { TCX_NEXT = -1, TC_ACT_UNSPEC = -1 };
enum { NF_DROP = 0, NF_ACCEPT = 1 };
enum { AF_UNIX = 1, AF_NETLINK = 16 };
enum { TCP_TIME_WAIT = 6, TCP_NEW_SYN_RECV = 12 };
enum { TCP_FRAG_IN_RTX_QUEUE = 1 };
enum { NFPROTO_IPV4 = 2, NFPROTO_IPV6 = 10 };

/*
 * Only asked whether they exist: get_func_ret came with f92c1e183604 (v5.17), xdp_load_bytes with multi-buffer XDP,
 * 3f364222d032 (v5.18).
 */
enum bpf_func_id {
	BPF_FUNC_get_attach_cookie = 174,
	BPF_FUNC_get_func_ret = 184,
	BPF_FUNC_xdp_get_buff_len = 188,
	BPF_FUNC_xdp_load_bytes = 189,
	BPF_FUNC_cgrp_storage_get = 210,
};

/* Contexts of program types: fixed by the UAPI, never moved. */
struct __sk_buff {
	__u32 len, pkt_type, mark, queue_mapping, protocol, vlan_present, vlan_tci, vlan_proto, priority;
	__u32 ingress_ifindex, ifindex, tc_index, cb[5], hash, tc_classid, data, data_end;
};

struct xdp_md {
	__u32 data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex;
};

struct bpf_dynptr {
	__u64 opaque[2];
} __attribute__((aligned(8)));

/* Headers on the wire, fixed by their RFCs; bit-fields are read as bytes. */
struct ethhdr {
	__u8 destination[6], source[6];
	__be16 protocol;
};
struct vlan_hdr {
	__be16 tci, protocol;
};
struct iphdr {
	__u8 version_ihl, tos;
	__be16 total_length, id, fragment;
	__u8 ttl, protocol;
	__sum16 checksum;
	__be32 source, destination;
};
struct ipv6hdr {
	__u8 version_class, class_flow, flow[2];
	__be16 payload_length;
	__u8 next_header, hop_limit;
	__u8 source[16], destination[16];
};
struct tcphdr {
	__be16 source, destination;
	__be32 sequence, acknowledgement;
	__u8 offset, flags;
	__be16 window;
	__sum16 checksum;
	__be16 urgent;
};
struct icmphdr {
	__u8 type, code;
	__sum16 checksum;
	__be16 id, sequence;
};

/* Registers of a kprobe's context, fixed by the architecture. */
#if defined(__TARGET_ARCH_x86)
struct pt_regs {
	unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di, orig_ax, ip, cs, flags, sp,
		ss;
};
#else
struct user_pt_regs {
	__u64 regs[31], sp, pc, pstate;
};
struct pt_regs {
	struct user_pt_regs user_regs;
};
#endif

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

typedef struct {
	struct net *net;
} possible_net_t;

struct ns_common {
	unsigned int inum;
};

struct net {
	struct ns_common ns;
	u64 net_cookie;
};

/* Until 3d368ab87cf6 ("net: initialize net->net_cookie at netns setup", v5.12). */
struct net___atomic_cookie {
	atomic64_t net_cookie;
};

/* include/linux/time64.h; read for the number it begins with. */
struct timespec64 {
	s64 tv_sec;
};

#define IFF_LOOPBACK (1 << 3)
enum { ARPHRD_ETHER = 1, ARPHRD_LOOPBACK = 772 };

struct device {
	struct device *parent;
};

struct netdev_queue {
	int xmit_lock_owner;
};

struct xdp_rxq_info {
	struct net_device *dev;
	u32 queue_index;
};

struct netdev_rx_queue {
	struct xdp_rxq_info xdp_rxq;
};

struct net_device {
	struct netdev_queue *_tx;
	struct netdev_rx_queue *_rx;
	unsigned int num_rx_queues;
	unsigned int flags;
	unsigned int mtu;
	unsigned short type;
	int ifindex;
	possible_net_t nd_net;
	struct device dev;
	char name[16];
};

struct kernfs_node {
	u64 id;
};

struct cgroup_subsys_state {
	struct cgroup_subsys_state *parent;
};

struct cgroup {
	struct cgroup_subsys_state self;
	struct kernfs_node *kn;
};

struct css_set {
	struct cgroup *dfl_cgrp;
};

struct sock_cgroup_data {
	struct cgroup *cgroup;
};

/* Until 8520e224f547 ("bpf, cgroups: Fix cgroup v2 fallback on v1/v2 mixed mode", v5.15). */
struct sock_cgroup_data___val {
	u64 val;
};

struct sock_common {
	unsigned short skc_family;
	unsigned char skc_state;
	possible_net_t skc_net;
};

struct sock {
	struct sock_common __sk_common;
	struct sock_cgroup_data sk_cgrp_data;
};

struct page;

typedef unsigned long netmem_ref;

/* Since 9f6b619edf2e ("net: support non paged skb frags", v6.10). */
struct skb_frag {
	netmem_ref netmem;
	unsigned int len;
	unsigned int offset;
};

/* Until then skb_frag_t was this, since 8842d285bafa (v5.4): no flavour of skb_frag, a struct of another name. */
struct bio_vec {
	struct page *bv_page;
	unsigned int bv_len;
	unsigned int bv_offset;
};

struct skb_shared_info {
	__u8 nr_frags;
	unsigned short gso_size;
	unsigned short gso_segs;
	struct sk_buff *frag_list;
	unsigned int gso_type;
	unsigned int xdp_frags_size; /* d16697cb6261 (v5.18) */
	atomic_t dataref;
	struct skb_frag frags[17];
};

struct list_head {
	struct list_head *next;
};

struct sk_buff {
	struct sk_buff *next;
	struct net_device *dev;
	struct sock *sk;
	unsigned long _skb_refdst;
	struct list_head tcp_tsorted_anchor; /* in TCP's list of what was sent */
	unsigned int len;
	unsigned int data_len;
	__u16 mac_len;
	__u16 queue_mapping;
	__u8 cloned : 1;
	__u8 pkt_type : 3;
	__u8 ip_summed : 2;
	__u8 encapsulation : 1;
	__u8 head_frag : 1;
	__u8 tc_at_ingress : 1;
	int skb_iif;
	__u32 hash;
	__be16 vlan_proto;
	__u16 vlan_tci;
	u32 vlan_all;
	__u32 mark;
	__be16 protocol;
	__u16 transport_header;
	__u16 network_header;
	__u16 mac_header;
	unsigned int tail;
	unsigned int end;
	unsigned char *head;
	unsigned char *data;
};

/* Until 354259fa73e2 ("net: remove skb->vlan_present", v6.2). */
struct sk_buff___vlan_present {
	__u8 vlan_present : 1;
};

struct xdp_buff {
	void *data;
	void *data_end;
	void *data_hard_start;
	struct xdp_rxq_info *rxq;
	u32 frame_sz;
	u32 flags; /* 2e88d4ff0301 (v5.18) */
};

/* Sizes differ between kernels, and frame_sz was a bit-field: all of it is read as bit-fields are. */
struct xdp_frame {
	void *data;
	u32 len;
	u32 headroom;
	u32 frame_sz;
	u32 flags; /* 2e88d4ff0301 (v5.18) */
};

/* Until 6.12 at least. */
struct xdp_frame___short {
	u16 len;
	u16 headroom;
};

struct nf_hook_state {
	u8 hook;
	u8 pf;
	struct net_device *in;
	struct net_device *out;
};

struct bpf_nf_ctx {
	const struct nf_hook_state *state;
	struct sk_buff *skb;
};

struct task_struct {
	int pid;
	int tgid;
	char comm[16];
	struct css_set *cgroups;
};

/* Reasons came with c504e5c2f964 (v5.17); the values are read from the kernel's BTF, never written down. */
enum skb_drop_reason { SKB_NOT_DROPPED_YET = 0 };

#pragma clang attribute pop

#endif
