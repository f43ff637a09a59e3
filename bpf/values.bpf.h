/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Reading a probe's values from registers and memory of the traced program. */
#ifndef VALUES_BPF_H
#define VALUES_BPF_H

#include "maps.bpf.h"

/* Missing before Linux 6.12, where the loader resolves it to nothing. */
extern int bpf_copy_from_user_str(void *dst, __u32 dst__sz, const void *unsafe_ptr__ign,
				  __u64 flags) __ksym __weak;

#define PAGE_SHIFT 12

/*
 * What one hit carries through its handling. It holds no pointers: functions that are not static are verified once
 * and by themselves, which keeps loading quick, and to them memory is only numbers.
 */
struct hit {
	__u32 shard;
	__u32 faults; /* bit i: value i could not be read */
	__u64 values[MAX_VALUES];
};

/*
 * The quick read fails on a page that is not resident, which is common for a string that the program has not
 * touched yet; the slow one may sleep and fault it in.
 */
static __always_inline long read_user(void *to, __u32 bytes, const void *from)
{
	long err = bpf_probe_read_user(to, bytes, from);

	if (err)
		err = bpf_copy_from_user(to, bytes, from);
	return err;
}

static __always_inline long read_user_str(void *to, __u32 bytes, const void *from)
{
	long len = bpf_probe_read_user_str(to, bytes, from);

	if (len >= 0)
		return len;
	if (bpf_ksym_exists(bpf_copy_from_user_str)) {
		len = bpf_copy_from_user_str(to, bytes, from, 0);
	} else {
		/* One byte of each page that the string may be on makes it resident. */
		__u64 first = (__u64)from, last = first + bytes - 1;
		char byte;

		bpf_copy_from_user(&byte, 1, from);
		if ((first ^ last) >> PAGE_SHIFT)
			bpf_copy_from_user(&byte, 1, (const void *)(last >> PAGE_SHIFT << PAGE_SHIFT));
		len = bpf_probe_read_user_str(to, bytes, from);
	}
	return len;
}

/*
 * One register of the traced program. The context may only be read at offsets that are constants in the program, so each
 * register has an instruction of its own, written so that the compiler cannot make one of them all. To find the right one
 * takes some five comparisons; a copy on the stack that can be indexed takes as many loads and stores as there are
 * registers, and stack that is needed elsewhere.
 */
#define REGISTER(number)                                           \
	case number:                                               \
		asm volatile("%[v] = *(u64 *)(%[c] + %[o])"        \
			     : [v] "=r"(value)                     \
			     : [c] "r"(ctx), [o] "i"(8 * number)); \
		break

static __always_inline __u64 register_at(const struct pt_regs *ctx, __u32 reg)
{
	__u64 value = 0;

	switch (reg) {
		REGISTER(0);
		REGISTER(1);
		REGISTER(2);
		REGISTER(3);
		REGISTER(4);
		REGISTER(5);
		REGISTER(6);
		REGISTER(7);
		REGISTER(8);
		REGISTER(9);
		REGISTER(10);
		REGISTER(11);
		REGISTER(12);
		REGISTER(13);
		REGISTER(14);
		REGISTER(15);
		REGISTER(16);
		REGISTER(17);
		REGISTER(18);
		REGISTER(19);
		REGISTER(20);
	}
	_Static_assert(NREGS == 21 && sizeof(*ctx) == 8 * NREGS, "a case for each register");
	return value;
}

/* Shows the verifier a bound that the compiler would otherwise prove away or check on another register. */
#define BOUNDED(value, limit)       \
	({                          \
		barrier_var(value); \
		(value) < (limit);  \
	})

/*
 * At most this constant, for all to see: the verifier of Linux 6.1 knows a bound only of the register that was compared,
 * so the compiler may put no copy aside in between.
 */
#define CLAMP(value, most)                       \
	asm volatile("if %[v] <= %[m] goto +1\n" \
		     "%[v] = %[m]"               \
		     : [v] "+r"(value)           \
		     : [m] "i"(most))

static __always_inline __u64 extend(__u64 raw, const struct location *at)
{
	__u32 shift = (64 - 8 * at->bytes) & 63;

	raw <<= shift;
	return at->is_signed ? (__u64)((__s64)raw >> shift) : raw >> shift;
}

