/* SPDX-License-Identifier: (GPL-2.0-only OR MIT OR Apache-2.0) */
/*
 * The only parser of frames. It never reads past `end`, trusts no length field, and reports what is wrong with a
 * frame instead of giving up. tests/net/model.rs is the same parser in Rust; a fuzz test compares them.
 *
 * Formats: IEEE 802.1Q, RFC 791 (IPv4), RFC 8200 and 4302 (IPv6 and its extension headers), RFC 2675 (jumbograms),
 * RFC 9293 (TCP), RFC 768 (UDP).
 */
#ifndef PACKET_BPF_H
#define PACKET_BPF_H

#include "net_types.bpf.h"
#include "net_abi.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_core_read.h>

#define ETH_HEADER 14
#define IPV4_HEADER 20
#define IPV6_HEADER 40
#define TCP_HEADER 20
#define UDP_HEADER 8
#define ICMP_HEADER 8
#define ICMPV6_HEADER 4
#define GRE_HEADER 4

#define ETHERTYPE_IPV4 0x0800
#define ETHERTYPE_IPV6 0x86dd
#define ETHERTYPE_VLAN 0x8100
#define ETHERTYPE_QINQ 0x88a8

#define IPPROTO_HOPOPTS 0
#define IPPROTO_ICMP 1
#define IPPROTO_IPIP 4
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_IPV6 41
#define IPPROTO_ROUTING 43
#define IPPROTO_FRAGMENT 44
#define IPPROTO_GRE 47
#define IPPROTO_AH 51
#define IPPROTO_ICMPV6 58
#define IPPROTO_DSTOPTS 60
#define IPPROTO_MH 135
#define IPPROTO_HIP 139
#define IPPROTO_MPLS 137
#define IPPROTO_SHIM6 140

/* A frame to parse, in an XDP or a TC program. */
struct frame {
	void *data, *end;
	__u32 length; /* more than end - data if the frame is in several buffers */
	__u32 link; /* enum net_link */
	__u32 skipped; /* outer headers in front of `data` */
	__u32 network; /* offset of the network header, on an opaque link */
	struct xdp_md *xdp;
	struct __sk_buff *skb;
};

/*
 * What a frame is, in one number, so that the common path needs no memory for it and can check with one test whether
 * anything about it is rare: its cell (family and protocol), an error, whether it is a fragment of a larger datagram,
 * its TCP flags and the IANA number of its protocol; and the offsets from the start of the frame of a complete fixed
 * IP header and of a transport header that has ports, zero if there is none.
 */
#define IS(family, protocol) ((__u64)(family)*NET_PROTOCOL_SLOTS + (protocol))
#define IS_CELL(what) ((__u32)(what)&0x1f)
#define PARSE_ERROR(error) ((__u64)(error) << 8)
#define IS_PARSE_ERROR(what) ((__u32)(what) >> 8 & 0xf)
#define FRAGMENT (1ULL << 12)
#define TCP_FLAGS(flags) ((__u64)(flags) << 16)
#define IS_TCP_FLAGS(what) ((__u32)(what) >> 16 & 0xff)
#define NUMBER(number) ((__u64)(number) << 24)
#define IS_NUMBER(what) ((__u32)(what) >> 24)
#define IP_AT(offset) ((__u64)((offset) | 0x80) << 32)
#define HAS_IP(what) ((what) >> 39 & 1)
#define IS_IP_AT(what) ((__u32)((what) >> 32) & 0x1f)
#define L4_AT(offset) ((__u64)(offset) << 40)
#define L4_AT_MASK 0x7fff
#define IS_L4_AT(what) ((__u32)((what) >> 40) & L4_AT_MASK)
_Static_assert(IS(NET_FAMILY_COUNT, 0) <= 32 && NET_PARSE_ERROR_COUNT <= 16, "bits of what a frame is");

static __always_inline __u16 be16_at(const void *p)
{
	return bpf_ntohs(*(const __be16 *)p);
}

/*
 * Parses the transport header at `offset`, from where the datagram has `left` bytes; `what` is the result of the IP
 * header.
 */
