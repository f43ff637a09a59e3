/* SPDX-License-Identifier: (GPL-2.0-only OR MIT OR Apache-2.0) */
/* The short parser of common frames. */
#ifndef COMMON_BPF_H
#define COMMON_BPF_H

#include "packet.bpf.h"

/*
 * Returns what parse_frame() returns for the most common frames: a valid TCP segment or UDP datagram directly in IPv4
 * without options or in IPv6 without extensions, untagged, and long enough for a TCP header. Zero for all others. It
 * exists only for speed; a fuzz test checks it against the same model.
 *
 * Every instruction costs a tenth of a nanosecond here: differences are compared as unsigned numbers, so that one
 * comparison catches both what is too short (it wraps around) and what is too long.
 */
static __always_inline __u64 common_transport(const struct frame *f, __u32 ip_header, __u32 number, __u32 datagram,
					      __u64 what)
{
	const __u32 l4_at = ETH_HEADER + ip_header;
	void *l4 = f->data + l4_at;
	__u32 room = f->length - l4_at - TCP_HEADER, flags = 0;

	/*
	 * Bytes of the datagram beyond a plain TCP header; the frame has been checked to have room for that header.
	 */
	datagram -= TCP_HEADER;
	if (datagram > room)
		return 0;
	if (number == IPPROTO_TCP) {
		what |= NET_PROTOCOL_TCP;
		flags = *(__be16 *)(l4 + 12);
		if (((flags & bpf_htons(0xf000)) >> 2) - TCP_HEADER > datagram)
			return 0;
		flags >>= 8;
	} else if (number == IPPROTO_UDP) {
		what |= NET_PROTOCOL_UDP;
		if ((__u32)be16_at(l4 + 4) - UDP_HEADER > datagram + TCP_HEADER - UDP_HEADER)
			return 0;
	} else {
		return 0;
	}
	return what | TCP_FLAGS(flags) | NUMBER(number) | IP_AT(ETH_HEADER) | L4_AT(l4_at);
}

static __always_inline __u64 parse_common(const struct frame *f)
{
	void *ip = f->data + ETH_HEADER;
	/* EtherType, version, and in IPv4 the header's length; read again for IPv6 rather than kept. */
	volatile __be32 *type = f->data + 12;

	if (ip + IPV4_HEADER + TCP_HEADER > f->end)
		return 0;
	if ((*type & bpf_htonl(0xffffff00)) == bpf_htonl(ETHERTYPE_IPV4 << 16 | 0x4500)) {
		if (*(__be16 *)(ip + 6) & bpf_htons(0x3fff))
			return 0;
		return common_transport(f, IPV4_HEADER, *(__u8 *)(ip + 9), be16_at(ip + 2) - IPV4_HEADER,
					IS(NET_FAMILY_IPV4, 0));
	}
	if ((*type & bpf_htonl(0xfffff000)) == bpf_htonl((__u32)ETHERTYPE_IPV6 << 16 | 0x6000)) {
		if (ip + IPV6_HEADER + TCP_HEADER > f->end)
			return 0;
		return common_transport(f, IPV6_HEADER, *(__u8 *)(ip + 6), be16_at(ip + 4),
					IS(NET_FAMILY_IPV6, 0));
	}
	return 0;
}

#endif
