/* SPDX-License-Identifier: (GPL-2.0-only OR MIT OR Apache-2.0) */
/*
 * Benchmarks of the packet programs: an empty program for comparison, and both again after a step that gives every
 * packet another source address, which a test run cannot do from outside.
 */
#include "net.bpf.c"

const volatile __u32 sources = 200000;
__u32 state;

/* Writes one of `sources` pseudo-random addresses, the same way for both programs below. */
static __always_inline void invent_source(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u32 number;

	state = state * 1664525 + 1013904223;
	number = ((__u64)state * sources) >> 32;
	if (data + 54 > end)
		return;
	if (*(__be16 *)(data + 12) == bpf_htons(ETHERTYPE_IPV4))
		*(__u32 *)(data + 26) = number * 2654435761u;
	else
		*(__u32 *)(data + 34) = number * 2654435761u;
}

SEC("xdp")
int bench_empty(struct xdp_md *ctx)
{
	return XDP_PASS;
}

SEC("xdp")
int bench_spoofed_empty(struct xdp_md *ctx)
{
	invent_source(ctx);
	return XDP_PASS;
}

SEC("xdp")
int bench_spoofed(struct xdp_md *ctx)
{
	invent_source(ctx);
	return ingress_common(ctx, true);
}

/* Transmits an IPv4 packet from one of `count` addresses, the first of which has the number `first`. */
struct {
	__u32 first, count;
} sending = { 0, 1 };

SEC("xdp")
int bench_send(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u16 *words = data + ETH_HEADER;
	__u32 sum = 0, i;

	if (data + 34 > end)
		return XDP_DROP;
	state = state * 1664525 + 1013904223;
	i = sending.first + (((__u64)state * sending.count) >> 32);
	*(__be32 *)(data + 26) = bpf_htonl(i * 2654435761u & 0x7fffffff);
	words[5] = 0;
#pragma unroll
	for (i = 0; i < 10; i++)
		sum += words[i];
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	words[5] = ~sum;
	return XDP_TX;
}

SEC("tc")
int bench_empty_tc(struct __sk_buff *ctx)
{
	return TCX_NEXT;
}
