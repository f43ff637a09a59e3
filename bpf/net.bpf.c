/* SPDX-License-Identifier: (GPL-2.0-only OR MIT OR Apache-2.0) */
/*
 * Counts packets that cross interfaces: XDP or TC (TCX) on ingress, TC on egress. Nothing is modified or delayed, and
 * packets are dropped only if they come from or go to an address that the configuration blocks and enforces. A
 * program is loaded once for all interfaces of a network namespace (port.bpf.h), when the first one needs it.
 *
 * Common frames have a fast path of their own without calls, and everything else goes through a global function,
 * whose registers and stack cost the common path nothing.
 */
#include "packet.bpf.h"
#include "common.bpf.h"
#include "fast.bpf.h"
#include "block.bpf.h"
#include "talkers.bpf.h"

/* Makes the build generate the Rust side of the enums, and of structs that no map uses by name. */
const volatile struct {
	enum net_verdict verdict;
	enum net_reason reason;
	enum net_family family;
	enum net_protocol protocol;
	enum net_parse_error error;
	enum net_tcp_kind tcp;
	enum net_size size;
	enum net_fast_shortest shortest;
	enum net_link link;
	enum net_direction direction;
	enum net_list list;
	enum net_switch switches;
	struct net_prefix4 prefix4;
	struct net_prefix6 prefix6;
	struct net_rule rule;
} names;

/* Bytes that contain all headers of a packet, except for long chains of long IPv6 extension headers. */
#define HEADERS 512

/* Counts a frame received by XDP. */
static __always_inline void account_xdp(const struct frame *f, struct net_stats *stats, __u64 what, __u64 port,
					bool talkers)
{
	struct net_row *row = row_of(stats->rows[NET_VERDICT_PASS][0], what);

	if (!row)
		return;
	/* XDP frames have at most 64 KiB in all their buffers; the table goes up to 128 KiB. */
	count_packets(row, f->length, 1, false);
	row->bytes += f->length;
	if (what & RARE)
		count_rare(stats, what, 1);
	count_wanted(stats, f, what);
	if (with_cidrs && HAS_IP(what) && !IS_PARSE_ERROR(what))
		count_cidrs(&stats->cidrs, f, what, false, 1, f->length);
	if (talkers && HAS_IP(what) && !IS_PARSE_ERROR(what))
		track(f, what, stats, PORT_ID(port), false, 1, f->length);
}

static __always_inline struct frame xdp_frame(struct xdp_md *ctx, __u64 port, bool pieces)
{
	struct frame f = { (void *)(long)ctx->data, (void *)(long)ctx->data_end, .xdp = ctx };

	f.length = pieces ? bpf_xdp_get_buff_len(ctx) : f.end - f.data;
	f.link = PORT_LINK(port);
	return f;
}

/*
 * Counts a frame whose source may be blocked; returns true if it is dropped. Global functions, so that the verifier
 * checks them once and not on every path to them.
 */
__noinline __u32 drops_xdp(struct xdp_md *ctx, __u64 what)
{
	struct net_stats *stats;
	struct net_row *row;
	struct frame f;
	__u32 judged;
	__u64 port;

	if (!with_blocklist)
		return false;
	port = port_of(ctx->ingress_ifindex);
	stats = stats_of(PORT_ID(port), false);
	if (!stats)
		return false;
	f = xdp_frame(ctx, port, true);
	skip_outer(&f);
	judged = judge(&f, what, false, AMOUNT(1, f.length));
	if (!judged || !count_judged(stats, judged, 1))
		return false;
	row = row_of(stats->rows[NET_VERDICT_DROP][0], what);
	if (row) {
		count_packets(row, f.length, 1, true);
		row->bytes += f.length;
	}
	if (what & RARE)
		count_rare(stats, what, 1);
	return true;
}

#define MAY_DROP(f, what, egress) (with_blocklist && HAS_IP(what) && is_marked_frame(f, what, egress))

static __always_inline int ingress_any(struct xdp_md *ctx, bool talkers, bool pieces)
{
	__u64 port = port_of(ctx->ingress_ifindex), what;
	struct net_stats *stats = stats_of(PORT_ID(port), false);
	struct frame f = xdp_frame(ctx, port, pieces);

	if (stats) {
		skip_outer(&f);
		what = parse_frame(&f);
		if (MAY_DROP(&f, what, false) && drops_xdp(ctx, what))
			return XDP_DROP;
		account_xdp(&f, stats, what, port, talkers);
	}
	return XDP_PASS;
}

__noinline int ingress_any_plain(struct xdp_md *ctx)
{
	return ingress_any(ctx, false, false);
}

