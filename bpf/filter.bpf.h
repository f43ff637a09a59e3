/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Who hits a probe: its ids as the exporter's /proc has them, and whether the target means it.
 *
 * The filter looks at what the process is at this hit, so that fork, exec, a change of name and a number that is used again need
 * no events that could come too late. What is remembered only saves time, but for children, which the fork itself writes down.
 */
#ifndef FILTER_BPF_H
#define FILTER_BPF_H

#include <bpf/bpf_core_read.h>
#include "ids.bpf.h"
#include "task.bpf.h"

#define PAGE_BYTES 4096

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
 * Whether a text fits a glob. Of a command line, which may be in memory that is not there now, a NUL is the space between two
 * arguments.
 */
struct matching {
	__u64 address;
	__u64 left; /* bytes */
	__u64 states[2];
	__u32 glob;
	__u8 is_line;
	__u8 is_apart; /* NULs were seen, and nothing behind them yet */
	__u8 has_begun;
	__u8 has_failed;
};

static __always_inline void take_byte(const struct glob *glob, struct matching *at, __u8 byte)
{
	__u64 stays[2] = { glob->any[0], glob->any[1] };

	if ((byte & 0xc0) == 0x80) {
		stays[0] |= glob->within[0];
		stays[1] |= glob->within[1];
	}
	at->states[1] =
		((at->states[1] << 1 | at->states[0] >> 63) & glob->to[byte][1]) | (at->states[1] & stays[1]);
	at->states[0] = (at->states[0] << 1 & glob->to[byte][0]) | (at->states[0] & stays[0]);
}

/* Eight bytes of it, for bpf_loop: 1 at its end. */
static long take_word(__u32 n, struct matching *at)
{
	const struct glob *glob = bpf_map_lookup_elem(&globs, &at->glob);
	__u64 word = 0, bytes = at->left;
	long failed;

	if (!glob || !bytes)
		return 1;
	CLAMP(bytes, 8);
	if (at->is_line)
		failed = bpf_probe_read_user(&word, bytes, (const void *)at->address);
	else
		failed = bpf_probe_read_kernel_str(&word, sizeof(word), (const void *)at->address) < 0;
	if (failed) {
		at->has_failed = 1;
		return 1;
	}
	if (!at->is_line)
		/* One is the NUL that the helper ends with. */
		bytes = 7;
	for (__u32 i = 0; i < 8; i++, word >>= 8) {
		if (i >= bytes)
			break;
		if (word & 0xff) {
			if (at->is_apart)
				take_byte(glob, at, ' ');
			take_byte(glob, at, word);
			at->is_apart = 0;
			at->has_begun = 1;
		} else if (!at->is_line) {
			return 1;
		} else {
			at->is_apart = at->has_begun;
		}
	}
	at->address += bytes;
	at->left -= bytes;
	return 0;
}

/* Negative if it could not be read. */
__noinline int fits_glob(__u64 address, __u64 length, __u32 number, bool is_line)
{
	struct matching at = {
		.address = address, .left = length, .states = { 1 }, .glob = number, .is_line = is_line
	};
	const struct glob *glob = bpf_map_lookup_elem(&globs, &number);

	if (!glob)
		return 0;
	bpf_loop(MAX_LINE / 7, take_word, &at, 0);
	if (at.has_failed)
		return -1;
	return at.states[glob->end >> 6 & 1] >> (glob->end & 63) & 1;
}

/* Addresses are read as numbers: a function that is verified by itself takes no pointers to what it does not know. */
static __always_inline bool name_fits(const struct filter *filter)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct task_struct *leader = BPF_CORE_READ(task, group_leader);
	__u64 comm = (__u64)leader + __builtin_preserve_field_info(leader->comm, 0);

	if (fits_glob(comm, MAX_NAME, filter->glob, false) > 0)
		return true;
	return fits_glob((__u64)BPF_CORE_READ(task, mm, exe_file, f_path.dentry, d_name.name), MAX_NAME,
			 filter->glob, false) > 0;
}

/*
 * By the command line, which is looked through once after each exec, and again when its beginning is another. -1 if it is not in
 * memory now.
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

/* The last six bytes of names of control groups that systemd makes, as a word. */
#define DOT_SCOPE 0x65706f63732eULL
#define DOT_SLICE 0x6563696c732eULL

static __always_inline long without(const char *name, long end, __u64 suffix)
{
	__u64 last = 0;

	if (end <= 6 || bpf_probe_read_kernel(&last, 6, name + end - 6) || last != suffix)
		return end;
	return end - 6;
}

