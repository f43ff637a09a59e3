// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * What only the kernel knows of files and processes, read by iterators: which inode a mapping really has (for a file
 * on overlayfs, stat(2) returns the overlay's, while probes belong to the one below), which processes map it, and the
 * pids and start time of a process.
 */
#include "kernel.bpf.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include "task.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* What the iterators write, read by src/kernel/files.rs. */
struct mapped_file {
	__u64 start; /* address of the mapping */
	__u64 end;
	__u64 page; /* its first page in the file */
	__u64 inode; /* address of the kernel's inode: does not change as long as the file is held */
	__u64 number; /* inode number in the underlying file system */
	__u32 device;
	__u32 tgid;
	__u32 is_code; /* it can be executed */
	__u32 pad;
};

struct process {
	__u64 began; /* nanoseconds since boot */
	__u64 pid_namespace; /* address of the one at this level, or 0 */
	__u32 level; /* of the process's own pid namespace: 0 is the initial one */
	__u32 pad;
};

struct files_abi {
	struct mapped_file mapped_file;
	struct process process;
};
const volatile struct files_abi files_abi = {};

struct bpf_iter_meta {
	struct seq_file *seq;
} __attribute__((preserve_access_index));

struct bpf_iter__task_vma {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	struct vm_area_struct *vma;
} __attribute__((preserve_access_index));

struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
} __attribute__((preserve_access_index));

/* Set before an iterator runs: if nonzero, only mappings of this inode are reported. */
__u64 only_inode = 0;

/* Likewise: the level of the namespace that is reported, and in which processes have their pids. */
__u32 at_level = 0;

SEC("iter/task_vma")
int mappings(struct bpf_iter__task_vma *ctx)
{
	struct task_struct *task = ctx->task;
	struct vm_area_struct *vma = ctx->vma;
	struct mapped_file found = {};
	struct upid upid = {};
	struct inode *inode;
	struct pid *pid;

	if (!task || !vma || !vma->vm_file)
		return 0;
	inode = vma->vm_file->f_inode;
	if (only_inode && only_inode != (__u64)inode)
		return 0;
	found.start = vma->vm_start;
	found.inode = (__u64)inode;
	found.number = inode->i_ino;
	found.is_code = !!(vma->vm_flags & VM_EXEC);
	found.end = vma->vm_end;
	found.page = vma->vm_pgoff;
	found.device = inode->i_sb->s_dev;
	found.tgid = task->tgid;
	if (at_level) {
		pid = task->group_leader->thread_pid;
		found.tgid = pid && at_level <= pid->level && !upid_at(pid, at_level, &upid) ? upid.nr : 0;
	}
	bpf_seq_write(ctx->meta->seq, &found, sizeof(found));
	return 0;
}

SEC("iter/task")
int processes(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct process found = {};
	struct upid upid = {};
	struct pid *pid;

	if (!task)
		return 0;
	pid = task->group_leader->thread_pid;
	if (!pid)
		return 0;
	found.began = task->group_leader->start_boottime;
	found.level = pid->level;
	if (at_level <= found.level && !upid_at(pid, at_level, &upid))
		found.pid_namespace = (__u64)upid.ns;
	bpf_seq_write(ctx->meta->seq, &found, sizeof(found));
	return 0;
}
