/* SPDX-License-Identifier: (GPL-2.0-only OR MIT OR Apache-2.0) */
/*
 * The packet statistics of an interface. Each statistic is a pair of files in this directory, NAME.bpf.h and NAME.rs,
 * and a line in each list here and in mod.rs.
 */
#ifndef STATS_ALL_BPF_H
#define STATS_ALL_BPF_H

#include "packets.bpf.h"
#include "cidrs.bpf.h"
#include "drops.bpf.h"
#include "fragments.bpf.h"
#include "parse_errors.bpf.h"
#include "tcp_flags.bpf.h"
#include "tcp_trouble.bpf.h"
#include "tracked.bpf.h"

/* Everything counted on one interface in one direction by one CPU. All 64-bit words. */
struct net_stats {
	struct net_row rows[NET_VERDICT_COUNT][NET_FAMILY_COUNT][NET_PROTOCOL_SLOTS];
	struct net_drops drops;
	struct net_parse_errors errors;
	struct net_tcp_flags tcp;
	struct net_tcp_trouble trouble;
	struct net_fragments fragments;
	struct net_tracked tracked;
	struct net_cidrs cidrs;
	struct net_would_drop would_drop;
	/* Not a counter: the interface's id, so that evictions from a table are not counted for a later interface. */
	__u64 port;
};

/* What few packets have, so that one test detects whether there is any of it. */
#define RARE (RARE_PARSE_ERRORS | RARE_FRAGMENTS | RARE_TCP_FLAGS)

static __always_inline void count_rare(struct net_stats *stats, __u64 what, __u64 packets)
{
	count_parse_errors(&stats->errors, what, packets);
	count_fragments(&stats->fragments, what, packets);
	count_tcp_flags(&stats->tcp, what);
}

/* Statistics that inspect every packet, only if the configuration asks for them: bits of `switches`. */
enum net_switch {
	NET_SWITCH_TCP_TROUBLE,
	NET_SWITCH_COUNT,
};
const volatile __u32 switches = 0;
#define WANTED(name) (switches & 1u << NET_SWITCH_##name)

static __always_inline void count_wanted(struct net_stats *stats, const struct frame *f, __u64 what)
{
	if (WANTED(TCP_TROUBLE))
		count_tcp_trouble(&stats->trouble, f, what);
}

#endif