/* What is looked up of a control group: its name, as far as that is of interest, then the key of what it is made for. */
union group {
	__u64 name[12];
	struct member_key key;
};

/* Whether it is of a container that is meant: docker-ID.scope, ID, and the like. */
static __always_inline bool is_container(const struct filter *filter, const char *name, long end,
					 union group *group)
{
	char before[8] = {};

	end = without(name, end, DOT_SCOPE);
	if (end < 64 || bpf_probe_read_kernel(group->key.id, 64, name + end - 64))
		return false;
	if (end > 64) {
		bpf_probe_read_kernel(before, 1, name + end - 65);
		if (before[0] != '-' && before[0] != ':')
			return false;
	}
	if (end > 71) {
		bpf_probe_read_kernel(before, 7, name + end - 71);
		/* The engine's process that watches the container is not in it. */
		if (before[0] == 'c' && before[1] == 'o' && before[2] == 'n' && before[3] == 'm' &&
		    before[4] == 'o' && before[5] == 'n')
			return false;
	}
	if (bpf_map_lookup_elem(&members, &group->key))
		return true;
	for (__u32 i = 0; i < 8; i++) {
		if ((group->key.id[i] ^ filter->name[i]) & filter->name[8 + i])
			return false;
	}
	return filter->length > 0;
}

/* Whether it is of a pod that is meant: podUID or kubepods-podUID.slice. */
static __always_inline bool is_pod(const char *name, long end, __u64 length, union group *group)
{
	char *uid = (char *)group->key.id, before[4] = { '-' };

	if (end < (long)length + 3)
		return false;
	__builtin_memset(group->key.id, 0, sizeof(group->key.id));
	if (end == (long)length + 3)
		bpf_probe_read_kernel(before + 1, 3, name);
	else
		bpf_probe_read_kernel(before, 4, name + end - length - 4);
	if (before[0] != '-' || before[1] != 'p' || before[2] != 'o' || before[3] != 'd' ||
	    bpf_probe_read_kernel(uid, length, name + end - length))
		return false;
	if (length == 36)
		uid[8] = uid[13] = uid[18] = uid[23] = '-';
	return bpf_map_lookup_elem(&members, &group->key);
}

/*
 * Whether the filter means the control group at this address, by its name; and by what it is made for. Not static, so that they are
 * verified once and not for every level, and two, so that their stacks do not add up.
 */
__noinline int fits_cgroup(__u64 address, __u32 number)
{
	const struct filter *filter = bpf_map_lookup_elem(&filters, &number);
	__u64 name = (__u64)BPF_CORE_READ((const struct cgroup *)address, kn, name);
	char first = 0;

	if (!filter || bpf_probe_read_kernel(&first, 1, (const void *)name))
		return 0;
	/* What systemd puts before names that the kernel has taken. */
	if (first == '_')
		name++;
	return fits_glob(name, MAX_NAME, filter->glob, false) > 0;
}

__noinline int has_member(__u64 address, __u32 number)
{
	const struct filter *filter = bpf_map_lookup_elem(&filters, &number);
	const char *name = BPF_CORE_READ((const struct cgroup *)address, kn, name);
	union group group;
	long end = bpf_probe_read_kernel_str(group.name, sizeof(group.name), name) - 1;

	if (!filter || end <= 0)
		return 0;
	group.key.filter = number;
	group.key.pad = 0;
	if (is_container(filter, name, end, &group))
		return 1;
	end = without(name, end, DOT_SLICE);
	return is_pod(name, end, 36, &group) || is_pod(name, end, 32, &group);
}

/* Whether the process is in a control group that is meant, or in one below. */
static __always_inline bool is_in_cgroup(const struct filter *filter, __u32 number)
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
		is_in = filter->kind == FILTER_CGROUP ? fits_cgroup((__u64)ancestor, number)
						      : has_member((__u64)ancestor, number);
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

/* Whether one of a target's filters means the process that is running; -1 if a part of it would have to be read from disk. */
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
		return name_fits(filter);
	case FILTER_CMDLINE:
		return line_fits(filter, number);
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
 * Whether the target means the process that is running: all of its filters do, or it was started by such a process. -1 if that
 * would have to be read from disk. Not static, so that it is verified once and by itself.
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

/* Makes the command line of the process that is running be in memory. */
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

/* The same where it may be read from disk. */
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
