/* SPDX-License-Identifier: (GPL-2.0-only OR MIT OR Apache-2.0) */
/* Packets in which the parser found an error. */
#ifndef STATS_PARSE_ERRORS_BPF_H
#define STATS_PARSE_ERRORS_BPF_H

#include "packet.bpf.h"

struct net_parse_errors {
	__u64 packets[NET_PARSE_ERROR_COUNT];
};

#define RARE_PARSE_ERRORS PARSE_ERROR(0xf)

static __always_inline void count_parse_errors(struct net_parse_errors *to, __u64 what, __u64 packets)
{
	__u32 error = IS_PARSE_ERROR(what);

	/* The compiler knows this bound and would remove the comparison. */
	if (error) {
		barrier_var(error);
		if (error < NET_PARSE_ERROR_COUNT)
			to->packets[error] += packets;
	}
}

#endif
