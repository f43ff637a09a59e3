/* SPDX-License-Identifier: (GPL-2.0-only OR MIT OR Apache-2.0) */
/*
 * The short way of what nearly all frames are, where nothing but statistics is wanted: a sound TCP segment that
 * neither opens nor closes a connection, or a sound UDP datagram, directly in IPv4 without options or in IPv6 without
 * extensions, untagged, of 54 (74) to 1536 bytes. All others go the long way; the fuzz holds both to one model.
 *
 * Speed is a matter of instructions, of branches above all: there are some fifty of the first before a packet
 * costs 5 ns. So differences are compared without a sign, where one comparison finds both what is too short (it wraps
 * around) and what is too long; a size is its own index; and the counters lie in one array, which a CPU finds its part
 * of in half the time that looking up a per-CPU map takes.
 */
#ifndef PLAIN_BPF_H
#define PLAIN_BPF_H

#include "packet.bpf.h"

/* One for each CPU, so that nothing is atomic: user space makes it as long. */
struct net_plain plain[1] SEC(".bss.plain");
/* CPUs, rounded up to a power of two, less one: the verifier of Linux 6.1 knows no bound of a CPU's number. */
const volatile __u64 cpu_mask = 0;

/* bpf_get_smp_processor_id, as it leaves its register: declared with 32 bits it would be cut to them once more. */
static __u64 (*const this_cpu)(void) = (void *)8;

/* Counts a frame of `last` + 1 bytes; false if it is too large. */
static __always_inline bool count_plain(__u64 last, enum net_family family, enum net_protocol protocol)
{
	__u64 row = (family - NET_FAMILY_IPV4) * 2 + (protocol - NET_PROTOCOL_TCP), cpu;
	struct net_plain *mine = plain;

	if (last >= NET_PLAIN_STEPS * 64)
		return false;
	cpu = this_cpu() & cpu_mask;
	/* Or the compiler believes that there is only the first, and keeps more registers than one over the call. */
	barrier_var(mine);
	barrier_var(last);
	mine += cpu;
	mine->rows[row].bytes += last;
	last = last >> 3 & 0xf8;
	barrier_var(last);
	++*(__u64 *)((void *)mine->rows[row].packets + last);
	return true;
}

/*
 * Whether the header is not longer than the segment, which has `more` bytes beyond the shortest one, and no flag is
 * set that opens or closes a connection. Those are in the word's high byte here, and make it look like too long a
 * header; what is left is the length in units of a quarter byte.
 */
static __always_inline bool is_plain_tcp(const void *tcp, __u32 more)
{
	__u32 header = *(const __be16 *)(tcp + 12) & bpf_htons(0xf000 | NET_TH_FIN | NET_TH_SYN | NET_TH_RST);

	header -= TCP_HEADER * 4;
	return header <= (60 - TCP_HEADER) * 4 && header / 4 <= more;
}

/* The same of a datagram, of which `more` are the bytes beyond the length of a TCP header. */
static __always_inline bool is_plain_udp(const void *udp, __u32 more)
{
	return (__u32)be16_at(udp + 4) - TCP_HEADER <= more;
}

/* Counts the frame; false if it is not plain. */
static __always_inline bool plain_frame(struct xdp_md *ctx)
{
	void *end = (void *)(long)ctx->data_end, *data = (void *)(long)ctx->data, *ip = data + ETH_HEADER;
	void *shortest = ip + IPV4_HEADER + TCP_HEADER;
	__u32 kind, is, more;
	__u64 room;

	if (shortest > end)
		return false;
	/* EtherType, version, and the header's length in IPv4, half of the traffic class in IPv6. */
	kind = *(__be32 *)(data + 12) & bpf_htonl(0xffffff00);
	if (kind == bpf_htonl(ETHERTYPE_IPV4 << 16 | 0x4500)) {
		/* Not a fragment, and the protocol. */
		is = *(__be32 *)(ip + 6) & bpf_htonl(0x3fff00ff);
		more = be16_at(ip + 2) - (IPV4_HEADER + TCP_HEADER);
		room = end - shortest;
		if (more > (__u32)room)
			return false;
		room += IPV4_HEADER + TCP_HEADER + ETH_HEADER - 1;
		if (is == bpf_htonl(IPPROTO_TCP))
			return is_plain_tcp(ip + IPV4_HEADER, more) &&
			       count_plain(room, NET_FAMILY_IPV4, NET_PROTOCOL_TCP);
		return is == bpf_htonl(IPPROTO_UDP) && is_plain_udp(ip + IPV4_HEADER, more) &&
		       count_plain(room, NET_FAMILY_IPV4, NET_PROTOCOL_UDP);
	}
	if (kind == bpf_htonl((__u32)ETHERTYPE_IPV6 << 16 | 0x6000)) {
		shortest = ip + IPV6_HEADER + TCP_HEADER;
		if (shortest > end)
			return false;
		is = *(__u8 *)(ip + 6);
		more = be16_at(ip + 4) - TCP_HEADER;
		room = end - shortest;
		if (more > (__u32)room)
			return false;
		room += IPV6_HEADER + TCP_HEADER + ETH_HEADER - 1;
		if (is == IPPROTO_TCP)
			return is_plain_tcp(ip + IPV6_HEADER, more) &&
			       count_plain(room, NET_FAMILY_IPV6, NET_PROTOCOL_TCP);
		return is == IPPROTO_UDP && is_plain_udp(ip + IPV6_HEADER, more) &&
		       count_plain(room, NET_FAMILY_IPV6, NET_PROTOCOL_UDP);
	}
	return false;
}

#endif