/* The value at one location; sets *fault if it could not be read. */
static __always_inline __u64 value_at(const struct location *at, const struct pt_regs *ctx,
				      const struct start *begun, bool *fault)
{
	__u32 bytes = at->bytes, word = at->offset;
	__u64 address, raw = 0;

	/* By far the most common one. */
	if (at->op == LOC_REGISTER)
		return extend(register_at(ctx, at->reg), at);
	switch (at->op) {
	case LOC_CONST:
		return at->offset;
	case LOC_PID:
		return bpf_get_current_pid_tgid() >> 32;
	case LOC_TID:
		return (__u32)bpf_get_current_pid_tgid();
	case LOC_CPU:
		return bpf_get_smp_processor_id();
	case LOC_CGROUP:
		return bpf_get_current_cgroup_id();
	case LOC_COMM:
		return 0;
	case LOC_TIME:
		return bpf_ktime_get_ns();
	case LOC_DURATION:
		return bpf_ktime_get_ns() - begun->time;
	case LOC_CARRIED:
		if (!BOUNDED(word, MAX_CARRIED))
			return 0;
		*fault = begun->faults >> word & 1;
		return begun->carried[word];
	}
	address = register_at(ctx, at->reg) + at->offset;
	if (at->op == LOC_INDEXED)
		address += register_at(ctx, at->index) << (at->scale & 3);
	if (!BOUNDED(bytes, 9) || read_user(&raw, bytes, (const void *)address))
		*fault = true;
	return extend(raw, at);
}

/* Which start belongs to this hit: the thread's, or that of value 0. */
static __always_inline struct start_key start_key(const struct probe *probe, __u64 value)
{
	__u64 tgid_tid = bpf_get_current_pid_tgid();
	struct start_key key = { .span = probe->span, .tgid = tgid_tid >> 32 };

	key.key = probe->flags & PROBE_BY_THREAD ? (__u32)tgid_tid : value;
	return key;
}

/*
 * How many of a thread's starts can still come to their end. A stack grows downwards: a start that was deeper than this
 * one, or at this very place, belonged to a call that was left without the end, by an exception, by longjmp or by another
 * way out. Without this, a few errors would leave no room for the rest of the thread's life.
 */
static __always_inline __u32 still_open(const struct starts *starts_of_thread, const struct pt_regs *ctx)
{
	__u32 depth = starts_of_thread->depth;

#pragma clang loop unroll(full)
	for (__u32 i = 0; i < MAX_DEPTH; i++) {
		const struct start *start = &starts_of_thread->nested[i];

		if (i >= depth)
			return depth;
		if (start->stack < ctx->sp || (start->stack == ctx->sp && start->instruction == ctx->ip))
			return i;
	}
	return depth;
}

/* Keeps the time and the first values for the end of the span. Returns 0, or the book cell that says why not. */
static __always_inline int begin(const struct hit *hit, const struct probe *probe, const struct pt_regs *ctx)
{
	struct start_key key = start_key(probe, hit->values[0]);
	struct starts *starts_of_key = bpf_map_lookup_elem(&starts, &key);
	bool by_thread = probe->flags & PROBE_BY_THREAD;
	__u32 zero = 0, depth, first = by_thread ? 0 : 1;
	struct start *start;

	if (!by_thread && hit->faults & 1)
		return BOOK_LOST_FAULT;
	if (!starts_of_key) {
		const struct starts *none = bpf_map_lookup_elem(&no_starts, &zero);

		if (!none)
			return BOOK_LOST_STARTS_FULL;
		bpf_map_update_elem(&starts, &key, none, BPF_NOEXIST);
		starts_of_key = bpf_map_lookup_elem(&starts, &key);
		if (!starts_of_key)
			return BOOK_LOST_STARTS_FULL;
	}
	depth = by_thread ? still_open(starts_of_key, ctx) : 0;
	if (depth < starts_of_key->depth)
		add(hit->shard + probe->book + BOOK_FORGOTTEN, starts_of_key->depth - depth);
	if (!BOUNDED(depth, MAX_DEPTH)) {
		/* Counted, so that the ends of the outer ones still find their own starts. */
		starts_of_key->depth++;
		return BOOK_LOST_STARTS_FULL;
	}
	start = &starts_of_key->nested[depth];
	start->time = bpf_ktime_get_ns();
	start->stack = ctx->sp;
	start->instruction = ctx->ip;
	start->faults = hit->faults >> first;
#pragma clang loop unroll(full)
	for (__u32 i = 0; i < MAX_CARRIED; i++)
		start->carried[i] = hit->values[first + i];
	starts_of_key->depth = depth + 1;
	return 0;
}

/*
 * Which of a thread's starts is that of the call that returns here; MAX_DEPTH if none is. What began deeper was left
 * without its return: by an exception, or because the kernel follows no more than 64 returns at once.
 */
