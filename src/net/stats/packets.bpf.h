/* SPDX-License-Identifier: (GPL-2.0-only OR MIT OR Apache-2.0) */
/* Packets and bytes by verdict, family, protocol and size. */
#ifndef STATS_PACKETS_BPF_H
#define STATS_PACKETS_BPF_H

#include "packet.bpf.h"

/*
 * Frame sizes: bucket i counts frames of at most the bytes that name it (Ethernet header included, frame check
 * sequence not), the last one all larger. Every bound is a multiple of 64, so that a table indexed by
 * size / 64 finds the bucket in one load.
 */
enum net_size {
	NET_SIZE_64,
	NET_SIZE_128,
	NET_SIZE_256,
	NET_SIZE_512,
	NET_SIZE_1024,
	NET_SIZE_1536,
	NET_SIZE_4096,
	NET_SIZE_9216,
	NET_SIZE_16384,
	NET_SIZE_INF,
	NET_SIZE_COUNT,
};

/* The number of places for sizes: a power of two together with the sum of bytes; some are unused. */
#define NET_SIZE_SLOTS 15

/* The counters of one family and protocol: packets by size, so that one addition counts both, and bytes. */
struct net_row {
	__u64 packets[NET_SIZE_SLOTS];
	__u64 bytes;
};

/* The size bucket of a frame of (i - 1) * 64 + 1 to i * 64 bytes, as an offset in bytes. */
#define S(x) (NET_SIZE_##x * 8)
#define N4(x) x, x, x, x
#define N8(x) N4(x), N4(x)
#define N16(x) N8(x), N8(x)
#define N32(x) N16(x), N16(x)
#define N64(x) N32(x), N32(x)
#define SIZE_STEPS 2048
static const volatile __u8 size_offset[SIZE_STEPS] = {
	S(64),	       S(64),	      S(128),	     S(256),
	S(256),	       N4(S(512)),    N8(S(1024)),   N8(S(1536)),
	N32(S(4096)),  N8(S(4096)),   N64(S(9216)),  N16(S(9216)),
	N64(S(16384)), N32(S(16384)), N16(S(16384)), [257 ... SIZE_STEPS - 1] = S(INF),
};

/* Returns the row of a frame's family and protocol, among those of a verdict. */
static __always_inline struct net_row *row_of(struct net_row *rows, __u64 what)
{
	__u32 cell = IS_CELL(what);

	return cell < IS(NET_FAMILY_COUNT, 0) ? rows + cell : 0;
}

/* Counts packets of `length` bytes each; `large` if they can exceed the table. */
static __always_inline void count_packets(struct net_row *row, __u32 length, __u64 packets, bool large)
{
	__u32 step = (length + 63) / 64;

	if (large && step >= SIZE_STEPS)
		step = SIZE_STEPS - 1;
	barrier_var(step);
	step &= SIZE_STEPS - 1;
	*(__u64 *)((void *)row->packets + size_offset[step]) += packets;
}

#endif
