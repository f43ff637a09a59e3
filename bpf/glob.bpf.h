/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Matches names and command lines against patterns with * and ?. */
#ifndef GLOB_BPF_H
#define GLOB_BPF_H

#include "abi.h"

#define PAGE_BYTES 4096

TABLE(globs, struct glob, 0);

/*
 * The state of matching a text against a glob. In a command line, which may not be resident, a NUL is the space
 * between two arguments.
 */
struct matching {
	__u64 address;
	__u64 left; /* bytes */
	__u64 states[2];
	__u32 glob;
	__u8 is_line; /* this and the next three are enum flag */
	__u8 is_apart; /* NULs were seen, and nothing after them yet */
	__u8 has_begun;
	__u8 has_failed;
};

/*
 * Never 0: the verifier distinguishes a zero on the stack from other numbers, and would follow each path through a
 * text separately.
 */
enum flag { NO = 1, YES };

static __always_inline void take_byte(const struct glob *glob, struct matching *at, __u8 byte)
{
	__u64 stays[2] = { glob->any[0], glob->any[1] };

	if ((byte & 0xc0) == 0x80) {
		stays[0] |= glob->within[0];
		stays[1] |= glob->within[1];
	}
	at->states[1] =
		((at->states[1] << 1 | at->states[0] >> 63) & glob->to[byte][1]) | (at->states[1] & stays[1]);
	at->states[0] = (at->states[0] << 1 & glob->to[byte][0]) | (at->states[0] & stays[0]);
}

/* Processes up to eight bytes of the text, for bpf_loop; returns 1 at its end. */
static long take_word(__u32 n, struct matching *at)
{
	const struct glob *glob = bpf_map_lookup_elem(&globs, &at->glob);
	__u64 word = 0, bytes = at->left;
	long failed;

	if (!glob || !bytes)
		return 1;
	CLAMP(bytes, 8);
	if (at->is_line == YES)
		failed = bpf_probe_read_user(&word, bytes, (const void *)at->address);
	else
		failed = bpf_probe_read_kernel_str(&word, sizeof(word), (const void *)at->address) < 0;
	if (failed) {
		at->has_failed = YES;
		return 1;
	}
	if (at->is_line == NO)
		/* One of the eight is the NUL that the helper appends. */
		bytes = 7;
	for (__u32 i = 0; i < 8; i++, word >>= 8) {
		if (i >= bytes)
			break;
		if (word & 0xff) {
			if (at->is_apart == YES)
				take_byte(glob, at, ' ');
			take_byte(glob, at, word);
			at->is_apart = NO;
			at->has_begun = YES;
		} else if (at->is_line == NO) {
			return 1;
		} else {
			at->is_apart = at->has_begun;
		}
	}
	at->address += bytes;
	at->left -= bytes;
	return 0;
}

/* Whether the text matches; negative if it could not be read. */
__noinline int fits_glob(__u64 address, __u64 length, __u32 number, bool is_line)
{
	struct matching at = {
		.address = address,
		.left = length,
		.states = { 1 },
		.glob = number,
		.is_line = is_line ? YES : NO,
		.is_apart = NO,
		.has_begun = NO,
		.has_failed = NO,
	};
	const struct glob *glob = bpf_map_lookup_elem(&globs, &number);

	if (!glob)
		return 0;
	bpf_loop(MAX_LINE / 7, take_word, &at, 0);
	if (at.has_failed == YES)
		return -1;
	return at.states[glob->end >> 6 & 1] >> (glob->end & 63) & 1;
}

#endif
