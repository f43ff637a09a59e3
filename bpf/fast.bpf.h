/* SPDX-License-Identifier: (GPL-2.0-only OR MIT OR Apache-2.0) */
/*
 * The fast path for nearly all frames, where only statistics are needed: a valid TCP segment that neither opens nor
 * closes a connection, or a valid UDP datagram, directly in IPv4 without options or in IPv6 without extensions,
 * untagged, of up to 2 KiB. All others take the slow path; a fuzz test checks both against one model.
 *
 * Written in BPF assembly, because a packet may cost 5 ns, in which the processor fetches some 40 instructions: the
 * compiler lays out branches so that the common path jumps about, and knows neither which constants have short
 * encodings nor that a call of bpf_get_smp_processor_id leaves registers alone. So:
 *
 * - a frame's size is its own index: one counter gives both the number of frames and of their bytes;
 * - differences are compared as unsigned numbers, where one comparison catches what is too short (it wraps around)
 * and what is too long;
 * - comparing a difference with zero is shorter than comparing two 32-bit values;
 * - what is not on the fast path leaves by jumps of at most 127 bytes, which are short, too: the exit is in the
 * middle.
 */
#ifndef FAST_BPF_H
#define FAST_BPF_H

#include "port.bpf.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
	       "numbers of the network are compared as they are loaded");
_Static_assert(sizeof(struct net_fast) == 1 << 16, "the shift that finds a CPU's part");
_Static_assert(NET_FAST_SHORTEST_IPV6 == NET_FAST_SHORTEST_IPV4 + 20, "one header instead of the other");

/* One for each CPU and interface, so that no atomics are needed: user space sets the length, a power of two. */
struct net_fast fast[1] SEC(".bss.fast");

/*
 * A placeholder for their number minus one, which user space patches into the instruction before it loads the
 * program.
 */
#define FAST_BLOCKS 0x7e57

/* The EtherType and the byte after it, the version and in IPv4 the header's length, as loaded into a number. */
#define FAST_KIND(ethertype, byte) ((__u32)bpf_htons(ethertype) | (byte) << 16)
#define FAST_IPV4 FAST_KIND(ETHERTYPE_IPV4, 0x45)
#define FAST_IPV6 FAST_KIND(ETHERTYPE_IPV6, 0x60)

/* Bytes 6 to 9 of the IPv4 header: not a fragment, and the protocol. */
#define FAST_PROTOCOL(number) bpf_htonl(number)
#define FAST_PROTOCOL_MASK bpf_htonl(0x3fff00ff)

/* The length of a TCP header in quarters of a byte, and above it the flags that open or close a connection. */
#define FAST_TCP_MASK bpf_htons(0xf000 | NET_TH_FIN | NET_TH_SYN | NET_TH_RST)

/* enum bpf_func_id, include/uapi/linux/bpf.h */
#define FAST_GET_SMP_PROCESSOR_ID 8

/*
 * Registers: r1 is the context, r2 the frame and then `more`, by how much the packet is longer than the shortest one
 * (according to IP), r3 the frame's end and then by how much the frame is longer, r4 the end of the shortest one's
 * TCP header, r5 this CPU's counters. The shortest one is a TCP segment without options or data; shorter datagrams
 * take the slow path.
 *
 * The interface's place in the table belongs to it as long as this program is attached there: user space ensures
 * that, and no index is compared here. Kernels whose call leaves r1 alone (since Linux 6.12) remove its store and
 * reload around the call. At the end of `long`, the slow path's function is called.
 */
/* clang-format off */
#define COUNT_FAST(slow_function) COUNT_FAST_WITH(slow_function, "", "", 0, 0)

