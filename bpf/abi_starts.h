/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The part of abi.h about starts: open calls and spans. */
#ifndef ABI_STARTS_H
#define ABI_STARTS_H

/* Key and value of the map of open spans and calls. */
struct start_key {
	__u32 span;
	__u32 tgid; /* because forked processes have the same addresses in arguments and on stacks */
	__u64 key; /* argument or thread; for a call, the function, and on a goroutine's stack the goroutine */
	__u64 frame; /* for a call, the address of its return address; for a thread, which nested start */
};

/*
 * A goroutine's stack can move, but distances from its upper end stay the same: the frame is relative to that end.
 * Addresses of goroutines have 47 bits, like all user-space addresses with four-level page tables.
 */
enum goroutine_key {
	GOROUTINE_FUNCTION = 47, /* shift of the function's number */
	GOROUTINE_MARK = 63, /* number of the bit that marks such keys */
};

struct start {
	__u64 time;
	__u32 tid;
	__u16 faults; /* bit i: carried value i unreadable; bit MAX_CARRIED + i: it is unsigned and 2^63 or more */
	__u8 stage; /* enum call_stage */
	__u8 execs; /* low bits of the number of programs that the process had executed at the start */
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

/* Key of the text that a start keeps: no two starts have the same time and tid. */
struct text_key {
	__u64 time;
	__u64 tid;
};

struct start_text {
	__u64 used;
	__u8 bytes[CARRIED_TEXTS];
};

#endif
