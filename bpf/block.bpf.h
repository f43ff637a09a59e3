/* SPDX-License-Identifier: (GPL-2.0-only OR MIT OR Apache-2.0) */
/*
 * Decides whether a packet is blocked: by its source when it is received, by its destination when it is sent. Most
 * packets are done after one load from one of the two bitmaps of 2 MiB: the one for IPv4 has a bit for each /24 that
 * an entry touches, the one for IPv6 a bit for each hash of the first 32 bits and for each hash of a prefix with its
 * length. A set bit means only that a look-up is worthwhile: then a hash table is queried for each prefix length in
 * use, the longest first. The allowlist has a bitmap of its own, small enough to stay in the processor's cache, so
 * that few packets query its tables. Bits are set before an entry needs them and cleared after it is removed, so that
 * user space can change everything while packets pass.
 *
 * Any failure lets the packet pass.
 */
#ifndef BLOCK_BPF_H
#define BLOCK_BPF_H

#include "port.bpf.h"

#define XDP_DROP 1
#define TCX_DROP 2 /* = TC_ACT_SHOT */

/* Set by user space before the load. */
const volatile bool with_blocklist = false;

/* Shared with user space, the only writer. */
struct net_blocklist blocklist SEC(".bss.blocklist");
__u8 marks4[NET_MARK_BYTES] SEC(".bss.marks4");
__u8 marks6[NET_MARK_BYTES] SEC(".bss.marks6");

#define RULES(key_)                                   \
	__uint(type, BPF_MAP_TYPE_HASH);              \
	__uint(max_entries, 1);                       \
	__uint(map_flags, 1 /* BPF_F_NO_PREALLOC */); \
	__uint(key_size, sizeof(key_));               \
	__uint(value_size, sizeof(struct net_rule)) /* the compiler drops types that only an inner map uses */

struct net_rules4 {
	RULES(struct net_prefix4);
};
struct net_rules6 {
	RULES(struct net_prefix6);
};

/* The rules of each list: a map of another size replaces them as a whole. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, NET_LISTS);
	__type(key, __u32);
	__array(values, struct net_rules4);
} rules4 SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, NET_LISTS);
	__type(key, __u32);
	__array(values, struct net_rules6);
} rules6 SEC(".maps");

/* Connections that may continue although their peer is blocked. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, NET_SPARED);
	__uint(map_flags, 1 /* BPF_F_NO_PREALLOC */);
	__type(key, struct net_connection);
	__type(value, __u32);
} spared SEC(".maps");

/* By user space's number for a source. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, NET_SOURCES);
	__type(key, __u32);
	__type(value, struct net_source);
} block_sources SEC(".maps");

static const volatile __u32 list_blocked = NET_LIST_BLOCKED;
static const volatile __u32 list_allowed = NET_LIST_ALLOWED;

/* A packet's transport: ports in host byte order, the protocol number, and whether it is neighbor discovery. */
#define TRANSPORT(number, from, to) ((__u64)(number) << 32 | (__u64)(from) << 16 | (to))
#define TRANSPORT_NUMBER(transport) ((__u32)((transport) >> 32) & 0xff)
#define TRANSPORT_FROM(transport) ((__u32)(transport) >> 16)
#define TRANSPORT_TO(transport) ((__u32)(transport)&0xffff)
#define TRANSPORT_NEIGHBOUR (1ULL << 40)
#define TRANSPORT_EGRESS_SHIFT 41
#define TRANSPORT_DIRECTION(transport) ((__u32)((transport) >> TRANSPORT_EGRESS_SHIFT) & 1)

/* Packets and bytes in one number. */
#define AMOUNT(packets, bytes) ((__u64)(packets) << 32 | (bytes))

/* The verdict on a packet: zero, or the reason and whether it is dropped. */
#define JUDGED(reason) ((reason) + 1)
#define JUDGED_REASON(judged) (((judged)&0xff) - 1)
#define JUDGED_DROP 0x100

static __always_inline bool is_marked(const __u8 *marks, __u32 bit)
{
	return *(const volatile __u8 *)(marks + (bit >> 3 & (NET_MARK_BYTES - 1))) >> (bit & 7) & 1;
}

/* Whether a look-up in the allowlist is worthwhile, by a 16-bit number. */
static __always_inline bool may_be_allowed(__u32 bit)
{
	const volatile __u8 *byte = &blocklist.allowed[bit >> 3 & (NET_ALLOWED_BYTES - 1)];

	return *byte >> (bit & 7) & 1;
}

static __always_inline bool is_marked4(__u32 address)
{
	return is_marked(marks4, bpf_ntohl(address) >> 8);
}

