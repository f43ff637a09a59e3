/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The path of the executable and the command line of the process that hits a probe. They are read once after each
 * exec, at the first hit, and stored under a number, so that hits and events carry only the number, and a process
 * that ended long ago still has a name.
 */
#ifndef PROCESSES_BPF_H
#define PROCESSES_BPF_H

#include <bpf/bpf_core_read.h>
#include "maps.bpf.h"
#include "task.bpf.h"
#include "user.bpf.h"

/* Maximum number of directories and mounts of a path that are visited. */
#define MAX_DEPTH 96

/* Prepends a name to the path; returns false if there is no room. */
static __always_inline bool prepend(struct process_text *text, const struct dentry *dentry)
{
	__u64 at = text->from, length = BPF_CORE_READ(dentry, d_name.len);

	if (length >= at)
		return false;
	at -= length;
	CLAMP(length, PROCESS_TEXT - 1);
	CLAMP(at, PROCESS_TEXT);
	if (bpf_probe_read_kernel(text->bytes + at, length, BPF_CORE_READ(dentry, d_name.name)))
		return false;
	at--;
	CLAMP(at, PROCESS_TEXT);
	text->bytes[at] = '/';
	text->from = at;
	return true;
}

struct path_walk {
	struct process_text *text;
	struct dentry *dentry;
	struct mount *mount;
};

/* Visits one directory or mount, for bpf_loop; returns 1 at the root. */
static long visit_parent(__u32 i, struct path_walk *walk)
{
	struct dentry *dentry = walk->dentry, *parent = BPF_CORE_READ(dentry, d_parent);
	struct mount *mount = walk->mount;

	if (dentry == parent || dentry == BPF_CORE_READ(mount, mnt.mnt_root)) {
		struct mount *around = BPF_CORE_READ(mount, mnt_parent);

		if (around == mount)
			return 1;
		walk->dentry = BPF_CORE_READ(mount, mnt_mountpoint);
		walk->mount = around;
		return 0;
	}
	walk->dentry = parent;
	return !prepend(walk->text, dentry);
}

/*
 * Reads the path as seen in the process's own mount namespace, whether or not it is another file's by now. Of a path
 * that is too long, the end is kept.
 */
static __always_inline bool read_exe(struct process_text *text)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct file *exe = BPF_CORE_READ(task, mm, exe_file);
	struct path_walk walk = { .text = text };

	if (!exe)
		return false;
	text->from = PROCESS_TEXT;
	walk.dentry = BPF_CORE_READ(exe, f_path.dentry);
	walk.mount = (void *)BPF_CORE_READ(exe, f_path.mnt) - bpf_core_field_offset(struct mount, mnt);
	bpf_loop(MAX_DEPTH, visit_parent, &walk, 0);
	/* A memfd is in no directory. */
	if (text->from == PROCESS_TEXT)
		prepend(text, BPF_CORE_READ(exe, f_path.dentry));
	text->length = PROCESS_TEXT - text->from;
	return true;
}

static __always_inline bool read_cmdline(struct process_text *text)
{
	struct task_struct *task = bpf_get_current_task_btf();
	__u64 start, length;

	if (!task->mm)
		return false;
	start = task->mm->arg_start;
	length = task->mm->arg_end - start;
	CLAMP(length, PROCESS_TEXT);
	text->length = length;
	return !read_user(text->bytes, length, (const void *)start);
}

static __always_inline __u64 hash_of(const struct process_text *text)
{
	const __u64 *words = (const void *)text->bytes;
	__u64 hash = text->length;

#pragma clang loop unroll(disable)
	for (int i = 0; i < PROCESS_TEXT / 8; i++) {
		hash = (hash ^ words[i]) * 0x9e3779b97f4a7c15ULL;
		hash ^= hash >> 32;
	}
	hash >>= 1;
	return hash < PROCESS_FIRST_NUMBER ? hash + PROCESS_FIRST_NUMBER : hash;
}

/*
 * Reads the text and stores it. It is too large for the stack: until its number is known, it is stored under a number
 * of the thread.
 */
static __noinline __u64 read_process_text(__u32 kind)
{
	__u64 mine = bpf_get_current_pid_tgid() | 1ULL << 63, number = PROCESS_NO_ROOM;
	struct process_text *text;
	__u32 zero = 0;

	text = bpf_map_lookup_elem(&no_process_text, &zero);
	if (!text || bpf_map_update_elem(&process_texts, &mine, text, BPF_ANY))
		return PROCESS_NO_ROOM;
	text = bpf_map_lookup_elem(&process_texts, &mine);
	if (!text)
		return PROCESS_NO_ROOM;
	if (kind == PROCESS_EXE ? !read_exe(text) : !read_cmdline(text)) {
		number = PROCESS_UNREADABLE;
	} else {
		number = hash_of(text);
		if (!bpf_map_lookup_elem(&process_texts, &number) &&
		    bpf_map_update_elem(&process_texts, &number, text, BPF_ANY))
			number = PROCESS_NO_ROOM;
	}
	bpf_map_delete_elem(&process_texts, &mine);
	return number;
}

/* Returns the number of the current process's text, or an enum process_number. */
__noinline __u64 process_text_number(__u32 kind)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct process_key key = { .began = task->group_leader->start_boottime,
				   .tgid = task->tgid,
				   .execs = task->self_exec_id };
	struct process_numbers *known = bpf_map_lookup_elem(&process_numbers, &key);

	if (!known) {
		struct process_numbers none = {};

		bpf_map_update_elem(&process_numbers, &key, &none, BPF_NOEXIST);
		known = bpf_map_lookup_elem(&process_numbers, &key);
	}
	if (kind >= PROCESS_TEXT_KINDS || !known)
		return PROCESS_NO_ROOM;
	if (known->number[kind] == PROCESS_NOT_READ)
		known->number[kind] = read_process_text(kind);
	return known->number[kind];
}

#endif
