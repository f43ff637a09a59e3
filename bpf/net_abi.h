/* SPDX-License-Identifier: (GPL-2.0-only OR MIT OR Apache-2.0) */
/*
 * The contract between the packet programs and their readers. The build generates the Rust side of every struct and
 * enum here; nothing is typed twice.
 *
 * Enumerations are only ever extended at the end (before the COUNT): their values are positions in maps.
 */
#ifndef NET_ABI_H
#define NET_ABI_H

/* What was done with a packet. */
enum net_verdict {
	NET_VERDICT_PASS,
	NET_VERDICT_DROP,
	NET_VERDICT_COUNT,
};

/* Address family, as the EtherType after at most two VLAN tags claims. */
enum net_family {
	NET_FAMILY_OTHER, /* ARP, LLDP, 802.3, a third VLAN tag, ... */
	NET_FAMILY_IPV4,
	NET_FAMILY_IPV6,
	NET_FAMILY_COUNT,
};

/* Transport protocol, as the IP header (after its extension headers) claims. */
enum net_protocol {
	NET_PROTOCOL_OTHER,
	NET_PROTOCOL_TCP,
	NET_PROTOCOL_UDP,
	NET_PROTOCOL_ICMP, /* in IPv4 */
	NET_PROTOCOL_ICMPV6, /* in IPv6 */
	NET_PROTOCOL_COUNT,
};

/* What is wrong with a frame; the first thing found. */
enum net_parse_error {
	NET_PARSE_ERROR_NONE,
	NET_PARSE_ERROR_TRUNCATED, /* ends inside a header */
	NET_PARSE_ERROR_VERSION, /* the IP version is not the EtherType's */
	NET_PARSE_ERROR_HEADER_LENGTH, /* a header's own length is below the minimum, or beyond its packet */
	NET_PARSE_ERROR_LENGTH, /* the length in IP or UDP exceeds what was received, or is less than the header */
	NET_PARSE_ERROR_EXTENSIONS, /* more than NET_MAX_EXTENSIONS IPv6 extension headers */
	NET_PARSE_ERROR_COUNT,
};

/* What a frame begins with, depending on the type of its device. */
enum net_link {
	NET_LINK_ETHERNET,
	NET_LINK_IP, /* IPv4 or IPv6, with nothing before it */
	NET_LINK_GRE, /* the same, but received with the outer IPv4 and GRE headers in front */
	NET_LINK_SIT, /* the same, but received with the outer IPv4 header in front */
	NET_LINK_OPAQUE, /* unknown */
	NET_LINK_COUNT,
};

/*
 * An interface with counters, which programs find by its index: in a table at the index's low bits, or in a hash if
 * another interface has that place. The lowest bits of its id are the slot of its counters; ids are never reused.
 */
#define NET_PORTS 2048
#define NET_SLOT_BITS 12
struct net_port {
	unsigned int ifindex;
	unsigned int id;
	unsigned short block; /* the first CPU's part of the fast-path counters */
	unsigned char link;
	unsigned char fast; /* 1: it has such a part */
	unsigned char pad[4];
};
struct net_ports {
	struct net_port at[NET_PORTS];
};

/* Keys of the counters of one interface. */
enum net_direction {
	NET_INGRESS,
	NET_EGRESS,
	NET_DIRECTIONS,
};

#define NET_MAX_VLAN_TAGS 2
#define NET_MAX_EXTENSIONS 8

/* The number of places for protocols: a power of two, of which some are unused. */
#define NET_PROTOCOL_SLOTS 8

/*
 * One CPU's counts of fast-path frames (fast.bpf.h), in rows by family (IPv4, IPv6) and protocol (TCP, UDP), with a
 * counter for each size: by how many bytes a frame is longer than the shortest TCP segment.
 */
#define NET_FAST_STEPS 2048
struct net_fast_row {
	unsigned long long packets[NET_FAST_STEPS];
};
struct net_fast {
	struct net_fast_row rows[4];
};
enum net_fast_shortest {
	NET_FAST_SHORTEST_IPV4 = 54,
	NET_FAST_SHORTEST_IPV6 = 74,
};

/* TCP flags as on the wire (RFC 9293, section 3.1). */
#define NET_TH_FIN 0x01
#define NET_TH_SYN 0x02
#define NET_TH_RST 0x04
#define NET_TH_ACK 0x10

/*
 * Tables of talkers and flows: sets of NET_WAYS entries; a set's tags and ages are its first cache line. An age is a
 * time of the monotonic clock in units of 2^NET_TICK_SHIFT ns (16.8 ms); zero means that the way is empty.
 */
#define NET_WAYS 8
#define NET_TICK_SHIFT 24

struct net_set {
	unsigned int tags[NET_WAYS];
	unsigned int seen[NET_WAYS];
	unsigned int full_until; /* before this tick has passed, no way is empty or idle */
	unsigned int pad;
};

struct net_counts {
	unsigned long long packets;
	unsigned long long bytes;
};