#define COUNT_FAST_WITH(slow_function, check4, check6, marks4_, marks6_)                                  \
	asm volatile(                                                                                             \
	"	*(u64 *)(r10 - 8) = r1;"                                                                          \
	"	call %[cpu];"                                                                                     \
	"	r1 = *(u64 *)(r10 - 8);"                                                                          \
	"	r5 = *(u32 *)(r1 + %[ifindex]);"                                                                  \
	"	w5 &= %[ports_mask];"                                                                             \
	"	r5 <<= 4;"                                                                                        \
	"	r4 = %[ports] ll;"                                                                                \
	"	r4 += r5;"                                                                                        \
	"	r4 = *(u16 *)(r4 + %[block]);"                                                                    \
	"	r0 += r4;"                                                                                        \
	"	r0 &= %[blocks];"                                                                                 \
	"	r0 <<= 16;"                                                                                       \
	"	r5 = %[fast] ll;"                                                                                \
	"	r5 += r0;"                                                                                        \
	"	r2 = *(u32 *)(r1 + %[data]);"                                                                     \
	"	r3 = *(u32 *)(r1 + %[data_end]);"                                                                 \
	"	r4 = r2;"                                                                                         \
	"	r4 += %[shortest4];"                                                                              \
	"	if r4 > r3 goto long_%=;"                                                                         \
	"	w0 = *(u32 *)(r2 + 11);" /* FAST_KIND, behind a byte that is shifted out */                      \
	"	w0 >>= 8;"                                                                                        \
	"	w0 += -%[ipv4];"                                                                                  \
	"	if w0 != 0 goto ipv6_%=;"                                                                         \
		check4                                                                                            \
	"	r3 -= r4;"                                                                                        \
	"	if r3 > %[last] goto long_%=;"                                                                    \
	"	w0 = *(u32 *)(r2 + 20);"                                                                          \
	"	w2 = *(u16 *)(r2 + 16);" /* total length */                                                       \
	"	r2 = be16 r2;"                                                                                    \
	"	w2 += -40;"                                                                                       \
	"	if w2 > w3 goto long_%=;"                                                                         \
	"	w0 &= %[protocol_mask];"                                                                          \
	"	w0 ^= %[protocol_tcp];"                                                                           \
	"	if w0 != 0 goto udp4_%=;"                                                                         \
	"tcp_%=:"                                                                                                 \
	"	w0 = *(u16 *)(r4 - 8);" /* the header's length and the flags */                                   \
	"	w0 &= %[tcp_mask];"                                                                               \
	"	w0 += -80;"                                                                                       \
	"	w0 >>= 2;"                                                                                        \
	"	if w0 > 40 goto long_%=;" /* too short, or a flag */                                              \
	"	if w0 > w2 goto long_%=;"                                                                         \
	"count_%=:"                                                                                               \
	"	r3 <<= 3;"                                                                                        \
	"	r5 += r3;"                                                                                        \
	"	r0 = *(u64 *)(r5 + 0);"                                                                           \
	"	r0 += 1;"                                                                                         \
	"	*(u64 *)(r5 + 0) = r0;"                                                                           \
	"	r0 = %[pass];"                                                                                    \
	"	exit;"                                                                                            \
	"long_%=:"                                                                                                \
	"	call %[slow_function_];"                                                                          \
	"	exit;"                                                                                            \
	"udp4_%=:"                                                                                                \
	"	if w0 != %[udp_for_tcp] goto long_%=;"                                                            \
	"udp_%=:"                                                                                                 \
	"	w0 = *(u16 *)(r4 - 16);" /* length */                                                             \
	"	r0 = be16 r0;"                                                                                    \
	"	w0 += -20;"                                                                                       \
	"	if w0 > w2 goto long_%=;"                                                                         \
	"	r3 += %[row];"                                                                                    \
	"	goto count_%=;"                                                                                   \
	"ipv6_%=:"                                                                                                \
	"	if w0 != %[ipv6_for_ipv4] goto long_%=;"                                                          \
	"	r4 += 20;"                                                                                        \
	"	if r4 > r3 goto long_%=;"                                                                         \
		check6                                                                                            \
	"	r3 -= r4;"                                                                                        \
	"	if r3 > %[last] goto long_%=;"                                                                    \
	"	w0 = *(u8 *)(r2 + 20);" /* next header */                                                         \
	"	w2 = *(u16 *)(r2 + 18);" /* payload length */                                                     \
	"	r2 = be16 r2;"                                                                                    \
	"	w2 += -20;"                                                                                       \
	"	if w2 > w3 goto long_%=;"                                                                         \
	"	r3 += 2 * %[row];"                                                                                \
	"	if w0 == %[tcp] goto tcp_%=;"                                                                     \
	"	if w0 == %[udp] goto udp_%=;"                                                                     \
	"	goto long_%=;"                                                                                    \
	::	[cpu] "i"(FAST_GET_SMP_PROCESSOR_ID), [ports] "i"(&ports), [fast] "i"(fast),                   \
		[marks4] "i"(marks4_), [marks6] "i"(marks6_), [factor] "i"((__s32)NET_MARK_FACTOR),               \
		[ports_mask] "i"(NET_PORTS - 1), [blocks] "i"(FAST_BLOCKS),                                      \
		[ifindex] "i"(__builtin_offsetof(struct xdp_md, ingress_ifindex)),                                \
		[block] "i"(__builtin_offsetof(struct net_port, block)),                                          \
		[row] "i"(NET_FAST_STEPS), [last] "i"(NET_FAST_STEPS - 1), [pass] "i"(XDP_PASS),                \
		[shortest4] "i"(NET_FAST_SHORTEST_IPV4), [slow_function_] "i"(slow_function),                    \
		[data] "i"(__builtin_offsetof(struct xdp_md, data)),                                              \
		[data_end] "i"(__builtin_offsetof(struct xdp_md, data_end)),                                      \
		[ipv4] "i"(FAST_IPV4), [ipv6_for_ipv4] "i"(FAST_IPV6 - FAST_IPV4),                             \
		[protocol_mask] "i"(FAST_PROTOCOL_MASK), [protocol_tcp] "i"(FAST_PROTOCOL(IPPROTO_TCP)),        \
		[udp_for_tcp] "i"(FAST_PROTOCOL(IPPROTO_UDP) ^ FAST_PROTOCOL(IPPROTO_TCP)),                     \
		[tcp_mask] "i"(FAST_TCP_MASK), [tcp] "i"(IPPROTO_TCP), [udp] "i"(IPPROTO_UDP))

