/* SPDX-License-Identifier: (GPL-2.0-only OR MIT OR Apache-2.0) */
/*
 * Counts what crosses one interface: XDP on the way in, TC (TCX) on the way out. Nothing is changed, held or
 * dropped. Loaded once per interface, with its constants, and of the programs for one direction only
 * the one that is wanted.
 *
 * The common frame has a short way of its own without calls, and everything else goes through a global function, whose
 * registers and stack the common way does not pay for.
 */
#include "packet.bpf.h"
#include "plain.bpf.h"
#include "talkers.bpf.h"

/* Makes the build generate the Rust side of the enums. */
const volatile struct {
	enum net_verdict verdict;
	enum net_reason reason;
	enum net_family family;
	enum net_protocol protocol;
	enum net_fault fault;
	enum net_tcp_kind tcp;
	enum net_size size;
	enum net_plain_shortest shortest;
} names;

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct net_stats);
} ingress_stats SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct net_stats);
} egress_stats SEC(".maps");

/* A key that need not be put on the stack. */
static const volatile __u32 zero = 0;

/* Bytes in which all headers of a packet end, but for long chains of long IPv6 extension headers. */
#define HEADERS 512

/* The size bucket of a frame of (i - 1) * 64 + 1 to i * 64 bytes, as an offset in bytes. */
#define S(x) (NET_SIZE_##x * 8)
#define N4(x) x, x, x, x
#define N8(x) N4(x), N4(x)
#define N16(x) N8(x), N8(x)
#define N32(x) N16(x), N16(x)
#define N64(x) N32(x), N32(x)
#define SIZE_STEPS 2048
static const volatile __u8 size_offset[SIZE_STEPS] = {
	S(64),	       S(64),	      S(128),	     S(256),
	S(256),	       N4(S(512)),    N8(S(1024)),   N8(S(1536)),
	N32(S(4096)),  N8(S(4096)),   N64(S(9216)),  N16(S(9216)),
	N64(S(16384)), N32(S(16384)), N16(S(16384)), [257 ... SIZE_STEPS - 1] = S(INF),
};

static __always_inline struct net_row *row_of(struct net_stats *stats, enum net_verdict verdict, __u64 what)
{
	__u32 cell = IS_CELL(what);

	return cell < IS(NET_FAMILY_COUNT, 0) ? &stats->rows[verdict][0][0] + cell : 0;
}

/* Counts packets of `length` bytes each; `large` if they can be larger than the table. */
static __always_inline void count_packets(struct net_row *row, __u32 length, __u64 packets, bool large)
{
	__u32 step = (length + 63) / 64;

	if (large && step >= SIZE_STEPS)
		step = SIZE_STEPS - 1;
	barrier_var(step);
	step &= SIZE_STEPS - 1;
	*(__u64 *)((void *)row->packets + size_offset[step]) += packets;
}

/* What few packets have: faults, fragments, and TCP flags that open or close a connection. */
#define RARE (FAULT(0xf) | FRAGMENT | TCP_FLAGS(NET_TH_FIN | NET_TH_SYN | NET_TH_RST))

static __always_inline void count_rare(struct net_stats *stats, __u64 what, __u64 packets)
{
	__u32 fault = IS_FAULT(what), family = IS_CELL(what) / NET_PROTOCOL_SLOTS, flags = IS_TCP_FLAGS(what);

	/*
	 * The compiler knows these bounds and leaves such a comparison out, or makes one of two that the verifier of
	 * Linux 6.12 does not follow.
	 */
	if (fault) {
		barrier_var(fault);
		if (fault < NET_FAULT_COUNT)
			stats->faults[fault] += packets;
	}
	barrier_var(family);
	if (what & FRAGMENT && family < NET_FAMILY_COUNT)
		stats->fragments[family] += packets;
	/* Of a packet that will be cut into segments, one is the first and one the last. */
	if (flags & NET_TH_RST)
		stats->tcp[NET_TCP_RST]++;
	else if (flags & NET_TH_SYN && flags & NET_TH_ACK)
		stats->tcp[NET_TCP_SYNACK]++;
	else if (flags & NET_TH_SYN)
		stats->tcp[NET_TCP_SYN]++;
	else if (flags & NET_TH_FIN)
		stats->tcp[NET_TCP_FIN]++;
}

/* Counts a frame that came in. */
static __always_inline void account_ingress(const struct frame *f, struct net_stats *stats, __u64 what,
					    bool talkers)
{
	struct net_row *row = row_of(stats, NET_VERDICT_PASS, what);

	if (!row)
		return;
	/* XDP frames end at 64 KiB of pieces; the table goes to 128 KiB. */
	count_packets(row, f->length, 1, false);
	row->bytes += f->length;
	if (what & RARE)
		count_rare(stats, what, 1);
	if (talkers && IS_IP_AT(what) && !IS_FAULT(what))
		track(f, what, stats, false, 1, f->length);
}