static __always_inline __u32 returning(const struct starts *starts_of_thread, const struct pt_regs *ctx)
{
#pragma clang loop unroll(full)
	for (__u32 i = 0; i < MAX_DEPTH; i++) {
		/* The return has taken the return address from the stack. */
		if (i < starts_of_thread->depth && starts_of_thread->nested[i].stack + 8 == ctx->sp)
			return i;
	}
	return MAX_DEPTH;
}

/* Takes the latest start of the key. Returns 0, or the book cell that says why there is none. */
static __always_inline int finish(const struct hit *hit, const struct probe *probe, __u64 value,
				  const struct pt_regs *ctx, struct start *begun)
{
	struct start_key key = start_key(probe, value);
	struct starts *starts_of_key = bpf_map_lookup_elem(&starts, &key);
	__u32 depth;

	if (!starts_of_key || !starts_of_key->depth)
		return BOOK_LOST_NO_START;
	depth = starts_of_key->depth - 1;
	if (probe->flags & PROBE_RETURN) {
		__u32 kept = depth < MAX_DEPTH ? depth : MAX_DEPTH - 1;

		depth = returning(starts_of_key, ctx);
		if (depth >= MAX_DEPTH)
			return kept == MAX_DEPTH - 1 ? BOOK_LOST_STARTS_FULL : BOOK_LOST_NO_START;
		if (depth < kept)
			add(hit->shard + probe->book + BOOK_FORGOTTEN, kept - depth);
	}
	starts_of_key->depth = depth;
	if (!BOUNDED(depth, MAX_DEPTH))
		return BOOK_LOST_STARTS_FULL;
	*begun = starts_of_key->nested[depth];
	if (!(probe->flags & PROBE_BY_THREAD))
		bpf_map_delete_elem(&starts, &key);
	return 0;
}

/*
 * All values of the hit; at the end of a span its start is looked up first. Text stays where it is: its value is the
 * address. Entered is the time that a session uprobe kept, or 0. Returns 0, or the book cell that says why the hit is
 * lost.
 */
static __always_inline int read_values(struct hit *hit, const struct probe *probe, const struct site *site,
				       const struct pt_regs *ctx, __u64 entered)
{
	struct start begun = { .time = entered };
	int lost;

	if (probe->flags & PROBE_END && !entered) {
		bool fault = false;
		__u64 key = 0;

		if (!(probe->flags & PROBE_BY_THREAD))
			key = value_at(&site->values[0], ctx, &begun, &fault);
		if (fault)
			return BOOK_LOST_FAULT;
		lost = finish(hit, probe, key, ctx, &begun);
		if (lost)
			return lost;
	}
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < MAX_VALUES; i++) {
		bool fault = false;

		if (i >= probe->nvalues)
			break;
		hit->values[i] = value_at(&site->values[i], ctx, &begun, &fault);
		if (fault)
			hit->faults |= 1U << i;
	}
	return 0;
}

/*
 * Reads the text that value i is the address of, at most room bytes of it. Returns its length without the NUL of a
 * C string, or a negative number. Capacity is the constant that room never exceeds.
 */
static __always_inline long read_text(const struct hit *hit, const struct probe *probe, __u32 i, void *to,
				      __u32 room, const __u32 capacity)
{
	__u64 max, bytes = 0;
	const struct value *what;
	const void *from;
	__u32 len;
	long err;

	if (!BOUNDED(i, MAX_VALUES) || hit->faults & (1U << i))
		return -1;
	what = &probe->values[i];
	from = (const void *)hit->values[i];
	max = what->max;
	len = what->len_value;
	if (max > room)
		max = room;
	switch (what->kind) {
	case VALUE_COMM:
		if (room < 16)
			return -1;
		err = bpf_get_current_comm(to, 16);
		return err ? err : 16;
	case VALUE_STRING:
		CLAMP(max, capacity);
		err = read_user_str(to, max, from);
		return err > 0 ? err - 1 : err;
	case VALUE_STRING_LEN:
		if (!BOUNDED(len, MAX_VALUES) || hit->faults & (1U << len))
			return -1;
		bytes = hit->values[len];
		break;
	case VALUE_BYTES:
		bytes = max;
		break;
	default:
		return -1;
	}
	if (bytes > max)
		bytes = max;
	if (!bytes)
		return 0;
	CLAMP(bytes, capacity);
	err = read_user(to, bytes, from);
	return err ? err : (long)bytes;
}

#endif