/* A remote host on one interface: the source of what comes in, the destination of what goes out. */
struct net_talker {
	unsigned int address[4]; /* network byte order; IPv4 as ::ffff:a.b.c.d */
	unsigned int port; /* the interface's id */
	unsigned int first; /* tick of the first packet counted */
	struct net_counts in;
	struct net_counts out;
};

struct net_talkers {
	struct net_set set;
	struct net_talker entries[NET_WAYS];
};

/* One direction of a conversation. */
struct net_flow_key {
	unsigned int source[4]; /* as in net_talker */
	unsigned int destination[4];
	unsigned short source_port; /* network byte order; zero without ports and in later fragments */
	unsigned short destination_port;
	unsigned char ip_protocol; /* IANA number */
	unsigned char egress; /* 1: seen leaving the interface */
	unsigned short pad;
	unsigned int port; /* the interface's id */
	unsigned int pad2;
};

struct net_flow {
	struct net_flow_key key;
	struct net_counts sum;
	unsigned int first;
	unsigned char tcp_flags; /* all flags seen since the last SYN */
	unsigned char tcp_data; /* 1: a segment without SYN and RST was seen since */
	unsigned short pad;
};

struct net_flows {
	struct net_set set;
	struct net_flow entries[NET_WAYS];
};

/*
 * Count-min sketch of the packets of untracked sources and flows. A cell is a pair of bytes, the epoch it was
 * last used in and a count; a cell of an older epoch reads as zero. An epoch is NET_SKETCH_CELLS misses long.
 */
#define NET_SKETCH_CELLS 4096
#define NET_SKETCH_ROWS 2

struct net_sketch {
	unsigned long long misses;
	unsigned short rows[NET_SKETCH_ROWS][NET_SKETCH_CELLS];
};

/* Keys of the hash of talkers and flows: one for each 32-bit word, and an initial one. */
#define NET_HASH_KEYS 13

/*
 * Named groups of prefixes (`cidrs`): the key of the longest-prefix match begins with the family, so that a prefix of
 * one family matches no address of the other. `bits` includes the family's 32. Counter zero is for addresses in no
 * group.
 */
#define NET_CIDRS 64
struct net_cidr_key {
	unsigned int bits;
	unsigned int family; /* enum net_family */
	unsigned int address[4]; /* network byte order; IPv4 in the first word */
};

struct net_cidrs {
	struct net_counts by_group[NET_CIDRS];
};

/*
 * The blocklist (block.bpf.h). Rules are found by prefix in one hash table for each list and family; addresses are in
 * network byte order, and bits beyond the length are zero.
 */
enum net_list {
	NET_LIST_BLOCKED,
	NET_LIST_ALLOWED, /* never dropped, whatever is blocked */
	NET_LISTS,
};

struct net_prefix4 {
	unsigned int address;
	unsigned int length;
};

struct net_prefix6 {
	unsigned long long high;
	unsigned long long low;
	unsigned int length;
	unsigned int pad;
};

struct net_rule {
	unsigned long long packets;
	unsigned long long bytes;
	unsigned int last; /* tick of the last packet; zero: none */
	unsigned int expires; /* tick at which it expires; zero: never */
	unsigned short first_port; /* destination ports, host byte order, if there is a protocol */
	unsigned short last_port;
	unsigned char protocol; /* IANA number; zero: every packet */
	unsigned char length; /* of the prefix */
	unsigned char source; /* the source of the entry, for which its packets are counted, too */
	unsigned char directions; /* a bit for each enum net_direction in which it applies */
};

/* Packets of the entries of one source, by verdict (enum net_verdict). */
#define NET_SOURCES 256
struct net_source {
	struct net_counts by_verdict[NET_VERDICT_COUNT];
};

/* Prefix lengths in use, a bit for each; the words of IPv6 are for 0 to 63, 64 to 127, and 128. */
struct net_lengths {
	unsigned long long ipv4;
	unsigned long long ipv6[3];
};

#define NET_OWN_PORTS 8
#define NET_ALLOWED_BYTES (1 << 13)
struct net_blocklist {
	struct net_lengths lengths[NET_LISTS];
	unsigned int own_ports[NET_OWN_PORTS]; /* TCP ports of the exporter, host byte order; zero: none */
	unsigned int enforce; /* zero: what would be dropped is only counted, and passes */
	unsigned int spares; /* number of connections that may continue although their peer is blocked */
	/* A bit for each IPv4 /16 that the allowlist touches, and for each hash of the first 32 bits of its IPv6 prefixes. */
	unsigned char allowed[NET_ALLOWED_BYTES];
};

/* A TCP connection, by the peer's address (as in net_talker) and both ports in host byte order. */
#define NET_SPARED 4096
struct net_connection {
	unsigned int source[4];
	unsigned short source_port;
	unsigned short destination_port;
};

/* One bit for each IPv4 /24, and as many for hashes of IPv6 prefixes. */
#define NET_MARK_BYTES (1 << 21)
#define NET_MARK_FACTOR 0x9e3779b1u

/* Packets within an epoch after which an untracked source or flow evicts the oldest entry of its set. */
#define NET_ADMIT 8

#endif
