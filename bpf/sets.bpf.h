/* SPDX-License-Identifier: (GPL-2.0-only OR MIT OR Apache-2.0) */
/* Hashes of keys, the sketch that admits them, and the sets that store them. */
#ifndef SETS_BPF_H
#define SETS_BPF_H

#include "port.bpf.h"

/* Set by user space before the load. */
const volatile __u64 hash_keys[NET_HASH_KEYS] = { 0 };
const volatile __u32 idle_ticks = 3600; /* one minute */

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(struct net_sketch)); /* no type: nothing outside needs to know its cells */
} sketch SEC(".maps");

/*
 * A word's contribution to a hash. The sum of 32-bit words, each multiplied by a secret 64-bit key, is strongly
 * universal (multilinear hashing): without the keys, no choice of bits yields two addresses that collide more often
 * than by chance.
 */
static __always_inline __u64 part(__u32 key, __u32 word)
{
	return hash_keys[key] * word;
}

/* Spreads neighboring values, which a sum of products leaves evenly spaced, over the sets. One to one. */
static __always_inline __u64 finish(__u64 hash)
{
	hash = (hash ^ hash >> 32) * 0x9e3779b97f4a7c15ULL;
	hash = (hash ^ hash >> 29) * 0xbf58476d1ce4e5b9ULL;
	return hash ^ hash >> 32;
}

/*
 * Counts one packet of `hash` in the sketch; returns true if there have been NET_ADMIT of them. Without branches on
 * the random contents of a cell: each misprediction costs more than everything else here.
 */
static __always_inline bool sketch_admits(__u64 hash)
{
	__u32 key = 0, i, few = 0, epoch;
	struct net_sketch *s = bpf_map_lookup_elem(&sketch, &key);

	if (!s)
		return false;
	epoch = s->misses++ / NET_SKETCH_CELLS & 0xff;
#pragma unroll
	for (i = 0; i < NET_SKETCH_ROWS; i++) {
		__u16 *cell = &s->rows[i][(hash >> (8 + 20 * i)) & (NET_SKETCH_CELLS - 1)];
		__u32 old = *cell, present = ((old >> 8 ^ epoch) - 1) >> 31; /* 1 if it belongs to this epoch */
		__u32 count = (old & 0xff) * present;

		count += ~count >> 7 & 1; /* up to 128 */
		*cell = epoch << 8 | count;
		few |= count - NET_ADMIT; /* negative if there were fewer */
	}
	return !(few >> 31);
}

/*
 * Returns the place for a new entry: a way of `a`, or NET_WAYS plus a way of `b`; REFUSED if there is none. It is an
 * empty way of the set that has more of them, or an idle one, or the oldest one if the sketch admits the new entry.
 * `full_until` records that nothing becomes idle before then, so that a flood does not search again and again.
 */
#define REFUSED (2 * NET_WAYS)

struct eldest {
	__u64 seen_way; /* when it was last seen and, in the three bits below that, the way */
	__u64 empty; /* empty ways of its set */
};

/* Branchless, because the verifier would follow both paths of every branch. */
static __always_inline struct eldest eldest_of(const struct net_set *set)
{
	struct eldest e = { -1ULL >> 1, 0 };
	__u64 i;

#pragma unroll
	for (i = 0; i < NET_WAYS; i++) {
		__u64 seen = set->seen[i], less;

		e.empty += (seen - 1) >> 63;
		less = (seen << 3 | i) - e.seen_way;
		barrier_var(less);
		e.seen_way += less & (__u64)((__s64)less >> 63);
	}
	return e;
}

__noinline __u32 way_for(struct net_set *a, struct net_set *b, __u64 hash, __u32 now)
{
	struct eldest first, second;
	__u32 seen, way;
	bool full;

	if (!a || !b)
		return REFUSED;
	full = now <= a->full_until && now <= b->full_until;
	if (full && !sketch_admits(hash))
		return REFUSED;
	first = eldest_of(a);
	second = eldest_of(b);
	if (first.empty != second.empty ? first.empty > second.empty : first.seen_way <= second.seen_way) {
		seen = first.seen_way >> 3;
		way = first.seen_way & (NET_WAYS - 1);
	} else {
		seen = second.seen_way >> 3;
		way = NET_WAYS + (second.seen_way & (NET_WAYS - 1));
	}
	/* If `full`, the sketch has admitted it. */
	if (seen == 0 || full || now - seen > idle_ticks)
		return way;
	a->full_until = b->full_until = seen + idle_ticks;
	return REFUSED;
}

/*
 * Returns the way with this tag, or NET_WAYS. Two keys of one set that share a 32-bit tag are too rare to compare
 * more: the second is refused as long as the first is present.
 */
static __always_inline __u32 way_of(const struct net_set *set, __u32 tag)
{
	__u32 i;

#pragma unroll
	for (i = 0; i < NET_WAYS; i++) {
		if (set->tags[i] == tag)
			return i;
	}
	return NET_WAYS;
}

#endif
