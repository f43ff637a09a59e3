/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Children of processes that targets with `children: true` select: recorded by the fork itself. */
#ifndef FAMILY_BPF_H
#define FAMILY_BPF_H

#include "filter.bpf.h"

/* The filters of such targets. */
const volatile __u32 families[MAX_FAMILIES] = {};
const volatile __u32 nfamilies = 0;

/* Children for which there was no room: they are not selected. */
__u64 children_lost = 0;

/* Records a child that the current process has forked. */
static __always_inline int note_child(struct task_struct *child)
{
	struct child_key key = {};
	__u32 yes = 1;

	if (BPF_CORE_READ(child, pid) != BPF_CORE_READ(child, tgid))
		return 0;
	key.tgid = process_id(child);
	if (!key.tgid)
		return 0;
	for (__u32 i = 0; i < MAX_FAMILIES && i < nfamilies; i++) {
		key.filter = families[i];
		if (is_meant(key.filter) > 0 && bpf_map_update_elem(&children, &key, &yes, BPF_ANY))
			__sync_fetch_and_add(&children_lost, 1);
	}
	return 0;
}

static __always_inline int forget_child(struct task_struct *task)
{
	struct child_key key = {};

	/* The process lives on in threads that outlive this one. */
	if (BPF_CORE_READ(task, signal, live.counter) > 0)
		return 0;
	key.tgid = process_id(task);
	for (__u32 i = 0; i < MAX_FAMILIES && i < nfamilies; i++) {
		key.filter = families[i];
		bpf_map_delete_elem(&children, &key);
	}
	return 0;
}

#endif
