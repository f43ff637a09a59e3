/* SPDX-License-Identifier: (GPL-2.0-only OR MIT OR Apache-2.0) */
/*
 * Attributes packets: what sockets receive and send, by the cgroup that a socket belongs to and by the process that
 * uses it; also the results of DNS queries of one network namespace. Attached to the hooks of the outermost cgroup,
 * which see every packet that has a socket; nothing is dropped.
 */
#include "socket.bpf.h"
#include "histogram.bpf.h"
#include "users.bpf.h"
#include <bpf/bpf_endian.h>

#define BPF_MAP_TYPE_PERCPU_HASH 5
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define DNS_PORT 53
#define DNS_HEADER 12
#define DNS_IS_RESPONSE 0x8000
#define INGRESS 0
#define EGRESS 1

/* Set by user space before the load; DNS queries are those of one network namespace. */
const volatile bool with_cgroups = false;
const volatile bool with_processes = false;
const volatile bool with_dns = false;

struct socket_traffic {
	__u64 packets;
	__u64 bytes;
};

/* By direction. */
struct group_traffic {
	struct socket_traffic sums[2];
};

/* What a packet is attributed to. */
struct holder {
	__u64 cgroup;
	/* Empty if it is not requested, or not known. */
	char process[PROCESS_NAME];
};

/* By holder; the key of zeros is for holders that found no room, and exists from the beginning. */
struct traffic_map {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct holder);
	__type(value, struct group_traffic);
};
struct traffic_map by_cgroup SEC(".maps");
struct traffic_map by_process SEC(".maps");

/* Response codes (RFC 1035, section 4.1.1), and the other outcomes of a query. */
enum dns_result {
	DNS_NOERROR,
	DNS_FORMERR,
	DNS_SERVFAIL,
	DNS_NXDOMAIN,
	DNS_NOTIMP,
	DNS_REFUSED,
	DNS_OTHER,
	DNS_TIMEOUT, /* sent again before it was answered; user space adds queries that were never answered */
	DNS_UNTRACKED, /* there was no room to remember the query */
	DNS_RESULTS,
};

/* Makes the build generate the Rust side of the enum. */
const volatile struct {
	enum dns_result result;
} names;

/* By server: 0 is on another machine, 1 on this one. All 64-bit words. */
struct dns_stats {
	__u64 results[2][DNS_RESULTS];
	/* Microseconds. */
	struct stack_histogram times[2];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct dns_stats);
} dns SEC(".maps");

/* Queries that have not been answered yet. */
struct dns_key {
	__u64 socket;
	__u32 id;
	__u32 pad;
};
struct dns_query {
	__u64 asked; /* ns */
	__u64 local; /* 1: the server is on this machine */
};
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, 1 /* BPF_F_NO_PREALLOC */);
	__type(key, struct dns_key);
	__type(value, struct dns_query);
} asked SEC(".maps");

/* The part of a packet's headers that is needed: of IPv4 without fragments, or of IPv6 without extensions. */
struct packet {
	__u32 protocol;
	__u32 l4_at;
	bool to_loopback;
};

static __always_inline struct packet headers_of(struct __sk_buff *skb)
{
	void *ip = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct packet p = {};

	if (ip + 20 > end)
		return p;
	if (*(__u8 *)ip >> 4 == 4) {
		if (*(__be16 *)(ip + 6) & bpf_htons(0x1fff))
			return p;
		p.protocol = *(__u8 *)(ip + 9);
		p.l4_at = (*(__u8 *)ip & 0xf) * 4;
		p.to_loopback = *(__u8 *)(ip + 16) == 127;
	} else if (*(__u8 *)ip >> 4 == 6 && ip + 40 <= end) {
		__be32 *to = ip + 24;

		p.protocol = *(__u8 *)(ip + 6);
		p.l4_at = 40;
		p.to_loopback = !to[0] && !to[1] && !to[2] && to[3] == bpf_htonl(1);
	}
	return p;
}

/*
 * A packet that is yet to be segmented, or was merged from several, counts as those, each with a copy of the headers.
 */