static __always_inline struct frame xdp_frame(struct xdp_md *ctx, bool pieces)
{
	struct frame f = { (void *)(long)ctx->data, (void *)(long)ctx->data_end, .xdp = ctx };

	f.length = pieces ? bpf_xdp_get_buff_len(ctx) : f.end - f.data;
	return f;
}

static __always_inline int ingress_any(struct xdp_md *ctx, bool talkers, bool pieces)
{
	struct frame f = xdp_frame(ctx, pieces);
	struct net_stats *stats = bpf_map_lookup_elem(&ingress_stats, (void *)&zero);

	if (stats)
		account_ingress(&f, stats, parse_frame(&f), talkers);
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

/*
 * No argument, because type information of a function without a body in C has no name for it, which the kernel refuses.
 * A CPU's number is bounded by what the verifier itself knows of it: that of Linux 6.12 does, that of 6.1 does not.
 */
SEC("xdp")
__attribute__((naked)) int net_ingress(void)
{
	COUNT_PLAIN("", ingress_any_plain);
}

SEC("xdp")
__attribute__((naked)) int net_ingress_masked(void)
{
	COUNT_PLAIN(PLAIN_BOUND, ingress_any_plain);
}

/* Common frames without a call, into the same counters as all others. */
static __always_inline int ingress_common(struct xdp_md *ctx, bool talkers)
{
	struct net_stats *stats = bpf_map_lookup_elem(&ingress_stats, (void *)&zero);
	struct frame f;
	__u64 what;

	if (!stats)
		return XDP_PASS;
	f = xdp_frame(ctx, false);
	what = parse_common(&f);
	if (!what)
		return talkers ? ingress_any_talkers(ctx) : ingress_any_plain(ctx);
	account_ingress(&f, stats, what, talkers);
	return XDP_PASS;
}

/* For interfaces that there is no memory for: see PLAIN_BUDGET in src/net/load.rs. */
SEC("xdp")
int net_ingress_long(struct xdp_md *ctx)
{
	return ingress_common(ctx, false);
}

SEC("xdp")
int net_ingress_talkers(struct xdp_md *ctx)
{
	return ingress_common(ctx, true);
}

/* Frames in several pieces: for a large MTU in native mode. */
SEC("xdp.frags")
int net_ingress_frags(struct xdp_md *ctx)
{
	return ingress_any(ctx, with_talkers, true);
}

/*
 * Counts what leaves. A packet that the card or the kernel will yet cut into segments counts as those: wire_len is
 * the kernel's own sum of them with a copy of the headers for each. All but the last are equally long.
 */
static __always_inline void account_egress(const struct frame *f, struct net_stats *stats, __u64 what)
{
	__u32 packets = f->skb->gso_segs, bytes = f->skb->wire_len, last;
	struct net_row *row = row_of(stats, NET_VERDICT_PASS, what);

	if (!row)
		return;
	if (packets < 1)
		packets = 1;
	if (bytes < f->length)
		bytes = f->length;
	last = bytes;
	if (packets > 1) {
		__u32 full = (bytes - f->length) / (packets - 1) + f->skb->gso_size;

		count_packets(row, full, packets - 1, true);
		last -= full * (packets - 1);
	}
	count_packets(row, last, 1, true);
	row->bytes += bytes;
	if (what & RARE)
		count_rare(stats, what, packets);
	if (with_talkers && IS_IP_AT(what) && !IS_FAULT(what))
		track(f, what, stats, true, packets, bytes);
}

static __always_inline struct frame skb_frame(struct __sk_buff *ctx)
{
	struct frame f = { (void *)(long)ctx->data, (void *)(long)ctx->data_end, ctx->len, .skb = ctx };

	return f;
}

__noinline int egress_any(struct __sk_buff *ctx)
{
	struct frame f = skb_frame(ctx);
	struct net_stats *stats = bpf_map_lookup_elem(&egress_stats, (void *)&zero);
	__u64 what;

	if (!stats)
		return TCX_NEXT;
	what = parse_frame(&f);
	if (IS_FAULT(what) == NET_FAULT_TRUNCATED && f.end - f.data < f.length) {
		/* Some headers lie in a page: bring them in front and look again. */
		bpf_skb_pull_data(ctx, f.length < HEADERS ? f.length : HEADERS);
		f = skb_frame(ctx);
		what = parse_frame(&f);
	}
	account_egress(&f, stats, what);
	return TCX_NEXT;
}

SEC("tc")
int net_egress(struct __sk_buff *ctx)
{
	struct net_stats *stats = bpf_map_lookup_elem(&egress_stats, (void *)&zero);
	struct frame f;
	__u64 what;

	if (!stats)
		return TCX_NEXT;
	f = skb_frame(ctx);
	what = parse_common(&f);
	if (!what)
		return egress_any(ctx);
	account_egress(&f, stats, what);
	return TCX_NEXT;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
