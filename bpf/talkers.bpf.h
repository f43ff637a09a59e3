/* SPDX-License-Identifier: (GPL-2.0-only OR MIT OR Apache-2.0) */
/*
 * Who talks: tables of remote hosts and of flows, with least-recently-used replacement inside sets of NET_WAYS
 * entries, one table per CPU.
 *
 * Not the kernel's LRU hash: a hit there costs 30 ns and a miss that inserts over 600 ns, under a lock that all
 * CPUs share, so that a flood of invented sources would be the most expensive traffic of all. Here a CPU only
 * ever touches its own table with interrupts' bottom halves off, so that nothing is locked or atomic, a hit is
 * one cache line of tags and one entry, and a miss decides from the same line whether there is room.
 *
 * Who gets in: an empty way or one that was silent for `idle_ticks` is taken at once. Otherwise the newcomer
 * must show NET_ADMIT packets in the sketch's present epoch, which an invented source does not, and
 * then takes the place of the least recently seen. Flows are only kept of tracked talkers: a spoofed flood is
 * over after its first miss.
 */
#ifndef TALKERS_BPF_H
#define TALKERS_BPF_H

#include "packet.bpf.h"

/* Set by user space before the load; sizes are powers of two. */
const volatile bool with_talkers = false;
const volatile bool with_flows = false;
const volatile __u64 seed = 0;
const volatile __u32 talker_sets_mask = 0;
const volatile __u32 flow_sets_mask = 0;
const volatile __u32 idle_ticks = 3600; /* one minute */
const volatile __u32 ifindex = 0;

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct net_talkers);
} talkers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct net_flows);
} flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(struct net_sketch)); /* not by type: nothing outside needs to know its cells */
} sketch SEC(".maps");

/*
 * One round of a multiplicative hash; the seed keeps collisions from being made on purpose. A product's low bits
 * know only its factor's low bits, and neighbours' addresses differ in a word's high ones: both are folded. The
 * factor is 2^64 over the golden ratio, which spreads runs of neighbours evenly; others that are good for random keys
 * put a /24 into five sets.
 */
static __always_inline __u64 mix(__u64 hash, __u64 word)
{
	hash ^= word;
	hash = (hash ^ hash >> 32) * 0x9e3779b97f4a7c15ULL;
	return hash ^ hash >> 32;
}

/* Counts one packet of `hash` in the sketch; true if there were NET_ADMIT of them. */
static __always_inline bool sketch_admits(__u64 hash)
{
	__u32 zero = 0, i, low = 255;
	struct net_sketch *s = bpf_map_lookup_elem(&sketch, &zero);
	__u16 epoch;

	if (!s)
		return false;
	epoch = (s->misses++ / NET_SKETCH_CELLS) << 8;
#pragma unroll
	for (i = 0; i < NET_SKETCH_ROWS; i++) {
		__u16 *cell = &s->rows[i][(hash >> (8 + 20 * i)) & (NET_SKETCH_CELLS - 1)];
		__u16 now = *cell;

		if ((now & 0xff00) != epoch)
			now = epoch;
		if ((now & 0xff) != 0xff)
			now++;
		*cell = now;
		if ((now & 0xff) < low)
			low = now & 0xff;
	}
	return low >= NET_ADMIT;
}

/*
 * The way of `set` for a newcomer: an empty or idle one, or the oldest if the sketch lets it in; NET_WAYS if
 * there is none.
 */
static __always_inline __u32 way_for(struct net_set *set, __u64 hash, __u32 now)
{
	__u32 i, way = 0, oldest = set->seen[0];

#pragma unroll
	for (i = 1; i < NET_WAYS; i++) {
		if (set->seen[i] < oldest) {
			oldest = set->seen[i];
			way = i;
		}
	}
	if (oldest == 0 || now - oldest > idle_ticks || sketch_admits(hash))
		return way;
	return NET_WAYS;
}

static __always_inline void count(struct net_cell *cell, __u64 packets, __u64 bytes)
{
	cell->packets += packets;
	cell->bytes += bytes;
}

static __always_inline bool same_address(const __u32 *a, const __u32 *b)
{
	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3];
}

/* Copies an address out of the packet; four bytes become an IPv4-mapped one. */
static __always_inline void address_at(__u32 *to, const void *from, bool v6)
{
	const __u32 *words = from;

	if (v6) {
		to[0] = words[0];
		to[1] = words[1];
		to[2] = words[2];
		to[3] = words[3];
	} else {
		to[0] = 0;
		to[1] = 0;
		to[2] = bpf_htonl(0xffff);
		to[3] = words[0];
	}
}

