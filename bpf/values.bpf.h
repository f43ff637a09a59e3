/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Reads a probe's values from registers and memory of the traced program. */
#ifndef VALUES_BPF_H
#define VALUES_BPF_H

#include "maps.bpf.h"
#include "processes.bpf.h"
#include "user.bpf.h"

/*
 * The state of one hit while it is handled. It has no pointers: functions that are not static are verified once and
 * on their own, which keeps loading fast, and see memory only as numbers.
 */
struct hit {
	__u32 shard;
	__u32 faults; /* bit i: value i could not be read; see also LARGE_VALUE */
	__u64 values[MAX_VALUES];
	struct text_key text; /* at the end of a span: the key of the text that its start kept */
};

/*
 * Reads one register of the traced program. The context may only be read at constant offsets, so each register has
 * its own instruction, written so that the compiler cannot merge them into one. Finding the right one takes some five
 * comparisons; a copy on the stack that can be indexed takes as many loads and stores as there are registers, and
 * stack that is needed elsewhere.
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

/* Shows the verifier a bound that the compiler would otherwise optimize away or check on another register. */
#define BOUNDED(value, limit)       \
	({                          \
		barrier_var(value); \
		(value) < (limit);  \
	})

static __always_inline __u64 extend(__u64 raw, const struct location *at)
{
	__u32 shift = (64 - 8 * at->bytes) & 63;

	raw <<= shift;
	return at->is_signed ? (__u64)((__s64)raw >> shift) : raw >> shift;
}

/*
 * Returns the value at one location; sets *fault if it could not be read. `began` is the time when the call or span
 * started, and `begun` what its start kept, or NULL.
 */
static __always_inline __u64 value_at(const struct location *at, const struct pt_regs *ctx, __u64 began,
				      const struct start *begun, bool *fault)
{
	__u32 bytes = at->bytes, word = at->index;
	__u64 address, raw = 0;

	/* By far the most common case. */
	if (at->op == LOC_REGISTER)
		return extend(register_at(ctx, at->reg), at);
	switch (at->op) {
	case LOC_CONST:
		return at->offset;
	case LOC_PID:
		return ids() >> 32;
	case LOC_TID:
		return (__u32)ids();
	case LOC_CPU:
		return bpf_get_smp_processor_id();
	case LOC_CGROUP:
		return bpf_get_current_cgroup_id();
	case LOC_COMM:
		return 0;
	case LOC_EXE:
	case LOC_CMDLINE:
		if (!used_process_texts)
			return PROCESS_NO_ROOM;
		raw = process_text_number(at->op == LOC_EXE ? PROCESS_EXE : PROCESS_CMDLINE);
		*fault |= raw == PROCESS_UNREADABLE;
		return raw;
	case LOC_DURATION:
		return bpf_ktime_get_ns() - began;
	case LOC_CARRIED:
	case LOC_CARRIED_MEMORY:
		if (!begun || !BOUNDED(word, MAX_CARRIED) || begun->faults >> word & 1) {
			*fault = true;
			return 0;
		}
		address = begun->carried[word];
		if (at->op == LOC_CARRIED)
			return address;
		break;
	default:
		address = register_at(ctx, at->reg);
	}
	address += at->offset;
	if (at->op == LOC_INDEXED)
		address += register_at(ctx, at->index) << (at->scale & 3);
	if (!BOUNDED(bytes, 9) || read_user(&raw, bytes, (const void *)address))
		*fault = true;
	return extend(raw, at);
}

/* Whether a value whose highest bit is set is unsigned, and so is 2^63 or more. */
static __always_inline bool is_large(const struct location *at, const struct start *begun)
{
	__u32 word = at->index;

	if (at->op != LOC_CARRIED)
		return !at->is_signed;
	return begun && BOUNDED(word, MAX_CARRIED) && begun->faults >> (MAX_CARRIED + word) & 1;
}

#define AF_INET 2
#define AF_INET6 10
/* Bytes of a sockaddr_in, and of a sockaddr_in6 before its scope. */
#define SOCKADDR_IN_BYTES 8
#define SOCKADDR_IN6_BYTES 24

/* Records that value i, which is text, could not be read, and counts the hit if it is the first of its values. */
__noinline int note_fault(struct hit *hit, struct probe *probe, __u32 i)
{
	if (!hit || !probe || !BOUNDED(i, MAX_VALUES))
		return 0;
	if (!(hit->faults & ((1U << LARGE_VALUE) - 1)))
		add(hit->shard + probe->accounting + ACCT_READ_FAULTS, 1);
	hit->faults |= 1U << i;
	return 0;
}

/* Copies text that the start kept; `where` is (offset << 32 | length) of its bytes. */
static __always_inline long carried_text(const struct hit *hit, __u64 where, void *to, __u64 max,
					 const __u32 capacity)
{
	struct text_key key = hit->text;
	struct start_text *kept = bpf_map_lookup_elem(&start_texts, &key);
	__u64 from = where >> 32, bytes = (__u32)where;

	if (!kept)
		return -1;
	if (bytes > max)
		bytes = max;
	if (!bytes)
		return 0;
	CLAMP(bytes, capacity);
	CLAMP(from, CARRIED_TEXTS - MAX_BYTES);
	return bpf_probe_read_kernel(to, bytes, kept->bytes + from) ? -1 : (long)bytes;
}

/*
 * Reads the text that value i is the address of, at most room bytes of it. Returns its length without the NUL of a
 * C string, or a negative number. Where there is NULL instead of a string, it is empty. Capacity is the constant that room never
 * exceeds.
 */
static __always_inline long read_text(const struct hit *hit, const struct probe *probe, __u32 i, void *to,
				      __u32 room, const __u32 capacity)
{
	__u64 max, bytes = 0;
	const struct value *what;
	const void *from;
	__u16 family = 0;
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
		if (!from)
			return 0;
		CLAMP(max, capacity);
		err = read_user_str(to, max, from);
		return err > 0 ? err - 1 : err;
	case VALUE_STRING_LEN:
		if (!BOUNDED(len, MAX_VALUES) || hit->faults & (1U << len))
			return -1;
		bytes = hit->values[len];
		/* An error code such as -1: there is no text. */
		if ((__s64)bytes < 0)
			return -1;
		if (!from)
			return 0;
		break;
	case VALUE_BYTES:
		bytes = max;
		break;
	case VALUE_SOCKADDR:
		/* The memory after it is not its own, and may not even be mapped. */
		if (read_user(&family, sizeof(family), from))
			return -1;
		bytes = family == AF_INET    ? SOCKADDR_IN_BYTES
			: family == AF_INET6 ? SOCKADDR_IN6_BYTES
					     : sizeof(family);
		break;
	case VALUE_CARRIED:
		return carried_text(hit, (__u64)from, to, max, capacity);
	default:
		return -1;
	}
	if (bytes > max)
		bytes = max;
	if (!bytes)
		return 0;
	CLAMP(bytes, capacity);
	err = read_user(to, bytes, from);
	if (err)
		return err;
	/* Clears the flow label, which is not part of the peer's address. */
	if (family == AF_INET6)
		((__u32 *)to)[1] = 0;
	return bytes;
}

#endif
