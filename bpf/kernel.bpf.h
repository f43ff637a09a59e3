/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The few kernel types and constants that the probe programs need, so that neither kernel headers nor a dumped
 * vmlinux.h have to be in the repository. Names, values and layouts are those of Linux UAPI <linux/bpf.h>,
 * <linux/types.h> and arch/x86/include/asm/ptrace.h (struct pt_regs), which are stable ABI; nothing here depends on a
 * kernel version.
 */
#ifndef KERNEL_BPF_H
#define KERNEL_BPF_H

typedef signed char __s8;
typedef unsigned char __u8;
typedef short __s16;
typedef unsigned short __u16;
typedef int __s32;
typedef unsigned int __u32;
typedef long long __s64;
typedef unsigned long long __u64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;
typedef _Bool bool;
#define true 1
#define false 0
#define NULL ((void *)0)

enum bpf_map_type {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PERCPU_HASH = 5,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_RINGBUF = 27,
	BPF_MAP_TYPE_TASK_STORAGE = 29,
};

enum {
	BPF_ANY = 0,
	BPF_NOEXIST = 1,
};

enum {
	BPF_F_NO_PREALLOC = 1U << 0,
	BPF_F_MMAPABLE = 1U << 10,
};

enum {
	BPF_F_USER_STACK = 1ULL << 8,
};

enum {
	BPF_RB_NO_WAKEUP = 1ULL << 0,
	BPF_RB_FORCE_WAKEUP = 1ULL << 1,
};

enum {
	BPF_RB_AVAIL_DATA = 0,
	BPF_RB_RING_SIZE = 1,
};

/* A process that was forked and has not executed a program since. */
#define PF_FORKNOEXEC 0x40

enum {
	BPF_LOCAL_STORAGE_GET_F_CREATE = 1ULL << 0,
};

/* A hash map. */
#define HASH(name_, type_, flags_, key_, value_, entries_) \
	struct {                                           \
		__uint(type, type_);                       \
		__uint(map_flags, flags_);                 \
		__uint(max_entries, entries_);             \
		__type(key, key_);                         \
		__type(value, value_);                     \
	} name_ SEC(".maps")

/* An array; its size is set before loading. */
#define TABLE(name_, value_, flags_)              \
	struct {                                  \
		__uint(type, BPF_MAP_TYPE_ARRAY); \
		__uint(max_entries, 1);           \
		__uint(map_flags, flags_);        \
		__type(key, __u32);               \
		__type(value, value_);            \
	} name_ SEC(".maps")

/*
 * Limits a value to a constant so that the verifier sees it: that of Linux 6.1 tracks a bound only for the register
 * that was compared, so the compiler must not use a copy in between.
 */
#define CLAMP(value, most)                       \
	asm volatile("if %[v] <= %[m] goto +1\n" \
		     "%[v] = %[m]"               \
		     : [v] "+r"(value)           \
		     : [m] "i"(most))

/* x86_64; the ABI numbers registers by their position in this struct. */
struct pt_regs {
	unsigned long r15;
	unsigned long r14;
	unsigned long r13;
	unsigned long r12;
	unsigned long bp;
	unsigned long bx;
	unsigned long r11;
	unsigned long r10;
	unsigned long r9;
	unsigned long r8;
	unsigned long ax;
	unsigned long cx;
	unsigned long dx;
	unsigned long si;
	unsigned long di;
	unsigned long orig_ax;
	unsigned long ip;
	unsigned long cs;
	unsigned long flags;
	unsigned long sp;
	unsigned long ss;
};

#endif
