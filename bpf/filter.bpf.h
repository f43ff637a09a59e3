/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Who hits a probe: its ids as the exporter's /proc has them, and whether the target means it.
 *
 * Nothing is remembered of processes. The filter looks at what the process is at this hit, so that fork, exec, a change of
 * name and a number that is used again need no events that could come too late.
 */
#ifndef FILTER_BPF_H
#define FILTER_BPF_H

#include <bpf/bpf_core_read.h>
#include "ids.bpf.h"
#include "task.bpf.h"

/* The first of the filters for candidates: one for each target, after those for targets. */
const volatile __u32 candidate_filters = 0;

/* The same as a key: processes outside of the namespace, whose ids are 0, must not be taken for one another. */
static __always_inline __u64 key_ids(void)
{
	__u64 inside = ids();

	return inside ? inside : bpf_get_current_pid_tgid() | (__u64)ID_OUTSIDE << 32 | ID_OUTSIDE;
}

/* Whether the executable's base name is the filter's. */
static __always_inline bool exe_is_called(const struct filter *filter)
{
	struct task_struct *task = bpf_get_current_task_btf();
	__u64 words[4];
	__u32 length;

	if (!task->mm || !task->mm->exe_file)
		return false;
	length = task->mm->exe_file->f_path.dentry->d_name.len;
	if (length != filter->length)
		return false;
	for (__u32 i = 0; i < FILTER_WORDS / 4; i++) {
		__u64 left = length - 32 * i;

		if (32 * i >= length)
			break;
		CLAMP(left, 32);
		words[0] = words[1] = words[2] = words[3] = 0;
		if (bpf_probe_read_kernel(words, left, task->mm->exe_file->f_path.dentry->d_name.name + 32 * i))
			return false;
		if (words[0] != filter->name[4 * i] || words[1] != filter->name[4 * i + 1] ||
		    words[2] != filter->name[4 * i + 2] || words[3] != filter->name[4 * i + 3])
			return false;
	}
	return true;
}

/* By the leader's name, which a thread does not change by giving itself another, or by the executable's. */
static __always_inline bool is_called(const struct filter *filter)
{
	struct task_struct *task = bpf_get_current_task_btf();
	__u64 comm[2];

	if (bpf_probe_read_kernel(comm, sizeof(comm), task->group_leader->comm))
		return false;
	if (filter->length < 16 && comm[0] == filter->name[0] && comm[1] == filter->name[1])
		return true;
	return exe_is_called(filter);
}

/*
 * Whether the cgroup at this address is a container's whose id begins with the filter's: docker-ID.scope, ID, and the like.
 * Not static, so that it is verified once and not for every level.
 */
__noinline int is_container(__u64 address, __u32 number)
{
	const struct filter *filter = bpf_map_lookup_elem(&filters, &number);
	const struct cgroup *cgroup = (const struct cgroup *)address;
	const char *name = BPF_CORE_READ(cgroup, kn, name);
	char before[8] = {};
	/* Of the name only the length is of interest, then of the id its words. */
	__u64 id[12];
	long end = bpf_probe_read_kernel_str(id, sizeof(id), name) - 1;

	if (!filter)
		return 0;
	if (end > 69) {
		char scope[6];

		bpf_probe_read_kernel(scope, sizeof(scope), name + end - 6);
		if (scope[0] == '.' && scope[1] == 's' && scope[5] == 'e')
			end -= 6;
	}
	if (end < 64 || bpf_probe_read_kernel(id, 64, name + end - 64))
		return 0;
	if (end > 64) {
		bpf_probe_read_kernel(before, 1, name + end - 65);
		if (before[0] != '-' && before[0] != ':')
			return 0;
	}
	if (end > 71) {
		bpf_probe_read_kernel(before, 7, name + end - 71);
		/* The engine's process that watches the container is not in it. */
		if (before[0] == 'c' && before[1] == 'o' && before[2] == 'n' && before[3] == 'm' &&
		    before[4] == 'o' && before[5] == 'n')
			return 0;
	}
	for (__u32 i = 0; i < 8; i++) {
		if ((id[i] ^ filter->name[i]) & filter->name[8 + i])
			return 0;
	}
	return filter->length > 0;
}

/* Whether the process is in a control group of the container, or in one below. */
static __always_inline bool is_in_container(const struct filter *filter, __u32 number)
{
	struct cgroup_key key = { .cgroup = bpf_get_current_cgroup_id(),
				  .filter = number,
				  .edition = filter->edition };
	__u32 *known = bpf_map_lookup_elem(&cgroups, &key), is_in = 0;
	struct task_struct *task = (void *)bpf_get_current_task();
	struct cgroup *cgroup;
	__u32 level;

	if (known)
		return *known;
	cgroup = BPF_CORE_READ(task, cgroups, dfl_cgrp);
	level = BPF_CORE_READ(cgroup, level);
	for (__u32 i = 0; i < MAX_CGROUP_LEVELS && i < level && !is_in; i++) {
		/* From the process upwards. */
		__u64 at = (__u64)cgroup + __builtin_preserve_field_info(cgroup->ancestors, 0) +
			   8 * (__u64)(level - i);
		struct cgroup *ancestor = NULL;

		bpf_probe_read_kernel(&ancestor, sizeof(ancestor), (void *)at);
		is_in = is_container((__u64)ancestor, number);
	}
	bpf_map_update_elem(&cgroups, &key, &is_in, BPF_ANY);
	return is_in;
}

/* Whether it is the one process, and not a later one with the same number: the first that is seen is it. */
static __always_inline bool is_process(struct filter *filter)
{
	struct task_struct *task = bpf_get_current_task_btf();
	__u64 began = task->group_leader->start_boottime;

	if (ids() >> 32 != filter->tgid)
		return false;
	if (!filter->began)
		__sync_val_compare_and_swap(&filter->began, 0, began);
	return filter->began == began;
}

/* Whether the target means the process that is running; not static, so that it is verified once and by itself. */
__noinline int is_meant(__u32 number)
{
	struct filter *filter = bpf_map_lookup_elem(&filters, &number);

	if (!filter)
		return 0;
	switch (filter->kind) {
	case FILTER_PROCESS:
		return is_process(filter);
	case FILTER_NAME:
		return is_called(filter);
	case FILTER_CONTAINER:
		return is_in_container(filter, number);
	}
	return 1;
}

#endif
