/* SPDX-License-Identifier: (GPL-2.0-only OR MIT OR Apache-2.0) */
/*
 * Talkers: tables of remote hosts and of flows, with least-recently-used replacement inside sets of NET_WAYS entries,
 * one table per CPU.
 *
 * Not the kernel's LRU hash: there a hit costs 30 ns and a miss that inserts over 600 ns, under a lock that all CPUs
 * share, so that a flood of spoofed sources would be the most expensive traffic of all. Here a CPU only ever touches
 * its own table with bottom halves disabled, so that no locks or atomics are needed, a hit is one cache line of tags
 * and one entry, and a miss determines from the same line whether there is room.
 *
 * Each host and flow may be in either of two sets and goes into the one with more room, which fills sets evenly: at
 * two thirds of a table's entries, practically none overflows. So tables are half again as large as the configuration
 * says.
 *
 * Admission: an empty way, or one that was idle for `idle_ticks`, is taken at once. Otherwise the new entry must show
 * NET_ADMIT packets in the sketch's current epoch, which a spoofed source does not, and then replaces the least
 * recently seen one. Flows are only kept for tracked talkers: a spoofed flood is over after its first miss.
 */
#ifndef TALKERS_BPF_H
#define TALKERS_BPF_H

#include "sets.bpf.h"

/* Set by user space before the load; sizes are powers of two. */
const volatile bool with_talkers = false;
const volatile bool with_flows = false;
const volatile __u32 talker_sets_mask = 0;
const volatile __u32 flow_sets_mask = 0;

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

static __always_inline void count(struct net_counts *counts, __u64 packets, __u64 bytes)
{
	counts->packets += packets;
	counts->bytes += bytes;
}

/* An address as two words, as stored in the tables; an IPv4 address becomes an IPv4-mapped one. */
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