static __always_inline __u64 parse_transport(const struct frame *f, __u32 offset, __u32 left, __u64 what)
{
	void *l4 = f->data + offset;

	if (IS_NUMBER(what) == IPPROTO_TCP) {
		__u32 header;

		if (left < TCP_HEADER || l4 + TCP_HEADER > f->end) {
			/* A first fragment with nothing but the ports; the receiver puts it together again. */
			if ((what & FRAGMENT) && left >= 4 && l4 + 4 <= f->end)
				what |= L4_AT(offset);
			return what | PARSE_ERROR(NET_PARSE_ERROR_TRUNCATED);
		}
		header = (*(__u8 *)(l4 + 12) >> 4) * 4;
		if (header < TCP_HEADER || header > left)
			return what | PARSE_ERROR(NET_PARSE_ERROR_HEADER_LENGTH);
		return what | TCP_FLAGS(*(__u8 *)(l4 + 13)) | L4_AT(offset);
	}
	if (IS_NUMBER(what) == IPPROTO_UDP) {
		__u32 length;

		if (left < UDP_HEADER || l4 + UDP_HEADER > f->end)
			return what | PARSE_ERROR(NET_PARSE_ERROR_TRUNCATED);
		length = be16_at(l4 + 4);
		/* In a first fragment this is the length of the whole datagram, in a jumbogram zero. */
		if (length < UDP_HEADER ? length || left <= 0xffff : length > left && !(what & FRAGMENT))
			return what | PARSE_ERROR(NET_PARSE_ERROR_LENGTH);
		return what | L4_AT(offset);
	}
	if ((IS_CELL(what) == IS(NET_FAMILY_IPV4, NET_PROTOCOL_ICMP) && left < ICMP_HEADER) ||
	    (IS_CELL(what) == IS(NET_FAMILY_IPV6, NET_PROTOCOL_ICMPV6) && left < ICMPV6_HEADER))
		return what | PARSE_ERROR(NET_PARSE_ERROR_TRUNCATED);
	return what;
}

static __always_inline __u64 parse_ipv4(const struct frame *f, __u32 at)
{
	__u64 what = IS(NET_FAMILY_IPV4, NET_PROTOCOL_OTHER);
	__u32 room = f->length - at, header, total, offset, number;
	void *ip = f->data + at;

	if (ip + IPV4_HEADER > f->end)
		return what | PARSE_ERROR(NET_PARSE_ERROR_TRUNCATED);
	header = *(__u8 *)ip;
	if (header >> 4 != 4)
		return what | PARSE_ERROR(NET_PARSE_ERROR_VERSION);
	number = *(__u8 *)(ip + 9);
	if (number == IPPROTO_TCP)
		what = IS(NET_FAMILY_IPV4, NET_PROTOCOL_TCP);
	else if (number == IPPROTO_UDP)
		what = IS(NET_FAMILY_IPV4, NET_PROTOCOL_UDP);
	else if (number == IPPROTO_ICMP)
		what = IS(NET_FAMILY_IPV4, NET_PROTOCOL_ICMP);
	what |= NUMBER(number) | IP_AT(at);

	header = (header & 0xf) * 4;
	total = be16_at(ip + 2);
	/* The kernel passes merged TCP segments beyond 64 KiB with a length of zero (BIG TCP). */
	if (total == 0 && room > 0xffff)
		total = room;
	if (header < IPV4_HEADER)
		return what | PARSE_ERROR(NET_PARSE_ERROR_HEADER_LENGTH);
	if (total < header || total > room)
		return what | PARSE_ERROR(NET_PARSE_ERROR_LENGTH);
	offset = be16_at(ip + 6);
	if (offset & 0x3fff) { /* more fragments, or not the first */
		what |= FRAGMENT;
		if (offset & 0x1fff)
			return what;
	}
	return parse_transport(f, at + header, total - header, what);
}

static __always_inline bool is_extension(__u32 next)
{
	return next == IPPROTO_HOPOPTS || next == IPPROTO_ROUTING || next == IPPROTO_FRAGMENT ||
	       next == IPPROTO_AH || next == IPPROTO_DSTOPTS || next == IPPROTO_MH || next == IPPROTO_HIP ||
	       next == IPPROTO_SHIM6;
}

/*
 * Walks the headers between IPv6 and its payload. Returns in one number the offset of the payload from the frame's
 * start, the last next-header value, an error, and whether there was a fragment and it is a later one. `offset` is
 * masked in every iteration so that the verifier sees the same state each time (it stays below 8 * 2048 + 62).
 */
#define EXT_OFFSET_MASK 0x7fff
#define EXT_NEXT_SHIFT 16
#define EXT_ERROR_SHIFT 24
#define EXT_FRAGMENT (1u << 28)
#define EXT_LATER (1u << 29)

