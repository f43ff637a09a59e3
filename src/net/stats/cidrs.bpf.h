/* SPDX-License-Identifier: (GPL-2.0-only OR MIT OR Apache-2.0) */
/* Packets and bytes by the named group of prefixes that the remote host's address is in. */
#ifndef STATS_CIDRS_BPF_H
#define STATS_CIDRS_BPF_H

#include "packet.bpf.h"

/* Set by user space before the load. */
const volatile bool with_cidrs = false;

/* Maps prefixes to counters of struct net_cidrs; user space sizes and fills it. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 1);
	__uint(map_flags, 1 /* BPF_F_NO_PREALLOC */);
	__type(key, struct net_cidr_key);
	__type(value, __u32);
} cidrs SEC(".maps");

/* Counts a well-formed IP packet: by its source when received, by its destination when sent. */
static __always_inline void count_cidrs(struct net_cidrs *to, const struct frame *f, __u64 what, bool egress,
					__u64 packets, __u64 bytes)
{
	void *ip = f->data + IS_IP_AT(what);
	struct net_cidr_key key = {};
	__u32 *group, index;

	/* Each branch has its own bounds check: the verifier of Linux 6.1 does not carry one over to the other. */
	if (IS_CELL(what) >= IS(NET_FAMILY_IPV6, 0)) {
		if (ip + IPV6_HEADER > f->end)
			return;
		key.bits = 32 + 128;
		key.family = NET_FAMILY_IPV6;
		__builtin_memcpy(key.address, ip + (egress ? 24 : 8), 16);
	} else {
		barrier_var(ip);
		if (ip + IPV4_HEADER > f->end)
			return;
		key.bits = 32 + 32;
		key.family = NET_FAMILY_IPV4;
		key.address[0] = *(__u32 *)(ip + (egress ? 16 : 12));
	}
	group = bpf_map_lookup_elem(&cidrs, &key);
	index = group ? *group : 0;
	if (index >= NET_CIDRS)
		return;
	to->by_group[index].packets += packets;
	to->by_group[index].bytes += bytes;
}

#endif
