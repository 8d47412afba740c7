/* SPDX-License-Identifier: GPL-2.0-only */
/* Numbers of IP protocols and extension headers: include/uapi/linux/in.h and in6.h. */
#ifndef PTRACE_PROTOCOLS_BPF_H
#define PTRACE_PROTOCOLS_BPF_H

#define IPPROTO_HOPOPTS 0
#define IPPROTO_ICMP 1
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_ROUTING 43
#define IPPROTO_FRAGMENT 44
#define IPPROTO_AH 51
#define IPPROTO_ICMPV6 58
#define IPPROTO_DSTOPTS 60
#define IPPROTO_SCTP 132
#define IPPROTO_DCCP 33
#define IPPROTO_UDPLITE 136
#define IPPROTO_MH 135

#endif
