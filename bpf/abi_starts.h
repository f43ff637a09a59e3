/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The part of abi.h about starts: calls and spans that are open. */
#ifndef ABI_STARTS_H
#define ABI_STARTS_H

/* Key and value of the map that holds begun spans and calls. */
struct start_key {
	__u32 span;
	__u32 tgid; /* forked processes have the same addresses in their arguments and on their stacks */
	__u64 key; /* argument, thread, or of a call which of the probe's functions; on a goroutine's stack, also which one */
	__u64 frame; /* of a call, the address of its return address; of a thread, which of its nested starts */
};

/*
 * A goroutine's stack moves, but stays as far from its upper end: the frame is relative to that. Addresses of goroutines,
 * like all of user space with tables of four levels, have 47 bits.
 */
enum goroutine_key {
	GOROUTINE_FUNCTION = 47, /* shift of the function's number */
	GOROUTINE_MARK = 63, /* number of the bit that tells such keys from others */
};

struct start {
	__u64 time;
	__u32 tid;
	__u16 faults; /* bit i: carried value i could not be read; bit MAX_CARRIED + i: it is 2^63 or more, without a sign */
	__u8 stage; /* enum call_stage */
	__u8 execs; /* how many programs the process had executed, of which the last one began this; the lowest bits */
	__u64 carried[MAX_CARRIED];
};

/* A thread's open starts are numbered from oldest to depth - 1. */
struct thread_key {
	__u32 span;
	__u32 tid;
};

struct nesting {
	__u32 depth;
	__u32 oldest;
};

/* Key of the text that a start keeps: no two starts have both alike. */
struct text_key {
	__u64 time;
	__u64 tid;
};

struct start_text {
	__u64 used;
	__u8 bytes[CARRIED_TEXTS];
};

#endif