static __always_inline __u32 ipv6_extensions(void *data, void *end, __u32 offset, __u32 next, __u32 left)
{
	__u32 flags = 0, error = NET_PARSE_ERROR_EXTENSIONS, i;

	for (i = 0; i <= NET_MAX_EXTENSIONS; i++) {
		void *at;
		__u32 length;

		if (!is_extension(next)) {
			error = NET_PARSE_ERROR_NONE;
			break;
		}
		if (i == NET_MAX_EXTENSIONS)
			break;
		barrier_var(offset);
		offset &= EXT_OFFSET_MASK;
		at = data + offset;
		if (left < 8 || at + 8 > end) {
			error = NET_PARSE_ERROR_TRUNCATED;
			break;
		}
		length = (*(__u8 *)(at + 1) + 1) * 8;
		if (next == IPPROTO_AH) {
			length = (length + 8) / 2;
		} else if (next == IPPROTO_FRAGMENT) {
			__u32 where = be16_at(at + 2);

			length = 8;
			if (where & 0xfff9)
				flags |= EXT_FRAGMENT;
			if (where & 0xfff8) {
				flags |= EXT_LATER;
				next = *(__u8 *)at;
				error = NET_PARSE_ERROR_NONE;
				break;
			}
		}
		if (length > left) {
			error = NET_PARSE_ERROR_HEADER_LENGTH;
			break;
		}
		next = *(__u8 *)at;
		left -= length;
		offset += length;
	}
	return (offset & EXT_OFFSET_MASK) | next << EXT_NEXT_SHIFT | error << EXT_ERROR_SHIFT | flags;
}

/* Global functions, which the verifier checks once and not on every path to them; one per program type. */
__noinline __u32 ipv6_extensions_xdp(struct xdp_md *ctx, __u32 offset, __u32 next, __u32 left)
{
	return ipv6_extensions((void *)(long)ctx->data, (void *)(long)ctx->data_end, offset, next, left);
}

__noinline __u32 ipv6_extensions_tc(struct __sk_buff *ctx, __u32 offset, __u32 next, __u32 left)
{
	return ipv6_extensions((void *)(long)ctx->data, (void *)(long)ctx->data_end, offset, next, left);
}

static __always_inline __u64 parse_ipv6(const struct frame *f, __u32 offset)
{
	__u64 what = IS(NET_FAMILY_IPV6, NET_PROTOCOL_OTHER), rare = IP_AT(offset);
	__u32 next, left, room = f->length - offset - IPV6_HEADER;
	void *ip = f->data + offset;
	bool later = false;

	if (ip + IPV6_HEADER > f->end)
		return what | PARSE_ERROR(NET_PARSE_ERROR_TRUNCATED);
	if (*(__u8 *)ip >> 4 != 6)
		return what | PARSE_ERROR(NET_PARSE_ERROR_VERSION);
	next = *(__u8 *)(ip + 6);
	left = be16_at(ip + 4);
	/* Zero with a hop-by-hop header: a jumbogram, whose length is in an option; or BIG TCP. */
	if (left == 0 && (next == IPPROTO_HOPOPTS || room > 0xffff))
		left = room;
	offset += IPV6_HEADER;
	if (left > room) {
		rare |= PARSE_ERROR(NET_PARSE_ERROR_LENGTH);
	} else if (is_extension(next)) {
		__u32 found = f->xdp ? ipv6_extensions_xdp(f->xdp, offset + f->skipped, next, left)
				     : ipv6_extensions_tc(f->skb, offset + f->skipped, next, left);

		next = found >> EXT_NEXT_SHIFT & 0xff;
		left -= (found & EXT_OFFSET_MASK) - f->skipped - offset;
		offset = (found & EXT_OFFSET_MASK) - f->skipped;
		barrier_var(offset);
		offset &= EXT_OFFSET_MASK;
		rare |= PARSE_ERROR(found >> EXT_ERROR_SHIFT & 0xf) | (found & EXT_FRAGMENT ? FRAGMENT : 0);
		later = (found & EXT_LATER) != 0;
	}
	if (next == IPPROTO_TCP)
		what = IS(NET_FAMILY_IPV6, NET_PROTOCOL_TCP);
	else if (next == IPPROTO_UDP)
		what = IS(NET_FAMILY_IPV6, NET_PROTOCOL_UDP);
	else if (next == IPPROTO_ICMPV6)
		what = IS(NET_FAMILY_IPV6, NET_PROTOCOL_ICMPV6);
	what |= NUMBER(next) | rare;
	if (IS_PARSE_ERROR(rare) || later)
		return what;
	return parse_transport(f, offset, left, what);
}

/*
 * Skips what XDP programs find in front of a packet received through a tunnel. The kernel does not count that, and
 * the device's packets are those inside; but GRE and SIT drivers set the frame's start to the outer headers, and
 * IPsec leaves the Ethernet header in front of which the packet was received.
 */
