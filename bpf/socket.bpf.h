/* SPDX-License-Identifier: (GPL-2.0-only OR MIT OR Apache-2.0) */
/* The kernel's sockets and packets, and whether they belong to the selected network namespace. */
#ifndef SOCKET_BPF_H
#define SOCKET_BPF_H

#include "net_types.bpf.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

/* Fields that are read, by their names in the kernel; their offsets are resolved when the program is loaded. */
#define KERNEL __attribute__((preserve_access_index))

struct ns_common {
	unsigned int inum;
} KERNEL;
struct net {
	struct ns_common ns;
} KERNEL;
typedef struct {
	struct net *net;
} KERNEL possible_net_t;
struct net_device {
	possible_net_t nd_net;
} KERNEL;
struct sock_common {
	possible_net_t skc_net;
} KERNEL;
struct sock {
	struct sock_common __sk_common;
	unsigned short sk_protocol;
} KERNEL;
struct sk_buff {
	struct net_device *dev;
	struct sock *sk;
	char cb[48];
} KERNEL;

/* Set by user space before the load: the namespace's inode number, as in stat(2). */
const volatile __u32 namespace = 0;

static __always_inline bool is_ours(struct net *net)
{
	return BPF_CORE_READ(net, ns.inum) == namespace;
}

static __always_inline bool has_ours(struct sock *sk)
{
	return sk && is_ours(BPF_CORE_READ(sk, __sk_common.skc_net.net));
}

#endif
