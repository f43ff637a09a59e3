/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The tables of abi.h as maps, and the slots. Sizes written as 1 are set before loading. */
#ifndef MAPS_BPF_H
#define MAPS_BPF_H

#include "abi.h"

#define TABLE(name_, value_, flags_)              \
	struct {                                  \
		__uint(type, BPF_MAP_TYPE_ARRAY); \
		__uint(max_entries, 1);           \
		__uint(map_flags, flags_);        \
		__type(key, __u32);               \
		__type(value, value_);            \
	} name_ SEC(".maps")

TABLE(sites, struct site, 0);
TABLE(probes, struct probe, 0);
TABLE(actions, struct action, 0);
TABLE(filters, struct filter, 0);
TABLE(patterns, struct pattern, 0);
TABLE(bounds, struct bounds, 0);
TABLE(interners, struct interner, BPF_F_MMAPABLE);
TABLE(small_integers, struct small_integers, BPF_F_MMAPABLE);
TABLE(entries, struct entry, BPF_F_MMAPABLE);
TABLE(control, struct control, BPF_F_MMAPABLE);

/*
 * slots_per_shard numbers, once for each shard. A CPU adds to its own shard, and several CPUs may share one: the
 * additions are atomic, so sharing costs time but never a count. Being mapped, the slots are read without a system
 * call.
 */
TABLE(slots, __u64, BPF_F_MMAPABLE);

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct word_key);
	__type(value, __u32);
} numbers SEC(".maps");

/*
 * The numbers of integers and of short texts once more: their keys are hashed and compared in less time. What has no
 * room here is found above.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct integer_key);
	__type(value, __u32);
} integers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct short_key);
	__type(value, __u32);
} short_texts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct start_key);
	__type(value, struct start);
} starts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct thread_key);
	__type(value, struct nesting);
} nestings SEC(".maps");

/* Few starts are open at once, so that memory is taken as it is needed. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct text_key);
	__type(value, struct start_text);
} start_texts SEC(".maps");

/* What a new text begins with: too large for the stack. */
TABLE(no_text, struct start_text, 0);

/* Whether a control group is of a container that is meant. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct cgroup_key);
	__type(value, __u32);
} cgroups SEC(".maps");

TABLE(globs, struct glob, 0);

/* The containers and pods of filters by these. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct member_key);
	__type(value, __u32);
} members SEC(".maps");

/* Whether command lines fit. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__type(key, struct line_key);
	__type(value, struct line);
} lines SEC(".maps");

/* Whom processes have started that are meant together with them. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct child_key);
	__type(value, __u32);
} children SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} ring SEC(".maps");

/*
 * At most this constant, for all to see: the verifier of Linux 6.1 knows a bound only of the register that was compared,
 * so the compiler may put no copy aside in between.
 */
#define CLAMP(value, most)                       \
	asm volatile("if %[v] <= %[m] goto +1\n" \
		     "%[v] = %[m]"               \
		     : [v] "+r"(value)           \
		     : [m] "i"(most))

const volatile __u32 shard_mask = 0;
const volatile __u32 slots_per_shard = 0;

/* The shard's first slot for the CPU that runs this. */
static __always_inline __u32 shard_base(void)
{
	return (bpf_get_smp_processor_id() & shard_mask) * slots_per_shard;
}

static __always_inline void add(__u32 slot, __u64 amount)
{
	__u64 *number = bpf_map_lookup_elem(&slots, &slot);

	if (number)
		__sync_fetch_and_add(number, amount);
}

#endif
