/* SPDX-License-Identifier: (GPL-2.0-only OR MIT OR Apache-2.0) */
/* Fragments of larger datagrams. */
#ifndef STATS_FRAGMENTS_BPF_H
#define STATS_FRAGMENTS_BPF_H

#include "packet.bpf.h"

struct net_fragments {
	__u64 packets[NET_FAMILY_COUNT];
};

#define RARE_FRAGMENTS FRAGMENT

static __always_inline void count_fragments(struct net_fragments *to, __u64 what, __u64 packets)
{
	__u32 family = IS_CELL(what) / NET_PROTOCOL_SLOTS;

	/*
	 * Otherwise the compiler would merge two comparisons into one, which the verifier of Linux 6.12 does not
	 * follow.
	 */
	barrier_var(family);
	if (what & FRAGMENT && family < NET_FAMILY_COUNT)
		to->packets[family] += packets;
}

#endif