/* An address's contribution to a hash, with the keys from `key` on. */
static __always_inline __u64 address_part(__u32 key, struct address a, bool v6)
{
	__u64 sum = part(key + 3, a.low >> 32);

	if (v6)
		sum += part(key, a.high) + part(key + 1, a.high >> 32) + part(key + 2, a.low);
	return sum;
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

/* Counts the packets of an evicted entry for the interface on which they were counted, if it still exists. */
__noinline int talker_evicted(__u32 port, __u64 received, __u64 sent)
{
	struct net_stats *stats = stats_of(port, false);

	if (stats && stats->port == port)
		stats->tracked.talkers_evicted += received;
	stats = stats_of(port, true);
	if (stats && stats->port == port)
		stats->tracked.talkers_evicted += sent;
	return 0;
}

__noinline int flow_evicted(__u32 port, __u32 egress, __u64 packets)
{
	struct net_stats *stats = stats_of(port, egress);

	if (stats && stats->port == port)
		stats->tracked.flows_evicted += packets;
	return 0;
}

/* The second set of a key. */
static __always_inline __u32 other_set(__u64 hash, __u32 mask)
{
	return (hash >> 20 ^ hash << 7) & mask;
}

/* A valid IP packet, with what identifies its talker and its flow. */
struct tracked {
	struct address source, destination;
	__u64 ports; /* source_port, destination_port, ip_protocol, egress and pad of struct net_flow_key */
	__u64 hash; /* of the key that is looked up */
	__u64 packets, bytes;
	__u32 port, now, tcp_flags, egress;
};

/*
 * Counts a packet for its remote host; returns zero if that is not tracked. A separate function, like the next one,
 * because the verifier would check each on every path through the other.
 */
__noinline int talk(const struct tracked *p)
{
	struct net_talkers *t, *u;
	struct address address;
	struct net_talker *e;
	__u32 index, tag, way;

	if (!p)
		return 0;
	address = p->egress ? p->destination : p->source;
	index = p->hash & talker_sets_mask;
	tag = p->hash >> 32;
	t = bpf_map_lookup_elem(&talkers, &index);
	if (!t)
		return 0;
	way = way_of(&t->set, tag);
	if (way >= NET_WAYS) {
		index = other_set(p->hash, talker_sets_mask);
		u = bpf_map_lookup_elem(&talkers, &index);
		if (!u)
			return 0;
		way = way_of(&u->set, tag);
		if (way < NET_WAYS) {
			t = u;
		} else {
			way = way_for(&t->set, &u->set, p->hash, p->now);
			if (way >= REFUSED)
				return 0;
			if (way >= NET_WAYS)
				t = u;
			way &= NET_WAYS - 1;
			barrier_var(way);
			way &= NET_WAYS - 1;
			e = &t->entries[way];
			if (e->in.packets | e->out.packets)
				talker_evicted(e->port, e->in.packets, e->out.packets);
			__builtin_memset(e, 0, sizeof(*e));
			put_address(e->address, address);
			e->port = p->port;
			e->first = p->now;
			t->set.tags[way] = tag;
		}
	}
	e = &t->entries[way];
	if (!same_address(e->address, address) || e->port != p->port)
		return 0;
	t->set.seen[way] = p->now;
	count(p->egress ? &e->out : &e->in, p->packets, p->bytes);
	return 1;
}

/* The same for the flow. */
__noinline int flow(const struct tracked *p)
{
	struct net_flows *f, *g;
	__u32 index, tag, way;
	struct net_flow *e;
	__u64 *words;

	if (!p)
		return 0;
	index = p->hash & flow_sets_mask;
	tag = p->hash >> 32;
	f = bpf_map_lookup_elem(&flows, &index);
	if (!f)
		return 0;
	way = way_of(&f->set, tag);
	if (way >= NET_WAYS) {
		index = other_set(p->hash, flow_sets_mask);
		g = bpf_map_lookup_elem(&flows, &index);
		if (!g)
			return 0;
		way = way_of(&g->set, tag);
		if (way < NET_WAYS) {
			f = g;
		} else {
			way = way_for(&f->set, &g->set, p->hash, p->now);
			if (way >= REFUSED)
				return 0;
			if (way >= NET_WAYS)
				f = g;
			way &= NET_WAYS - 1;
			barrier_var(way);
			way &= NET_WAYS - 1;
			e = &f->entries[way];
			if (e->sum.packets)
				flow_evicted(e->key.port, e->key.egress, e->sum.packets);
			words = (__u64 *)&e->key;
			__builtin_memset(e, 0, sizeof(*e));
			words[0] = p->source.high;
			words[1] = p->source.low;
			words[2] = p->destination.high;
			words[3] = p->destination.low;
			words[4] = p->ports;
			words[5] = p->port;
			e->first = p->now;
			f->set.tags[way] = tag;
		}
	}
	e = &f->entries[way];
	words = (__u64 *)&e->key;
	if (words[0] != p->source.high || words[1] != p->source.low || words[2] != p->destination.high ||
	    words[3] != p->destination.low || words[4] != p->ports || words[5] != p->port)
		return 0;
	f->set.seen[way] = p->now;
	count(&e->sum, p->packets, p->bytes);
	if (p->tcp_flags) {
		if (p->tcp_flags & NET_TH_SYN) {
			e->tcp_flags = p->tcp_flags;
			e->tcp_data = 0;
		} else {
			e->tcp_flags |= p->tcp_flags;
			e->tcp_data |= !(p->tcp_flags & NET_TH_RST);
		}
	}
	return 1;
}

/* Counts a valid IP packet for its remote host and its flow. */
static __always_inline void track(const struct frame *f, __u64 what, struct net_stats *stats, __u32 port,
				  bool egress, __u64 packets, __u64 bytes)
{
	bool v6 = IS_CELL(what) >= IS(NET_FAMILY_IPV6, 0);
	void *ip = f->data + IS_IP_AT(what), *l4;
	struct tracked p = {};
	__u32 at = IS_L4_AT(what);
	__u64 sum;

	/* Each branch has its own bounds check: the verifier of Linux 6.1 does not carry one over to the other. */
	if (v6) {
		if (ip + IPV6_HEADER > f->end)
			return;
		p.source = address_at(ip + 8, true);
		p.destination = address_at(ip + 24, true);
	} else {
		barrier_var(ip);
		if (ip + IPV4_HEADER > f->end)
			return;
		p.source = address_at(ip + 12, false);
		p.destination = address_at(ip + 16, false);
	}
	p.port = port;
	p.now = bpf_ktime_get_coarse_ns() >> NET_TICK_SHIFT;
	p.egress = egress;
	p.packets = packets;
	p.bytes = bytes;
	p.tcp_flags = IS_TCP_FLAGS(what);
	sum = hash_keys[0] + part(1, port) + address_part(2, egress ? p.destination : p.source, v6);
	/* In memory order: both ports, the protocol, the direction. */
	barrier_var(at); /* The compiler knows the bound; the verifier of Linux 6.1 needs to be shown. */
	at &= L4_AT_MASK;
	l4 = f->data + at;
	if (at && l4 + 4 <= f->end)
		p.ports = *(__u32 *)l4;
	p.ports |= (__u64)IS_NUMBER(what) << 32 | (__u64)egress << 40;
	p.hash = finish(sum);
	if (!talk(&p)) {
		stats->tracked.talkers_refused += packets;
		return;
	}
	if (!with_flows)
		return;
	sum += address_part(6, egress ? p.source : p.destination, v6) + part(10, p.ports) +
	       part(11, p.ports >> 32);
	p.hash = finish(sum);
	if (!flow(&p))
		stats->tracked.flows_refused += packets;
}

_Static_assert(__builtin_offsetof(struct net_flow_key, source_port) == 32, "words of the key");
_Static_assert(__builtin_offsetof(struct net_flow_key, ip_protocol) == 36, "words of the key");
_Static_assert(__builtin_offsetof(struct net_flow_key, egress) == 37, "words of the key");
_Static_assert(__builtin_offsetof(struct net_flow_key, port) == 40, "words of the key");
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the words of the flow key are written for little-endian machines"
#endif

#endif
