/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The tables of abi.h as maps, and the slots. Sizes written as 1 are set before loading. */
#ifndef MAPS_BPF_H
#define MAPS_BPF_H

#include "abi.h"

/*
 * The features that the tables use. They are constant once the programs are loaded, so the verifier does not check
 * code for unused features, and removes it. Tested only after a row has asked for a feature: hits that do not need it
 * pay nothing.
 */
const volatile __u32 used_probe_flags = ~0U; /* enum probe_flag */
const volatile __u32 used_label_flags = ~0U; /* enum label_flag */
const volatile __u32 used_events = ~0U; /* bit enum event_class */
const volatile __u32 used_globs = ~0U;
const volatile __u32 used_process_texts = ~0U;

#define HAS(probe, flag) ((probe)->flags & (flag) && used_probe_flags & (flag))

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
 * slots_per_shard numbers for each shard. A CPU adds to its own shard, and several CPUs may share one: the additions
 * are atomic, so sharing costs time but never a count. The slots are mapped, so that they are read without a system
 * call.
 */
TABLE(slots, __u64, BPF_F_MMAPABLE);

HASH(numbers, BPF_MAP_TYPE_HASH, 0, struct word_key, __u32, 1);

/*
 * The numbers of integers and of short texts again, with keys that are faster to hash and compare. What has no room
 * here is found in the map above.
 */
HASH(integers, BPF_MAP_TYPE_HASH, 0, struct integer_key, __u32, 4096);
HASH(short_texts, BPF_MAP_TYPE_HASH, 0, struct short_key, __u32, 4096);

HASH(starts, BPF_MAP_TYPE_HASH, 0, struct start_key, struct start, 1);
/* Calls that jump back to the entry of their function, until they arrive there. */
HASH(turns, BPF_MAP_TYPE_HASH, BPF_F_NO_PREALLOC, struct start_key, __u8, 4096);

HASH(nestings, BPF_MAP_TYPE_HASH, 0, struct thread_key, struct nesting, 1);

/* Few starts are open at once, so memory is allocated on demand. */
HASH(start_texts, BPF_MAP_TYPE_HASH, BPF_F_NO_PREALLOC, struct text_key, struct start_text, 1);

/* The initial value of a new text, which is too large for the stack. */
TABLE(no_text, struct start_text, 0);

/* Whether cgroups are selected. */
HASH(cgroups, BPF_MAP_TYPE_LRU_HASH, 0, struct cgroup_key, __u32, 1);

/* The containers and pods of filters that select by them. */
HASH(members, BPF_MAP_TYPE_HASH, BPF_F_NO_PREALLOC, struct member_key, __u32, 1);

/* Whether command lines match. */
HASH(lines, BPF_MAP_TYPE_LRU_HASH, 0, struct line_key, struct line, 1);

/* Children that are selected together with the processes that started them. */
HASH(children, BPF_MAP_TYPE_HASH, BPF_F_NO_PREALLOC, struct child_key, __u32, 1);

/* What labels show of processes: the numbers of each process's texts, and the texts by number. */
HASH(process_numbers, BPF_MAP_TYPE_LRU_HASH, 0, struct process_key, struct process_numbers, 1);
HASH(process_texts, BPF_MAP_TYPE_HASH, BPF_F_NO_PREALLOC, __u64, struct process_text, 1);
/* The initial value of a new one. */
TABLE(no_process_text, struct process_text, 0);

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} ring SEC(".maps");

const volatile __u32 shard_mask = 0;
const volatile __u32 slots_per_shard = 0;

/* Returns the first slot of the current CPU's shard. */
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
