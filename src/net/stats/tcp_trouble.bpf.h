/* SPDX-License-Identifier: (GPL-2.0-only OR MIT OR Apache-2.0) */
/* TCP resets, and segments whose sender has no room for more. */
#ifndef STATS_TCP_TROUBLE_BPF_H
#define STATS_TCP_TROUBLE_BPF_H

#include "packet.bpf.h"

struct net_tcp_trouble {
	__u64 resets;
	__u64 zero_windows;
};

/* The window of a segment that opens, closes or resets a connection says nothing about room. */
static __always_inline void count_tcp_trouble(struct net_tcp_trouble *to, const struct frame *f, __u64 what)
{
	__u32 flags = IS_TCP_FLAGS(what), at = IS_L4_AT(what);
	void *l4;

	if (IS_NUMBER(what) != IPPROTO_TCP || !at)
		return;
	if (flags & NET_TH_RST) {
		to->resets++;
		return;
	}
	barrier_var(at); /* The compiler knows the bound; the verifier of Linux 6.1 needs to be shown. */
	at &= L4_AT_MASK;
	l4 = f->data + at;
	if (!(flags & (NET_TH_SYN | NET_TH_FIN)) && l4 + TCP_HEADER <= f->end && !*(__be16 *)(l4 + 14))
		to->zero_windows++;
}

#endif
