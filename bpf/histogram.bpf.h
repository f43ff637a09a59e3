/* SPDX-License-Identifier: (GPL-2.0-only OR MIT OR Apache-2.0) */
/* Histograms of the network stack's times, whose bounds are powers of two. */
#ifndef HISTOGRAM_BPF_H
#define HISTOGRAM_BPF_H

#include "net_types.bpf.h"
#include <bpf/bpf_helpers.h>

/* Bucket i counts values of at most 2^(i + shift), the last one all others. */
#define SLOTS 24
struct stack_histogram {
	__u64 counts[SLOTS];
	__u64 sum;
};

static __always_inline __u32 log2_of(__u64 value)
{
	__u32 result = 0;

	if (value >> 32) {
		value >>= 32;
		result += 32;
	}
	if (value >> 16) {
		value >>= 16;
		result += 16;
	}
	if (value >> 8) {
		value >>= 8;
		result += 8;
	}
	if (value >> 4) {
		value >>= 4;
		result += 4;
	}
	if (value >> 2) {
		value >>= 2;
		result += 2;
	}
	return result + (value >> 1 != 0);
}

/* `shift` is the exponent of the first bound. */
static __always_inline void observe(struct stack_histogram *to, __u64 value, __u32 shift)
{
	__u32 slot = value ? log2_of(value) + 1 : 0;

	/* Bounds are inclusive. */
	if (value && !(value & (value - 1)))
		slot--;
	slot = slot > shift ? slot - shift : 0;
	if (slot >= SLOTS)
		slot = SLOTS - 1;
	barrier_var(slot);
	if (slot >= SLOTS)
		return;
	to->counts[slot]++;
	to->sum += value;
}

#endif
