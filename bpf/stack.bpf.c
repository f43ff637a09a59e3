/* SPDX-License-Identifier: (GPL-2.0-only OR MIT OR Apache-2.0) */
/*
 * What the network stack's tracepoints report of dropped packets and of TCP connections: of one network namespace
 * and, for drops, also of none. Nothing here runs for an ordinary packet.
 */
#include "socket.bpf.h"
#include "histogram.bpf.h"

struct tcp_skb_cb {
	unsigned short tcp_gso_segs;
} KERNEL;
struct tcp_sock {
	unsigned int srtt_us;
} KERNEL;

#define IPPROTO_TCP 6

struct bpf_raw_tracepoint_args {
	__u64 args[6];
};

#define DROP_REASONS 512
#define TCP_STATES 16
#define TCP_ESTABLISHED 1
#define TCP_SYN_SENT 2
#define TCP_SYN_RECV 3
#define TCP_CLOSE 7

/* All 64-bit words. */
struct stack_stats {
	/*
	 * By the kernel's number of the reason; those of subsystems with numbers of their own (SUBSYS) are in the
	 * last one.
	 */
	__u64 drops[DROP_REASONS];
	__u64 states[TCP_STATES][TCP_STATES];
	__u64 retransmits;
	__u64 resets_sent;
	__u64 resets_received;
	/* Connections for whose start time there was no room. */
	__u64 untimed;
	/* Microseconds, of connections opened by this side and by the other. */
	struct stack_histogram handshake[2];
	/* Microseconds, smoothed, when a connection begins to close. */
	struct stack_histogram rtt;
	/* Milliseconds from the handshake to the end. */
	struct stack_histogram duration;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct stack_stats);
} stats SEC(".maps");

/* When connections were established, by socket. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, 1 /* BPF_F_NO_PREALLOC */);
	__type(key, __u64);
	__type(value, __u64);
} begun SEC(".maps");

static __always_inline struct stack_stats *here(void)
{
	__u32 key = 0;

	return bpf_map_lookup_elem(&stats, &key);
}

SEC("raw_tp/kfree_skb")
int drop(struct bpf_raw_tracepoint_args *ctx)
{
	struct sk_buff *skb = (void *)ctx->args[0];
	__u32 reason = ctx->args[2];
	struct net_device *dev = BPF_CORE_READ(skb, dev);
	struct sock *sk = BPF_CORE_READ(skb, sk);
	struct net *net = 0;
	struct stack_stats *s;

	if (sk)
		net = BPF_CORE_READ(sk, __sk_common.skc_net.net);
	else if (dev)
		net = BPF_CORE_READ(dev, nd_net.net);
	if (net && !is_ours(net))
		return 0;
	s = here();
	if (!s)
		return 0;
	if (reason >= DROP_REASONS)
		reason = DROP_REASONS - 1;
	barrier_var(reason);
	if (reason < DROP_REASONS)
		s->drops[reason]++;
	return 0;
}

SEC("raw_tp/inet_sock_set_state")
int state(struct bpf_raw_tracepoint_args *ctx)
{
	struct sock *sk = (void *)ctx->args[0];
	__u32 from = ctx->args[1], to = ctx->args[2], rtt;
	__u64 key = (__u64)sk, now, *start;
	struct stack_stats *s;

	if (BPF_CORE_READ(sk, sk_protocol) != IPPROTO_TCP || !has_ours(sk))
		return 0;
	s = here();
	if (!s || from >= TCP_STATES || to >= TCP_STATES)
		return 0;
	s->states[from][to]++;
	/* The kernel keeps eight times the smoothed time. */
	rtt = BPF_CORE_READ((struct tcp_sock *)sk, srtt_us) >> 3;
	now = bpf_ktime_get_ns();
	if (to == TCP_ESTABLISHED) {
		if (from == TCP_SYN_SENT || from == TCP_SYN_RECV)
			observe(&s->handshake[from == TCP_SYN_RECV], rtt, 4);
		if (bpf_map_update_elem(&begun, &key, &now, BPF_ANY))
			s->untimed++;
		return 0;
	}
	if (from == TCP_ESTABLISHED && rtt)
		observe(&s->rtt, rtt, 4);
	if (to != TCP_CLOSE)
		return 0;
	start = bpf_map_lookup_elem(&begun, &key);
	if (start) {
		observe(&s->duration, (now - *start) / 1000000, 0);
		bpf_map_delete_elem(&begun, &key);
	}
	return 0;
}

SEC("raw_tp/tcp_retransmit_skb")
int retransmit(struct bpf_raw_tracepoint_args *ctx)
{
	struct sk_buff *skb = (void *)ctx->args[1];
	struct stack_stats *s;

	if (!has_ours((void *)ctx->args[0]))
		return 0;
	s = here();
	if (s) {
		__u16 segments = BPF_CORE_READ((struct tcp_skb_cb *)&skb->cb[0], tcp_gso_segs);

		s->retransmits += segments ?: 1;
	}
	return 0;
}

SEC("raw_tp/tcp_send_reset")
int reset_sent(struct bpf_raw_tracepoint_args *ctx)
{
	struct sock *sk = (void *)ctx->args[0];
	struct sk_buff *skb = (void *)ctx->args[1];
	struct stack_stats *s;
	struct net *net = 0;

	/* Without a socket, the reset answers a packet. */
	if (sk)
		net = BPF_CORE_READ(sk, __sk_common.skc_net.net);
	else if (skb)
		net = BPF_CORE_READ(skb, dev, nd_net.net);
	if (!is_ours(net))
		return 0;
	s = here();
	if (s)
		s->resets_sent++;
	return 0;
}

SEC("raw_tp/tcp_receive_reset")
int reset_received(struct bpf_raw_tracepoint_args *ctx)
{
	struct stack_stats *s;

	if (!has_ours((void *)ctx->args[0]))
		return 0;
	s = here();
	if (s)
		s->resets_received++;
	return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
