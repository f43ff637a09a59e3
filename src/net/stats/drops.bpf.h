/* SPDX-License-Identifier: (GPL-2.0-only OR MIT OR Apache-2.0) */
/* Packets that a program dropped, by reason. */
#ifndef STATS_DROPS_BPF_H
#define STATS_DROPS_BPF_H

#include "packet.bpf.h"

enum net_reason {
	NET_REASON_BLOCKLIST,
	NET_REASON_CIDR,
	NET_REASON_SYN_FLOOD,
	NET_REASON_PORT_SCAN,
	NET_REASON_TCP_ANOMALY,
	NET_REASON_MALFORMED,
	NET_REASON_RATE_LIMIT,
	NET_REASON_COUNT,
};

struct net_drops {
	__u64 packets[NET_REASON_COUNT];
};

/* Packets that passed only because the blocklist is not enforced. */
struct net_would_drop {
	__u64 packets[NET_REASON_COUNT];
};

#endif
