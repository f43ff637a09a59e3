/* SPDX-License-Identifier: (GPL-2.0-only OR MIT OR Apache-2.0) */
/*
 * The few kernel types that the packet programs need, written out so that the build needs no kernel headers. All of
 * them are stable: UAPI (include/uapi/linux/bpf.h, if_ether.h) or wire formats.
 */
#ifndef NET_TYPES_BPF_H
#define NET_TYPES_BPF_H

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef signed char __s8;
typedef short __s16;
typedef int __s32;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u64 __be64;
typedef __u32 __wsum;
typedef __u16 __sum16;
typedef _Bool bool;
#define true 1
#define false 0

/* enum bpf_map_type, include/uapi/linux/bpf.h */
#define BPF_MAP_TYPE_HASH 1
#define BPF_MAP_TYPE_PERCPU_ARRAY 6
#define BPF_MAP_TYPE_LPM_TRIE 11
#define BPF_MAP_TYPE_ARRAY_OF_MAPS 12

/* Flags of bpf_map_update_elem(), include/uapi/linux/bpf.h */
#define BPF_ANY 0
#define BPF_NOEXIST 1

/* enum xdp_action and the TCX verdicts, include/uapi/linux/bpf.h */
#define XDP_PASS 2
#define XDP_TX 3
#define TCX_NEXT (-1) /* = TC_ACT_UNSPEC: the next program decides, also under clsact */

/* include/uapi/linux/bpf.h */
struct xdp_md {
	__u32 data;
	__u32 data_end;
	__u32 data_meta;
	__u32 ingress_ifindex;
	__u32 rx_queue_index;
	__u32 egress_ifindex;
};

/* include/uapi/linux/bpf.h, up to the last field that is used */
struct __sk_buff {
	__u32 len;
	__u32 pkt_type;
	__u32 mark;
	__u32 queue_mapping;
	__u32 protocol;
	__u32 vlan_present;
	__u32 vlan_tci;
	__u32 vlan_proto;
	__u32 priority;
	__u32 ingress_ifindex;
	__u32 ifindex;
	__u32 tc_index;
	__u32 cb[5];
	__u32 hash;
	__u32 tc_classid;
	__u32 data;
	__u32 data_end;
	__u32 napi_id;
	__u32 family;
	__u32 remote_ip4;
	__u32 local_ip4;
	__u32 remote_ip6[4];
	__u32 local_ip6[4];
	__u32 remote_port;
	__u32 local_port;
	__u32 data_meta;
	__u64 flow_keys;
	__u64 tstamp;
	__u32 wire_len;
	__u32 gso_segs;
	__u64 sk;
	__u32 gso_size;
};

_Static_assert(__builtin_offsetof(struct __sk_buff, data) == 76, "uapi layout");
_Static_assert(__builtin_offsetof(struct __sk_buff, wire_len) == 160, "uapi layout");
_Static_assert(__builtin_offsetof(struct __sk_buff, gso_size) == 176, "uapi layout");

#endif