__noinline int ingress_any_talkers(struct xdp_md *ctx)
{
	return ingress_any(ctx, true, false);
}

/* No argument: without a body in C, the function's type information has no name for it, which the kernel rejects. */
SEC("xdp")
__attribute__((naked)) int net_ingress(void)
{
	COUNT_FAST(ingress_any_plain);
}

/* The same where sources may be blocked: marked ones take the slow path. */
SEC("xdp")
__attribute__((naked)) int net_ingress_blocklist(void)
{
	COUNT_FAST_UNMARKED(ingress_any_plain, marks4, marks6);
}

/* Counts common frames without a call, in the same counters as all others. */
static __always_inline int ingress_common(struct xdp_md *ctx, bool talkers)
{
	__u64 port = port_of(ctx->ingress_ifindex), what;
	struct net_stats *stats = stats_of(PORT_ID(port), false);
	struct frame f;

	if (!stats)
		return XDP_PASS;
	f = xdp_frame(ctx, port, false);
	what = f.link == NET_LINK_ETHERNET ? parse_common(&f) : 0;
	if (!what)
		return talkers ? ingress_any_talkers(ctx) : ingress_any_plain(ctx);
	if (MAY_DROP(&f, what, false) && drops_xdp(ctx, what))
		return XDP_DROP;
	account_xdp(&f, stats, what, port, talkers);
	return XDP_PASS;
}

/* For interfaces that have no fast-path counters, or no Ethernet header. */
SEC("xdp")
int net_ingress_slow(struct xdp_md *ctx)
{
	return ingress_common(ctx, false);
}

SEC("xdp")
int net_ingress_talkers(struct xdp_md *ctx)
{
	return ingress_common(ctx, true);
}

/* Frames in several buffers: for a large MTU in native mode. */
SEC("xdp.frags")
int net_ingress_frags(struct xdp_md *ctx)
{
	return ingress_any(ctx, with_talkers, true);
}

/*
 * Returns the bytes of headers that each segment of a packet has, as far as the frame was parsed; zero if unknown. A
 * packet inside a tunnel is segmented after headers that were not parsed.
 */
static __always_inline __u32 segment_headers(const struct frame *f, __u64 what)
{
	__u32 at = IS_L4_AT(what);
	void *l4;

	barrier_var(at);
	at &= L4_AT_MASK;
	l4 = f->data + at;
	if (!at || l4 + UDP_HEADER > f->end)
		return 0;
	if (IS_NUMBER(what) != IPPROTO_TCP)
		return at + UDP_HEADER;
	if (l4 + TCP_HEADER > f->end)
		return 0;
	return at + (*(__u8 *)(l4 + 12) >> 4) * 4;
}

/*
 * A packet of the network stack may be one that the NIC has merged from several, or that will still be segmented into
 * as many: it counts as those, each with a copy of the headers. Packets from a virtual machine have the size of the
 * segments but not their number. On egress, the kernel itself has summed up their bytes (wire_len).
 */
struct segments {
	__u32 packets, bytes;
};

static __always_inline struct segments segments_of(const struct frame *f, __u64 what, bool egress)
{
	__u32 packets = 1, bytes = f->length, size = f->skb->gso_size, headers;

	if (size) {
		headers = segment_headers(f, what);
		packets = f->skb->gso_segs;
		if (!packets)
			packets = (f->length - headers + size - 1) / size;
		if (packets < 1 || packets > 65535)
			packets = 1;
		bytes += (packets - 1) * headers;
		if (egress && f->skb->wire_len > f->length + f->skipped)
			bytes = f->skb->wire_len - f->skipped * packets;
	}
	return (struct segments){ packets, bytes };
}

/* All segments but the last are equally long. */
static __always_inline void count_segments(const struct frame *f, struct net_row *row, struct segments s)
{
	__u32 last = s.bytes;

	if (s.packets > 1) {
		__u32 full = (s.bytes - f->length) / (s.packets - 1) + f->skb->gso_size;

		/* For unequal segments (SCTP) this is not a size. */
		if (full * (s.packets - 1) >= s.bytes)
			full = s.bytes / s.packets;
		count_packets(row, full, s.packets - 1, true);
		last -= full * (s.packets - 1);
	}
	count_packets(row, last, 1, true);
	row->bytes += s.bytes;
}

