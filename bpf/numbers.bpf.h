/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The free numbers of an interner: those that were returned, as a stack that all CPUs and user space pop from and
 * push to without a lock, and those that were never assigned.
 *
 * tests/unprivileged/numbers.c runs this very source as a user program, in every order in which a few CPUs can
 * execute it.
 */
#ifndef NUMBERS_BPF_H
#define NUMBERS_BPF_H

#define STACK_TRIES 16

static __always_inline struct entry *entry_of(const struct interner *interner, __u32 number)
{
	__u32 at = interner->first_entry + number;

	return bpf_map_lookup_elem(&entries, &at);
}

/* Takes a free number; ~0 if there is none. */
static __always_inline __u32 take_number(struct interner *interner)
{
	__u32 number;

#pragma clang loop unroll(disable)
	for (int tries = 0; tries < STACK_TRIES; tries++) {
		__u64 top = *(volatile __u64 *)&interner->free, under;
		struct entry *entry;

		if (!(__u32)top)
			break;
		number = (__u32)top - 1;
		entry = entry_of(interner, number);
		if (!entry)
			break;
		under = ((top >> 32) + 1) << 32 | (__u32) * (volatile __u64 *)&entry->words[0];
		if (__sync_val_compare_and_swap(&interner->free, top, under) == top)
			return number;
	}
	number = __sync_fetch_and_add(&interner->next, 1);
	if (number < interner->capacity)
		return number;
	__sync_fetch_and_add(&interner->next, -1);
	return ~0U;
}

static __always_inline void give_back(struct interner *interner, __u32 number)
{
	struct entry *entry = entry_of(interner, number);

	if (!entry)
		return;
#pragma clang loop unroll(disable)
	for (int tries = 0; tries < STACK_TRIES; tries++) {
		__u64 top = *(volatile __u64 *)&interner->free;

		*(volatile __u64 *)&entry->words[0] = (__u32)top;
		if (__sync_val_compare_and_swap(&interner->free, top, ((top >> 32) + 1) << 32 | (number + 1)) ==
		    top)
			return;
	}
}

#endif