static __always_inline struct socket_traffic traffic_of(struct __sk_buff *skb)
{
	struct socket_traffic of = { .packets = 1, .bytes = skb->len };

	if (skb->gso_size && skb->gso_segs > 1) {
		struct packet p = headers_of(skb);
		__u8 length = 0;

		of.packets = skb->gso_segs;
		if (p.protocol == IPPROTO_UDP)
			of.bytes += (of.packets - 1) * (p.l4_at + 8);
		else if (p.protocol == IPPROTO_TCP && !bpf_skb_load_bytes(skb, p.l4_at + 12, &length, 1))
			of.bytes += (of.packets - 1) * (p.l4_at + (length >> 4) * 4);
	}
	return of;
}

static __always_inline void add_traffic(void *map, struct holder *holder, __u32 direction,
					struct socket_traffic more)
{
	struct group_traffic zero = {}, *to = bpf_map_lookup_elem(map, holder);
	struct holder nobody = {};

	if (!to) {
		bpf_map_update_elem(map, holder, &zero, BPF_NOEXIST);
		to = bpf_map_lookup_elem(map, holder);
	}
	if (!to)
		to = bpf_map_lookup_elem(map, &nobody);
	if (!to)
		return;
	to->sums[direction].packets += more.packets;
	to->sums[direction].bytes += more.bytes;
}

static __always_inline void count_traffic(struct __sk_buff *skb, __u32 direction)
{
	struct holder holder = { .cgroup = bpf_skb_cgroup_id(skb) };
	struct socket_traffic more = traffic_of(skb);

	if (with_cgroups)
		add_traffic(&by_cgroup, &holder, direction, more);
	if (with_processes) {
		user_of(skb, holder.process);
		add_traffic(&by_process, &holder, direction, more);
	}
}

static __always_inline void count_query(struct __sk_buff *skb, struct dns_stats *s, struct dns_key *key,
					bool local)
{
	struct dns_query now = { .asked = bpf_ktime_get_ns(), .local = local };

	if (bpf_map_lookup_elem(&asked, key))
		s->results[local][DNS_TIMEOUT]++;
	if (bpf_map_update_elem(&asked, key, &now, BPF_ANY))
		s->results[local][DNS_UNTRACKED]++;
}

static __always_inline void count_answer(struct dns_stats *s, struct dns_key *key, __u32 code)
{
	struct dns_query *query = bpf_map_lookup_elem(&asked, key);
	__u64 time;
	bool local;

	if (!query)
		return;
	time = bpf_ktime_get_ns() - query->asked;
	local = query->local != 0;
	/* The answer may arrive twice, but counts once. */
	if (bpf_map_delete_elem(&asked, key))
		return;
	s->results[local][code < DNS_OTHER ? code : DNS_OTHER]++;
	observe(&s->times[local], time / 1000, 4);
}

static __always_inline void count_dns(struct __sk_buff *skb, bool egress)
{
	struct packet p = headers_of(skb);
	struct dns_key key = {};
	/* Both ports, length and checksum; then DNS's id and flags. */
	__be16 udp[6];
	struct dns_stats *s;
	__u32 first = 0;

	if (p.protocol != IPPROTO_UDP || bpf_skb_load_bytes(skb, p.l4_at, udp, sizeof(udp)) ||
	    udp[egress ? 1 : 0] != bpf_htons(DNS_PORT) || bpf_ntohs(udp[2]) < 8 + DNS_HEADER ||
	    egress == ((udp[5] & bpf_htons(DNS_IS_RESPONSE)) != 0) ||
	    !has_ours(BPF_CORE_READ((struct sk_buff *)skb, sk)))
		return;
	s = bpf_map_lookup_elem(&dns, &first);
	if (!s)
		return;
	key.socket = bpf_get_socket_cookie(skb);
	key.id = udp[4];
	if (egress)
		count_query(skb, s, &key, p.to_loopback);
	else
		count_answer(s, &key, bpf_ntohs(udp[5]) & 0xf);
}

SEC("cgroup_skb/ingress")
int sockets_ingress(struct __sk_buff *skb)
{
	if (with_cgroups || with_processes)
		count_traffic(skb, INGRESS);
	if (with_dns)
		count_dns(skb, false);
	return ALLOW;
}

SEC("cgroup_skb/egress")
int sockets_egress(struct __sk_buff *skb)
{
	if (with_cgroups || with_processes)
		count_traffic(skb, EGRESS);
	if (with_dns)
		count_dns(skb, true);
	return ALLOW;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