/* By the first 32 bits of an address, as in the packet. */
static __always_inline bool is_marked6(__u32 first)
{
	return is_marked(marks6, (first * NET_MARK_FACTOR) >> 8);
}

/* By a prefix whose bits beyond its length are zero, as numbers in host byte order. */
static __always_inline bool is_marked_prefix6(__u64 high, __u64 low, __u32 length)
{
	__u64 hash = (high ^ length) * 0x9e3779b97f4a7c15ULL;

	hash = (hash ^ hash >> 32 ^ low) * 0xd6e8feb86659fd93ULL;
	return is_marked(marks6, hash >> 40);
}

/*
 * Returns the index of the highest set bit of a nonzero number. Branchless, because the verifier would follow both
 * paths of every branch.
 */
static __always_inline __u32 highest_bit(__u64 bits)
{
	__u32 number = 0, step, i;

#pragma unroll
	for (i = 5; i < 6; i--) {
		__u64 sign = 0 - (bits >> (1u << i));

		/* Otherwise the compiler would see a comparison in it. */
		barrier_var(sign);
		step = sign >> 63 << i;
		bits >>= step;
		number += step;
	}
	return number;
}

static __always_inline bool holds(const struct net_rule *rule, __u64 transport, __u32 now)
{
	__u32 port = TRANSPORT_TO(transport);

	if (!(rule->directions >> TRANSPORT_DIRECTION(transport) & 1))
		return false;
	if (rule->expires && (__s32)(now - rule->expires) >= 0)
		return false;
	if (!rule->protocol)
		return true;
	return rule->protocol == TRANSPORT_NUMBER(transport) && rule->first_port <= port &&
	       port <= rule->last_port;
}

/*
 * Whether a list has the address's prefix of this length, with a rule that applies; a nonzero amount is counted
 * there. Global functions, like all that have a loop or are called in one, so that the verifier checks them once.
 */
#define ASK(list, length) ((__u32)(list) << 8 | (length))

/* Without atomics: each CPU handles one packet at a time, as for all counters. */
static __always_inline void count_source(__u32 source, __u64 amount)
{
	struct net_source *of = bpf_map_lookup_elem(&block_sources, &source);
	struct net_counts *counts;

	if (!of)
		return;
	counts = *(volatile __u32 *)&blocklist.enforce ? &of->by_verdict[NET_VERDICT_DROP]
						       : &of->by_verdict[NET_VERDICT_PASS];
	counts->packets += amount >> 32;
	counts->bytes += amount & 0xffffffff;
}

static __always_inline bool answer(struct net_rule *rule, __u64 transport, __u64 amount)
{
	__u32 now = bpf_ktime_get_coarse_ns() >> NET_TICK_SHIFT;

	if (!rule || !holds(rule, transport, now))
		return false;
	if (amount) {
		__sync_fetch_and_add(&rule->packets, amount >> 32);
		__sync_fetch_and_add(&rule->bytes, amount & 0xffffffff);
		rule->last = now;
		count_source(rule->source, amount);
	}
	return true;
}

static __always_inline void *list_of(void *lists, __u32 ask)
{
	return bpf_map_lookup_elem(lists,
				   ask >> 8 == NET_LIST_BLOCKED ? (void *)&list_blocked : (void *)&list_allowed);
}

__noinline __u32 ask4(__u32 host, __u32 ask, __u64 transport, __u64 amount)
{
	__u32 length = ask & 0x3f;
	struct net_prefix4 key = {
		.address = bpf_htonl(host & (__u32)(0xffffffff00000000ULL >> length)),
		.length = length,
	};
	void *rules;

	if (!with_blocklist)
		return 0;
	rules = list_of(&rules4, ask);
	return rules && answer(bpf_map_lookup_elem(rules, &key), transport, amount);
}

__noinline __u32 ask6(__u64 high, __u64 low, __u32 ask, __u64 transport, __u64 amount)
{
	struct net_prefix6 key = { .length = ask & 0xff };
	void *rules;

	if (!with_blocklist)
		return 0;
	if (key.length < 64) {
		high &= ~(-1ULL >> key.length);
		low = 0;
	} else if (key.length < 128) {
		low &= ~(-1ULL >> (key.length - 64));
	}
	if (!is_marked_prefix6(high, low, key.length))
		return 0;
	key.high = bpf_cpu_to_be64(high);
	key.low = bpf_cpu_to_be64(low);
	rules = list_of(&rules6, ask);
	return rules && answer(bpf_map_lookup_elem(rules, &key), transport, amount);
}