/* Counts for the remote host; false if it is not tracked. `hash` is of its address. */
static __always_inline bool talk(const __u32 *address, __u64 hash, bool egress, __u32 now, __u64 packets,
				 __u64 bytes)
{
	__u32 index = hash & talker_sets_mask, tag = hash >> 32, i;
	struct net_talkers *t = bpf_map_lookup_elem(&talkers, &index);
	struct net_talker *e;

	if (!t)
		return false;
	for (i = 0; i < NET_WAYS; i++) {
		if (t->set.tags[i] != tag)
			continue;
		e = &t->entries[i];
		if (same_address(e->address, address) && e->ifindex == ifindex)
			goto found;
	}
	i = way_for(&t->set, hash, now);
	if (i >= NET_WAYS)
		return false;
	e = &t->entries[i];
	__builtin_memset(e, 0, sizeof(*e));
	__builtin_memcpy(e->address, address, sizeof(e->address));
	e->ifindex = ifindex;
	e->first = now;
	t->set.tags[i] = tag;
found:
	t->set.seen[i] = now;
	count(egress ? &e->out : &e->in, packets, bytes);
	return true;
}

static __always_inline bool same_flow(const struct net_flow_key *a, const struct net_flow_key *b)
{
	const __u64 *x = (const __u64 *)a, *y = (const __u64 *)b;

	return x[0] == y[0] && x[1] == y[1] && x[2] == y[2] && x[3] == y[3] && x[4] == y[4] && x[5] == y[5];
}

static __always_inline bool flow(const struct net_flow_key *key, __u64 hash, __u32 tcp_flags, __u32 now,
				 __u64 packets, __u64 bytes)
{
	__u32 index = hash & flow_sets_mask, tag = hash >> 32, i;
	struct net_flows *f = bpf_map_lookup_elem(&flows, &index);
	struct net_flow *e;

	if (!f)
		return false;
	for (i = 0; i < NET_WAYS; i++) {
		if (f->set.tags[i] != tag)
			continue;
		e = &f->entries[i];
		if (same_flow(&e->key, key))
			goto found;
	}
	i = way_for(&f->set, hash, now);
	if (i >= NET_WAYS)
		return false;
	e = &f->entries[i];
	__builtin_memset(e, 0, sizeof(*e));
	__builtin_memcpy(&e->key, key, sizeof(*key));
	e->first = now;
	f->set.tags[i] = tag;
found:
	f->set.seen[i] = now;
	count(&e->sum, packets, bytes);
	if (tcp_flags) {
		if (tcp_flags & NET_TH_SYN) {
			e->tcp_flags = tcp_flags;
			e->tcp_data = 0;
		} else {
			e->tcp_flags |= tcp_flags;
			e->tcp_data |= !(tcp_flags & NET_TH_RST);
		}
	}
	return true;
}

/* Counts a sound IP packet for its remote host and its flow. */
static __always_inline void track(const struct frame *f, __u64 what, struct net_stats *stats, bool egress,
				  __u64 packets, __u64 bytes)
{
	bool v6 = IS_CELL(what) >= IS(NET_FAMILY_IPV6, 0);
	__u32 now = bpf_ktime_get_coarse_ns() >> NET_TICK_SHIFT, at = IS_L4_AT(what);
	void *ip = f->data + (IS_IP_AT(what) & 0x1f), *l4 = f->data + at;
	struct net_flow_key key = {};
	const __u64 *a;
	__u64 hash;

	if (ip + (v6 ? IPV6_HEADER : IPV4_HEADER) > f->end)
		return;
	address_at(key.source, ip + (v6 ? 8 : 12), v6);
	address_at(key.destination, ip + (v6 ? 24 : 16), v6);
	a = (const __u64 *)(egress ? key.destination : key.source);
	hash = mix(mix(seed ^ ifindex, a[0]), a[1]);
	if (!talk(egress ? key.destination : key.source, hash, egress, now, packets, bytes)) {
		stats->talkers_refused += packets;
		return;
	}
	if (!with_flows)
		return;
	if (at && l4 + 4 <= f->end) {
		key.source_port = *(__be16 *)l4;
		key.destination_port = *(__be16 *)(l4 + 2);
	}
	key.ip_protocol = IS_NUMBER(what);
	key.egress = egress;
	key.ifindex = ifindex;
	a = (const __u64 *)(egress ? key.source : key.destination);
	hash = mix(mix(hash, a[0]), a[1]);
	hash = mix(hash, (__u64)key.source_port << 32 | (__u32)key.destination_port << 16 | key.ip_protocol << 8 |
				 egress);
	if (!flow(&key, hash, IS_TCP_FLAGS(what), now, packets, bytes))
		stats->flows_refused += packets;
}

#endif