static __always_inline void account_tc(const struct frame *f, struct net_stats *stats, __u64 what, __u64 port,
				       bool egress)
{
	struct net_row *row = row_of(stats->rows[NET_VERDICT_PASS][0], what);
	struct segments s;

	if (!row)
		return;
	s = segments_of(f, what, egress);
	count_segments(f, row, s);
	if (what & RARE)
		count_rare(stats, what, s.packets);
	count_wanted(stats, f, what);
	if (with_cidrs && HAS_IP(what) && !IS_PARSE_ERROR(what))
		count_cidrs(&stats->cidrs, f, what, egress, s.packets, s.bytes);
	if (with_talkers && HAS_IP(what) && !IS_PARSE_ERROR(what))
		track(f, what, stats, PORT_ID(port), egress, s.packets, s.bytes);
}

static __always_inline struct frame skb_frame(struct __sk_buff *ctx, __u64 port)
{
	struct frame f = { (void *)(long)ctx->data, (void *)(long)ctx->data_end, ctx->len, .skb = ctx };

	f.link = PORT_LINK(port);
	return f;
}

static __always_inline struct frame skb_packet(struct __sk_buff *ctx, __u64 port)
{
	struct frame f = skb_frame(ctx, port);

	skip_to_network(&f);
	return f;
}

static __always_inline __u32 drops_tc(struct __sk_buff *ctx, __u64 what, bool egress)
{
	struct net_stats *stats;
	struct segments s;
	struct net_row *row;
	struct frame f;
	__u32 judged;
	__u64 port;

	if (!with_blocklist)
		return false;
	port = port_of(ctx->ifindex);
	stats = stats_of(PORT_ID(port), egress);
	if (!stats)
		return false;
	f = skb_packet(ctx, port);
	s = segments_of(&f, what, egress);
	judged = judge(&f, what, egress, AMOUNT(s.packets, s.bytes));
	if (!judged || !count_judged(stats, judged, s.packets))
		return false;
	row = row_of(stats->rows[NET_VERDICT_DROP][0], what);
	if (row)
		count_segments(&f, row, s);
	if (what & RARE)
		count_rare(stats, what, s.packets);
	return true;
}

/*
 * One for each direction: if an address may be at either of two offsets, the verifier of Linux 6.1 does not know that
 * it is in the packet.
 */
__noinline __u32 drops_received(struct __sk_buff *ctx, __u64 what)
{
	return drops_tc(ctx, what, false);
}

__noinline __u32 drops_sent(struct __sk_buff *ctx, __u64 what)
{
	return drops_tc(ctx, what, true);
}

#define DROPS_TC(ctx, what, egress) ((egress) ? drops_sent(ctx, what) : drops_received(ctx, what))

static __always_inline int tc_any(struct __sk_buff *ctx, bool egress)
{
	__u64 port = port_of(ctx->ifindex), what;
	struct net_stats *stats = stats_of(PORT_ID(port), egress);
	struct frame f;

	if (!stats)
		return TCX_NEXT;
	f = skb_packet(ctx, port);
	what = parse_frame(&f);
	if (IS_PARSE_ERROR(what) == NET_PARSE_ERROR_TRUNCATED && f.end - f.data < f.length) {
		/* Some headers are not in the linear part: pull them in and parse again. */
		bpf_skb_pull_data(ctx, ctx->len < HEADERS ? ctx->len : HEADERS);
		f = skb_packet(ctx, port);
		what = parse_frame(&f);
	}
	if (MAY_DROP(&f, what, egress) && DROPS_TC(ctx, what, egress))
		return TCX_DROP;
	account_tc(&f, stats, what, port, egress);
	return TCX_NEXT;
}

__noinline int ingress_any_tc(struct __sk_buff *ctx)
{
	return tc_any(ctx, false);
}

__noinline int egress_any(struct __sk_buff *ctx)
{
	return tc_any(ctx, true);
}

static __always_inline int tc_common(struct __sk_buff *ctx, bool egress)
{
	__u64 port = port_of(ctx->ifindex), what;
	struct net_stats *stats = stats_of(PORT_ID(port), egress);
	struct frame f;

	if (!stats)
		return TCX_NEXT;
	f = skb_frame(ctx, port);
	what = f.link == NET_LINK_ETHERNET ? parse_common(&f) : 0;
	if (!what)
		return egress ? egress_any(ctx) : ingress_any_tc(ctx);
	if (MAY_DROP(&f, what, egress) && DROPS_TC(ctx, what, egress))
		return TCX_DROP;
	account_tc(&f, stats, what, port, egress);
	return TCX_NEXT;
}

/*
 * For interfaces on which native XDP would cost more than it saves, or does not exist: virtual devices and those
 * without Ethernet.
 */
SEC("tc")
int net_tc_ingress(struct __sk_buff *ctx)
{
	return tc_common(ctx, false);
}

SEC("tc")
int net_egress(struct __sk_buff *ctx)
{
	return tc_common(ctx, true);
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