/*
 * Returns the list's longest prefix that contains the address and whose rule applies, encoded by ASK and marked
 * FOUND; zero if there is none. A nonzero amount is counted there.
 */
#define FOUND (1u << 16)

__noinline __u32 find4(__u32 list, __u32 host, __u64 transport, __u64 amount)
{
	__u64 lengths;
	__u32 i, at;

	if (!with_blocklist)
		return 0;
	at = list * (sizeof(struct net_lengths) / 8);
	barrier_var(at);
	lengths = ((volatile __u64 *)blocklist.lengths)[at & (sizeof(blocklist.lengths) / 8 - 1)];
#pragma clang loop unroll(disable)
	for (i = 0; i < 33 && lengths; i++) {
		__u32 length = highest_bit(lengths);

		lengths ^= 1ULL << length;
		if (ask4(host, ASK(list, length), transport, amount))
			return FOUND | ASK(list, length);
	}
	return 0;
}

/*
 * Restricts the search to the lengths in one of the words, whose number is encoded above the list's: all words in one
 * loop are more than the verifier can follow.
 */
#define LENGTHS(word, list) ((__u32)(word) << 8 | (list))

__noinline __u32 find6_in(__u64 high, __u64 low, __u32 where, __u64 transport, __u64 amount)
{
	__u32 i, at, list = where & 0xff, word = where >> 8;
	__u64 lengths;

	if (!with_blocklist)
		return 0;
	at = list * (sizeof(struct net_lengths) / 8) + 1 + word;
	barrier_var(at);
	lengths = ((volatile __u64 *)blocklist.lengths)[at & (sizeof(blocklist.lengths) / 8 - 1)];
#pragma clang loop unroll(disable)
	for (i = 0; i < 64 && lengths; i++) {
		__u32 length = highest_bit(lengths);

		lengths ^= 1ULL << length;
		length += 64 * word;
		if (ask6(high, low, ASK(list, length), transport, amount))
			return FOUND | ASK(list, length);
	}
	return 0;
}

static __always_inline __u32 find6(__u32 list, __u64 high, __u64 low, __u64 transport, __u64 amount)
{
	__u32 found = find6_in(high, low, LENGTHS(2, list), transport, amount);

	if (!found)
		found = find6_in(high, low, LENGTHS(1, list), transport, amount);
	return found ? found : find6_in(high, low, LENGTHS(0, list), transport, amount);
}

/* From and to which UDP ports DHCP servers answer (RFC 2131, RFC 8415). */
#define DHCP_ANSWER (67u << 16 | 68)
#define DHCPV6_ANSWER (547u << 16 | 546)

/*
 * Whether a packet passes whatever its addresses: it belongs to the exporter's own listeners or to a spared
 * connection, or is neighbor discovery, without which no host on the link could be reached, or this machine's DHCP,
 * without which it would lose its own address. Takes the address of the remote end, as in net_talker. A separate
 * function, so that the functions that look up prefixes do not need its stack.
 */
__noinline __u32 is_exempt(__u64 high, __u64 low, __u64 transport)
{
	struct net_connection connection = { .source = { high, high >> 32, low, low >> 32 } };
	bool is_sent = TRANSPORT_DIRECTION(transport) == NET_EGRESS;
	__u32 own = is_sent ? TRANSPORT_FROM(transport) : TRANSPORT_TO(transport), i;

	if (!with_blocklist)
		return false;
	if (transport & TRANSPORT_NEIGHBOUR)
		return true;
	own &= 0xffff;
	if (TRANSPORT_NUMBER(transport) == IPPROTO_UDP) {
		__u32 peer = is_sent ? TRANSPORT_TO(transport) : TRANSPORT_FROM(transport) & 0xffff;

		peer = peer << 16 | own;
		return peer == DHCP_ANSWER || peer == DHCPV6_ANSWER;
	}
	if (TRANSPORT_NUMBER(transport) != IPPROTO_TCP || !own)
		return false;
#pragma unroll
	for (i = 0; i < NET_OWN_PORTS; i++) {
		if (*(volatile __u32 *)&blocklist.own_ports[i] == own)
			return true;
	}
	if (!*(volatile __u32 *)&blocklist.spares)
		return false;
	connection.source_port = is_sent ? TRANSPORT_TO(transport) : TRANSPORT_FROM(transport);
	connection.destination_port = own;
	return bpf_map_lookup_elem(&spared, &connection) != 0;
}

static __always_inline __u32 judged(bool whole)
{
	return JUDGED(whole ? NET_REASON_BLOCKLIST : NET_REASON_CIDR) |
	       (*(volatile __u32 *)&blocklist.enforce ? JUDGED_DROP : 0);
}

