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

/*
 * Counts one packet of `hash` in the sketch; true if there were NET_ADMIT of them. Without branches on what chance
 * put into a cell: each that is guessed wrongly costs more than all else here.
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
		__u32 old = *cell, present = ((old >> 8 ^ epoch) - 1) >> 31; /* 1 if it is of this epoch */
		__u32 count = (old & 0xff) * present;

		count += ~count >> 7 & 1; /* up to 128 */
		*cell = epoch << 8 | count;
		few |= count - NET_ADMIT; /* its sign is set if there were fewer */
	}
	return !(few >> 31);
}

/*
 * The way of `set` for a newcomer: an empty or idle one, or the oldest if the sketch lets it in; NET_WAYS if
 * there is none. That nothing is idle before `full_until` is remembered, so that a flood does not look again and again.
 */
static __always_inline __u32 way_for(struct net_set *set, __u64 hash, __u32 now)
{
	__u32 i, way = 0, oldest;

	if (now <= set->full_until && !sketch_admits(hash))
		return NET_WAYS;
	oldest = set->seen[0];
#pragma unroll
	for (i = 1; i < NET_WAYS; i++) {
		if (set->seen[i] < oldest) {
			oldest = set->seen[i];
			way = i;
		}
	}
	/* Within `full_until` the sketch has let it in. */
	if (oldest == 0 || now - oldest > idle_ticks || now <= set->full_until)
		return way;
	set->full_until = oldest + idle_ticks;
	return NET_WAYS;
}

/*
 * The way with this tag, or NET_WAYS. Two keys of one set that share a tag of 32 bits are too rare to look further:
 * the second is refused as long as the first is there.
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

static __always_inline void count(struct net_cell *cell, __u64 packets, __u64 bytes)
{
	cell->packets += packets;
	cell->bytes += bytes;
}

/* An address as two words, as they lie in the tables; four bytes become an IPv4-mapped one. */
struct address {
	__u64 high, low;
};

static __always_inline struct address address_at(const void *from, bool v6)
{
	struct address a;

	if (v6) {
		a.high = *(const __u64 *)from;
		a.low = *(const __u64 *)(from + 8);
	} else {
		a.high = 0;
		a.low = (__u64) * (const __u32 *)from << 32 | bpf_htonl(0xffff);
	}
	return a;
}

static __always_inline __u64 mix_address(__u64 hash, struct address a, bool v6)
{
	return mix(hash, v6 ? a.low + a.high * 0xd6e8feb86659fd93ULL : a.low);
}

static __always_inline bool same_address(const __u32 *words, struct address a)
{
	return ((const __u64 *)words)[0] == a.high && ((const __u64 *)words)[1] == a.low;
}

static __always_inline void put_address(__u32 *words, struct address a)
{
	((__u64 *)words)[0] = a.high;
	((__u64 *)words)[1] = a.low;
}

/* Counts for the remote host; false if it is not tracked. `hash` is of its address. */
static __always_inline bool talk(struct address address, __u64 hash, bool egress, __u32 now, __u64 packets,
				 __u64 bytes)
{
	__u32 index = hash & talker_sets_mask, tag = hash >> 32, way;
	struct net_talkers *t = bpf_map_lookup_elem(&talkers, &index);
	struct net_talker *e;

	if (!t)
		return false;
	way = way_of(&t->set, tag);
	if (way < NET_WAYS) {
		e = &t->entries[way];
		if (!same_address(e->address, address) || e->ifindex != ifindex)
			return false;
	} else {
		way = way_for(&t->set, hash, now);
		if (way >= NET_WAYS)
			return false;
		e = &t->entries[way];
		__builtin_memset(e, 0, sizeof(*e));
		put_address(e->address, address);
		e->ifindex = ifindex;
		e->first = now;
		t->set.tags[way] = tag;
	}
	t->set.seen[way] = now;
	count(egress ? &e->out : &e->in, packets, bytes);
	return true;
}

/* What a flow is told by, in the six words of struct net_flow_key. */
struct flow_words {
	struct address source, destination;
	__u64 ports; /* source_port, destination_port, ip_protocol, egress, pad */
};

static __always_inline bool flow(const struct flow_words *key, __u64 hash, __u32 tcp_flags, __u32 now,
				 __u64 packets, __u64 bytes)
{
	__u32 index = hash & flow_sets_mask, tag = hash >> 32, way;
	struct net_flows *f = bpf_map_lookup_elem(&flows, &index);
	struct net_flow *e;
	__u64 *words;

	if (!f)
		return false;
	way = way_of(&f->set, tag);
	if (way < NET_WAYS) {
		e = &f->entries[way];
		words = (__u64 *)&e->key;
		if (words[0] != key->source.high || words[1] != key->source.low ||
		    words[2] != key->destination.high || words[3] != key->destination.low ||
		    words[4] != key->ports || words[5] != ifindex)
			return false;
	} else {
		way = way_for(&f->set, hash, now);
		if (way >= NET_WAYS)
			return false;
		e = &f->entries[way];
		words = (__u64 *)&e->key;
		__builtin_memset(e, 0, sizeof(*e));
		words[0] = key->source.high;
		words[1] = key->source.low;
		words[2] = key->destination.high;
		words[3] = key->destination.low;
		words[4] = key->ports;
		words[5] = ifindex;
		e->first = now;
		f->set.tags[way] = tag;
	}
	f->set.seen[way] = now;
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
	void *ip = f->data + (IS_IP_AT(what) & 0x1f), *l4;
	struct flow_words key;
	struct address remote;
	__u64 hash;

	if (ip + (v6 ? IPV6_HEADER : IPV4_HEADER) > f->end)
		return;
	key.source = address_at(ip + (v6 ? 8 : 12), v6);
	key.destination = address_at(ip + (v6 ? 24 : 16), v6);
	remote = egress ? key.destination : key.source;
	hash = mix_address(seed ^ ifindex, remote, v6);
	if (!talk(remote, hash, egress, now, packets, bytes)) {
		stats->talkers_refused += packets;
		return;
	}
	if (!with_flows)
		return;
	/* In memory order: both ports, the protocol, the direction. */
	key.ports = 0;
	barrier_var(at); /* The compiler knows the bound; the verifier of Linux 6.1 must be shown. */
	at &= L4_AT_MASK;
	l4 = f->data + at;
	if (at && l4 + 4 <= f->end)
		key.ports = *(__u32 *)l4;
	key.ports |= (__u64)IS_NUMBER(what) << 32 | (__u64)egress << 40;
	hash = mix(mix_address(hash, egress ? key.source : key.destination, v6), key.ports);
	if (!flow(&key, hash, IS_TCP_FLAGS(what), now, packets, bytes))
		stats->flows_refused += packets;
}

_Static_assert(__builtin_offsetof(struct net_flow_key, source_port) == 32, "words of the key");
_Static_assert(__builtin_offsetof(struct net_flow_key, ip_protocol) == 36, "words of the key");
_Static_assert(__builtin_offsetof(struct net_flow_key, egress) == 37, "words of the key");
_Static_assert(__builtin_offsetof(struct net_flow_key, ifindex) == 40, "words of the key");
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the words of the flow key are written for little-endian machines"
#endif

#endif
