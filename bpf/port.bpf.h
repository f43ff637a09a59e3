/* SPDX-License-Identifier: (GPL-2.0-only OR MIT OR Apache-2.0) */
/*
 * Interfaces that are counted, and their counters. One loaded program serves all interfaces of a network namespace,
 * which it distinguishes by the index in its context. User space registers an interface before it attaches there.
 */
#ifndef PORT_BPF_H
#define PORT_BPF_H

#include "stats/all.bpf.h"

_Static_assert(sizeof(struct net_port) == 16, "the shift that finds an interface");

struct net_ports ports SEC(".bss.ports");

/* Interfaces whose place in the table is taken by another. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1 << NET_SLOT_BITS);
	__uint(map_flags, 1 /* BPF_F_NO_PREALLOC */);
	__type(key, __u32);
	__type(value, struct net_port);
} more_ports SEC(".maps");

/* Counters of both directions of an interface; these are for packets of interfaces that are not registered. */
struct net_counters {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, NET_DIRECTIONS);
	__type(key, __u32);
	__type(value, struct net_stats);
} strays SEC(".maps");

/* The counters of each interface, by slot. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1 << NET_SLOT_BITS);
	__type(key, __u32);
	__array(values, struct net_counters);
} counters SEC(".maps") = { .values = { [0] = &strays } };

/* Keys that need no room on the stack. */
static const volatile __u32 zero = NET_INGRESS;
static const volatile __u32 one = NET_EGRESS;

/*
 * What programs need to know of an interface: its id and, above it, what frames begin with. Zero if it is not
 * registered.
 */
#define PORT(entry) ((entry)->id | (__u64)(entry)->link << 32)
#define PORT_ID(port) ((__u32)(port))
#define PORT_LINK(port) ((__u32)((port) >> 32))

__noinline __u64 find_port(__u32 ifindex)
{
	struct net_port *entry = bpf_map_lookup_elem(&more_ports, &ifindex);

	return entry ? PORT(entry) : 0;
}

static __always_inline __u64 port_of(__u32 ifindex)
{
	const volatile struct net_port *entry = &ports.at[ifindex & (NET_PORTS - 1)];

	return entry->ifindex == ifindex ? PORT(entry) : find_port(ifindex);
}

static __always_inline struct net_stats *stats_of(__u32 id, bool egress)
{
	__u32 slot = id & ((1 << NET_SLOT_BITS) - 1);
	void *map = bpf_map_lookup_elem(&counters, &slot);

	return map ? bpf_map_lookup_elem(map, egress ? (void *)&one : (void *)&zero) : 0;
}

#endif