__noinline __u32 judge4(__u32 address, __u64 transport, __u64 amount)
{
	__u32 host = bpf_ntohl(address), found;

	if (!with_blocklist)
		return 0;
	if (is_exempt(0, (__u64)address << 32 | bpf_htonl(0xffff), transport) ||
	    (may_be_allowed(host >> 16) && find4(NET_LIST_ALLOWED, host, transport, 0)))
		return 0;
	found = find4(NET_LIST_BLOCKED, host, transport, amount);
	return found ? judged((found & 0xff) == 32) : 0;
}

__noinline __u32 judge6(__u64 high, __u64 low, __u64 transport, __u64 amount)
{
	__u32 found, first = high;

	if (!with_blocklist)
		return 0;
	if (is_exempt(high, low, transport))
		return 0;
	high = bpf_be64_to_cpu(high);
	low = bpf_be64_to_cpu(low);
	if (may_be_allowed(first * NET_MARK_FACTOR >> 16) && find6(NET_LIST_ALLOWED, high, low, transport, 0))
		return 0;
	found = find6(NET_LIST_BLOCKED, high, low, transport, amount);
	return found ? judged((found & 0xff) == 128) : 0;
}

static __always_inline __u64 transport_of(const struct frame *f, __u64 what)
{
	__u32 at = IS_L4_AT(what);
	void *l4;

	barrier_var(at);
	at &= L4_AT_MASK;
	l4 = f->data + at;
	if (!at || l4 + 4 > f->end)
		return TRANSPORT(IS_NUMBER(what), 0, 0);
	return TRANSPORT(IS_NUMBER(what), be16_at(l4), be16_at(l4 + 2));
}

/* Whether it is router or neighbor discovery (RFC 4861): with a hop limit that no packet from beyond the link has. */
static __always_inline bool is_neighbour_discovery(const struct frame *f, const void *ip)
{
	const __u8 *icmp = ip + IPV6_HEADER;

	if ((void *)icmp + 1 > f->end || *(__u8 *)(ip + 6) != IPPROTO_ICMPV6 || *(__u8 *)(ip + 7) != 255)
		return false;
	return *icmp >= 133 && *icmp <= 137;
}

/* Offset of the remote end's address in an IP header. */
#define PEER4(egress) ((egress) ? 16 : 12)
#define PEER6(egress) ((egress) ? 24 : 8)

/* Whether a look-up is worthwhile for a frame with an IP header. */
static __always_inline bool is_marked_frame(const struct frame *f, __u64 what, bool egress)
{
	void *ip = f->data + IS_IP_AT(what);

	/* Each branch has its own bounds check: the verifier of Linux 6.1 does not carry one over to the other. */
	if (IS_CELL(what) >= IS(NET_FAMILY_IPV6, 0))
		return ip + IPV6_HEADER <= f->end && is_marked6(*(__u32 *)(ip + PEER6(egress)));
	barrier_var(ip);
	return ip + IPV4_HEADER <= f->end && is_marked4(*(__u32 *)(ip + PEER4(egress)));
}

/* Returns the verdict on such a frame: zero if it passes. */
static __always_inline __u32 judge(const struct frame *f, __u64 what, bool egress, __u64 amount)
{
	void *ip = f->data + IS_IP_AT(what);
	__u64 transport = transport_of(f, what) | (__u64)egress << TRANSPORT_EGRESS_SHIFT;

	if (IS_CELL(what) >= IS(NET_FAMILY_IPV6, 0)) {
		if (ip + IPV6_HEADER > f->end)
			return 0;
		if (IS_CELL(what) == IS(NET_FAMILY_IPV6, NET_PROTOCOL_ICMPV6) && is_neighbour_discovery(f, ip))
			transport |= TRANSPORT_NEIGHBOUR;
		ip += PEER6(egress);
		return judge6(*(__u64 *)ip, *(__u64 *)(ip + 8), transport, amount);
	}
	barrier_var(ip);
	if (ip + IPV4_HEADER > f->end)
		return 0;
	return judge4(*(__u32 *)(ip + PEER4(egress)), transport, amount);
}

/* Counts a verdict; returns true if the packet is dropped. */
static __always_inline bool count_judged(struct net_stats *stats, __u32 judged, __u64 packets)
{
	__u32 reason = JUDGED_REASON(judged);

	barrier_var(reason);
	if (reason >= NET_REASON_COUNT)
		return false;
	if (judged & JUDGED_DROP) {
		stats->drops.packets[reason] += packets;
		return true;
	}
	stats->would_drop.packets[reason] += packets;
	return false;
}

#endif
