/* SPDX-License-Identifier: (GPL-2.0-only OR MIT OR Apache-2.0) */
/* Packets missing from the tables of talkers and flows (talkers.bpf.h). */
#ifndef STATS_TRACKED_BPF_H
#define STATS_TRACKED_BPF_H

#include "packet.bpf.h"

struct net_tracked {
	/* Packets of no tracked talker or flow, because the table was full of busier ones. */
	__u64 talkers_refused;
	__u64 flows_refused;
	/* Packets of talkers and flows that were evicted for others. */
	__u64 talkers_evicted;
	__u64 flows_evicted;
};

#endif
