/* SPDX-License-Identifier: (GPL-2.0-only OR MIT OR Apache-2.0) */
/* Packets that the tables of talkers and flows (talkers.bpf.h) do not have. */
#ifndef STATS_TRACKED_BPF_H
#define STATS_TRACKED_BPF_H

#include "packet.bpf.h"

struct net_tracked {
	/* They belong to no talker or flow, because the table was full of busier ones. */
	__u64 talkers_refused;
	__u64 flows_refused;
	/* Those of talkers and flows that had to make room for others. */
	__u64 talkers_evicted;
	__u64 flows_evicted;
};

#endif
