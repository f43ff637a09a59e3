/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The process that hits a probe: its ids as in the exporter's /proc, and whether the target selects it.
 *
 * The filter examines the process at each hit, so that fork, exec, a change of name and a reused pid need no events,
 * which could come too late. Caches only save time, except for children, which the fork itself records.
 */
#ifndef FILTER_BPF_H
#define FILTER_BPF_H

#include <bpf/bpf_core_read.h>
#include "cgroup.bpf.h"
#include "glob.bpf.h"
#include "ids.bpf.h"
#include "task.bpf.h"

/* The first filter for candidates: there is one for each target, after those for targets. */
const volatile __u32 candidate_filters = 0;

/* ids() as a key: processes outside the namespace, whose ids are 0, must not be confused with one another. */
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

/*
 * The kernel truncates a name to 15 bytes. Whether the leader's name is what remains of the executable's, which is
 * the process's name in that case.
 */
static __always_inline bool is_cut(const __u64 comm[2])
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct dentry *exe = BPF_CORE_READ(task, mm, exe_file, f_path.dentry);
	__u64 begin[2];

	if (!exe || BPF_CORE_READ(exe, d_name.len) < sizeof(begin) ||
	    bpf_probe_read_kernel(begin, sizeof(begin), BPF_CORE_READ(exe, d_name.name)))
		return false;
	/* The last byte of the leader's name is its NUL. */
	return comm[0] == begin[0] && comm[1] == (begin[1] & ~0ULL >> 8);
}

/* Compares the leader's name, which a thread does not change by renaming itself, or the executable's. */
static __always_inline bool is_called(const struct filter *filter)
{
	struct task_struct *task = bpf_get_current_task_btf();
	__u64 comm[2];

	if (bpf_probe_read_kernel(comm, sizeof(comm), task->group_leader->comm))
		return false;
	if (filter->length < 16 && comm[0] == filter->name[0] && comm[1] == filter->name[1])
		return !is_cut(comm);
	return exe_is_called(filter);
}

/* Addresses are handled as numbers: a function that is verified on its own takes no pointers to unknown memory. */
static __always_inline bool name_fits(const struct filter *filter)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct task_struct *leader = BPF_CORE_READ(task, group_leader);
	__u64 name = (__u64)leader + __builtin_preserve_field_info(leader->comm, 0);
	__u64 comm[2];

	if (bpf_probe_read_kernel(comm, sizeof(comm), (void *)name))
		return false;
	if (!is_cut(comm) && fits_glob(name, MAX_NAME, filter->glob, false) > 0)
		return true;
	return fits_glob((__u64)BPF_CORE_READ(task, mm, exe_file, f_path.dentry, d_name.name), MAX_NAME,
			 filter->glob, false) > 0;
}

/*
 * Matches the command line, which is scanned once after each exec, and again if its beginning has changed. -1 if it
 * is not in memory now.
 */
static __always_inline int line_fits(const struct filter *filter, __u32 number)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct line_key key = { .began = task->group_leader->start_boottime,
				.tgid = task->tgid,
				.filter = number };
	struct line *known = bpf_map_lookup_elem(&lines, &key);
	struct line now = { .execs = task->self_exec_id };
	__u64 start, length, taken;
	int fits;

	if (!task->mm)
		return 0;
	start = task->mm->arg_start;
	length = task->mm->arg_end - start;
	taken = length;
	CLAMP(taken, sizeof(now.begin));
	if (bpf_probe_read_user(now.begin, taken, (const void *)start))
		return known && known->execs == now.execs ? (int)known->fits : -1;
	if (known && known->execs == now.execs && known->begin[0] == now.begin[0] &&
	    known->begin[1] == now.begin[1] && known->begin[2] == now.begin[2] && known->begin[3] == now.begin[3])
		return known->fits;
	if (length > MAX_LINE)
		length = MAX_LINE;
	fits = fits_glob(start, length, filter->glob, true);
	if (fits >= 0) {
		now.fits = fits;
		bpf_map_update_elem(&lines, &key, &now, BPF_ANY);
	}
	return fits;
}

/* Whether it is the selected process, and not a later one with the same pid: the first one seen is taken. */
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

/*
 * Whether one of a target's filters selects the current process; -1 if some of its memory would have to be read from
 * disk.
 */
__noinline int fits(__u32 number)
{
	struct filter *filter = bpf_map_lookup_elem(&filters, &number);

	if (!filter)
		return 0;
	switch (filter->kind) {
	case FILTER_PROCESS:
		return is_process(filter);
	case FILTER_NAME:
		return is_called(filter);
	case FILTER_NAME_GLOB:
		return used_globs && name_fits(filter);
	case FILTER_CMDLINE:
		return used_globs ? line_fits(filter, number) : 0;
	case FILTER_CGROUP:
	case FILTER_MEMBERS:
		return is_in_cgroup(filter, number);
	}
	return 1;
}

static __always_inline bool is_child(__u32 number)
{
	struct child_key key = { .tgid = ids() >> 32, .filter = number };

	return bpf_map_lookup_elem(&children, &key);
}

/*
 * Whether the target selects the current process: all of its filters match, or it was started by such a process. -1
 * if memory would have to be read from disk. Not static, so that it is verified once, on its own.
 */
__noinline int is_meant(__u32 number)
{
	struct filter *first = bpf_map_lookup_elem(&filters, &number), *filter;
	__u32 next = number;
	int fit = 1;

	if (!first)
		return 0;
	for (__u32 i = 0; i < MAX_PREDICATES && fit > 0; i++) {
		fit = fits(next);
		filter = bpf_map_lookup_elem(&filters, &next);
		if (!filter || !filter->next)
			break;
		next = filter->next;
	}
	if (fit <= 0 && first->flags & FILTER_CHILDREN && is_child(number))
		return 1;
	return fit;
}

/* Brings the current process's command line into memory. */
static __noinline void read_line(void)
{
	struct task_struct *task = bpf_get_current_task_btf();
	__u64 at, end;
	char byte;

	if (!task->mm)
		return;
	at = task->mm->arg_start;
	end = task->mm->arg_end;
	for (__u32 i = 0; i <= MAX_LINE / PAGE_BYTES && at < end; i++) {
		if (bpf_copy_from_user(&byte, 1, (const void *)at))
			return;
		at = (at / PAGE_BYTES + 1) * PAGE_BYTES;
	}
}

/* The same where memory may be read from disk. */
static __always_inline bool is_meant_or_read(__u32 number)
{
	int is = is_meant(number);

	if (is < 0) {
		read_line();
		is = is_meant(number);
	}
	return is > 0;
}

#endif