static __always_inline void skip_outer(struct frame *f)
{
	__u32 number = f->link == NET_LINK_GRE ? IPPROTO_GRE : IPPROTO_IPV6, at, flags;
	void *ip = f->data;

	if (f->link == NET_LINK_ETHERNET || f->link == NET_LINK_OPAQUE || ip + IPV4_HEADER > f->end)
		return;
	if (f->link == NET_LINK_IP) {
		__u32 length;

		at = ETH_HEADER;
		if (ip + ETH_HEADER + 6 > f->end)
			return;
		if (be16_at(ip + 12) == ETHERTYPE_IPV4 && *(__u8 *)(ip + ETH_HEADER) >> 4 == 4)
			length = be16_at(ip + ETH_HEADER + 2);
		else if (be16_at(ip + 12) == ETHERTYPE_IPV6 && *(__u8 *)(ip + ETH_HEADER) >> 4 == 6)
			length = be16_at(ip + ETH_HEADER + 4) + IPV6_HEADER;
		else
			return;
		/* A packet without an Ethernet header may look like one with it, but not with the exact length. */
		if (length != f->length - ETH_HEADER)
			return;
	} else {
		if (*(__u8 *)ip >> 4 != 4)
			return;
		/* SIT devices accept IPv4 and MPLS in IPv4, too. */
		if (*(__u8 *)(ip + 9) != number && (number == IPPROTO_GRE || (*(__u8 *)(ip + 9) != IPPROTO_IPIP &&
									      *(__u8 *)(ip + 9) != IPPROTO_MPLS)))
			return;
		at = (*(__u8 *)ip & 0xf) * 4;
		if (number == IPPROTO_GRE) {
			if (ip + at + GRE_HEADER > f->end)
				return;
			flags = be16_at(ip + at);
			at += GRE_HEADER;
			at += flags & 0x8000 ? 4 : 0; /* checksum */
			at += flags & 0x2000 ? 4 : 0; /* key */
			at += flags & 0x1000 ? 4 : 0; /* sequence number */
		}
	}
	if (at > f->length)
		return;
	f->data += at;
	f->length -= at;
	f->skipped = at;
}

/* include/linux/skbuff.h: the fields that are read, at whatever offset the kernel has them. */
struct sk_buff {
	unsigned char *head, *data;
	__u16 network_header;
} __attribute__((preserve_access_index));

/*
 * Maximum bytes of headers that are skipped in front of a packet; on an opaque link, the maximum offset of the packet
 * (IP_AT has five bits).
 */
#define MOST_OUTER 255
#define MOST_OPAQUE 31

/*
 * The same for TC programs, which can ask where the packet begins: after the headers of any tunnel through which it
 * was received (GRE, SIT, IPsec, FOU) or will be sent (multipoint GRE), and on links of which nothing else is known.
 */
static __always_inline void skip_to_network(struct frame *f)
{
	struct sk_buff *skb = (void *)f->skb;
	__u64 start;
	__u32 at;

	if (f->link == NET_LINK_ETHERNET)
		return;
	start = (__u64)BPF_CORE_READ(skb, head) + BPF_CORE_READ(skb, network_header);
	start -= (__u64)BPF_CORE_READ(skb, data);
	/* A packet sent by a raw socket may have no network header. */
	at = start > MOST_OUTER || start > f->length ? 0 : start;
	barrier_var(at);
	at &= MOST_OUTER;
	if (f->link == NET_LINK_OPAQUE) {
		f->network = at & MOST_OPAQUE;
		return;
	}
	f->data += at;
	f->length -= at;
	f->skipped = at;
}

/* Returns the EtherType of a packet without an Ethernet header, zero if unknown. */
static __always_inline __u32 type_of_packet(const struct frame *f)
{
	__u32 version;

	if (f->link == NET_LINK_OPAQUE)
		return f->skb ? bpf_ntohs(f->skb->protocol) : 0;
	version = *(__u8 *)f->data >> 4;
	return version == 4 ? ETHERTYPE_IPV4 : version == 6 ? ETHERTYPE_IPV6 : 0;
}

/* Parses a frame. */
static __always_inline __u64 parse_frame(const struct frame *f)
{
	__u64 other = IS(NET_FAMILY_OTHER, NET_PROTOCOL_OTHER);
	__u32 type, i, offset = ETH_HEADER;

	if (f->link != NET_LINK_ETHERNET) {
		if (f->link != NET_LINK_OPAQUE && f->data + 1 > f->end)
			return other | PARSE_ERROR(NET_PARSE_ERROR_TRUNCATED);
		type = type_of_packet(f);
		offset = f->network;
		goto network;
	}
	if (f->data + ETH_HEADER > f->end)
		return other | PARSE_ERROR(NET_PARSE_ERROR_TRUNCATED);
	type = be16_at(f->data + 12);
#pragma unroll
	for (i = 0; i < NET_MAX_VLAN_TAGS; i++) {
		if (type != ETHERTYPE_VLAN && type != ETHERTYPE_QINQ)
			break;
		if (f->data + offset + 4 > f->end)
			return other | PARSE_ERROR(NET_PARSE_ERROR_TRUNCATED);
		type = be16_at(f->data + offset + 2);
		offset += 4;
	}
network:
	if (type == ETHERTYPE_IPV4)
		return parse_ipv4(f, offset);
	if (type == ETHERTYPE_IPV6)
		return parse_ipv6(f, offset);
	return other;
}

#endif