/*
 * The same, except that a source with a mark in the blocklist's bitmaps (block.bpf.h) takes the slow path. The bit's
 * number in its byte is loaded again: for IPv4 it is in the address's third byte.
 */
#define COUNT_FAST_UNMARKED(slow_function, marks4_, marks6_)                                              \
	COUNT_FAST_WITH(slow_function,                                                                    \
	"	w0 = *(u32 *)(r2 + 26);"                                                                          \
	"	r0 = be32 r0;"                                                                                    \
	"	w0 >>= 11;"                                                                                       \
	"	r6 = %[marks4] ll;"                                                                               \
	"	r6 += r0;"                                                                                        \
	"	w6 = *(u8 *)(r6 + 0);"                                                                            \
	"	w0 = *(u8 *)(r2 + 28);"                                                                           \
	"	w0 &= 7;"                                                                                         \
	"	w6 >>= w0;"                                                                                       \
	"	w6 &= 1;"                                                                                         \
	"	if w6 != 0 goto long_%=;",                                                                        \
	"	w0 = *(u32 *)(r2 + 22);"                                                                          \
	"	w0 *= %[factor];"                                                                                 \
	"	w0 >>= 11;"                                                                                       \
	"	r6 = %[marks6] ll;"                                                                               \
	"	r6 += r0;"                                                                                        \
	"	w6 = *(u8 *)(r6 + 0);"                                                                            \
	"	w0 = *(u32 *)(r2 + 22);"                                                                          \
	"	w0 *= %[factor];"                                                                                 \
	"	w0 >>= 8;"                                                                                        \
	"	w0 &= 7;"                                                                                         \
	"	w6 >>= w0;"                                                                                       \
	"	w6 &= 1;"                                                                                         \
	"	if w6 != 0 goto long_%=;", marks4_, marks6_)
/* clang-format on */

#endif
