/* SPDX-License-Identifier: (GPL-2.0-only OR MIT OR Apache-2.0) */
/* TCP segments that open or close a connection. */
#ifndef STATS_TCP_FLAGS_BPF_H
#define STATS_TCP_FLAGS_BPF_H

#include "packet.bpf.h"

/* One segment counts once, in this order of precedence. */
enum net_tcp_kind {
	NET_TCP_RST,
	NET_TCP_SYNACK,
	NET_TCP_SYN,
	NET_TCP_FIN,
	NET_TCP_KINDS,
};

struct net_tcp_flags {
	__u64 segments[NET_TCP_KINDS];
};

#define RARE_TCP_FLAGS TCP_FLAGS(NET_TH_FIN | NET_TH_SYN | NET_TH_RST)

/* Counts once even if the packet will be segmented: only one segment is the first, and one the last. */
static __always_inline void count_tcp_flags(struct net_tcp_flags *to, __u64 what)
{
	__u32 flags = IS_TCP_FLAGS(what);

	if (flags & NET_TH_RST)
		to->segments[NET_TCP_RST]++;
	else if (flags & NET_TH_SYN && flags & NET_TH_ACK)
		to->segments[NET_TCP_SYNACK]++;
	else if (flags & NET_TH_SYN)
		to->segments[NET_TCP_SYN]++;
	else if (flags & NET_TH_FIN)
		to->segments[NET_TCP_FIN]++;
}

#endif
