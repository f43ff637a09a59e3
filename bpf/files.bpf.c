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
	__u64 seq_num; /* 0 for the first object */
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

/* The number of a process in the namespace at this level; 0 if it has none there. */
static __always_inline __u32 number_of(struct task_struct *task)
{
	struct pid *pid = BPF_CORE_READ(task, group_leader, thread_pid);
	struct upid upid = {};

	if (!at_level)
		return BPF_CORE_READ(task, tgid);
	return pid && at_level <= BPF_CORE_READ(pid, level) && !upid_at(pid, at_level, &upid) ? upid.nr : 0;
}

/*
 * Shared mappings are left out: no probe is set in them. A linker writes its output through one: that must not make an
 * unfinished file look like one that runs.
 */
SEC("iter/task_vma")
int mappings(struct bpf_iter__task_vma *ctx)
{
	struct task_struct *task = ctx->task;
	struct vm_area_struct *vma = ctx->vma;
	struct mapped_file found = {};
	struct inode *inode;

	if (!task || !vma || !vma->vm_file || vma->vm_flags & VM_MAYSHARE)
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
	found.tgid = number_of(task);
	bpf_seq_write(ctx->meta->seq, &found, sizeof(found));
	return 0;
}

/* More than the mappings whose rows fit into an iterator's buffer, with three steps for each. */
#define WALK_STEPS 4096

/* A walk through the tree of an inode's mappings. */
struct walk {
	struct seq_file *seq;
	__u64 at; /* the current node, or 0 at the end */
	__u64 before; /* the node from which it was reached */
};

/* Reports a node's mapping. Returns nonzero if the tree has changed, or the buffer is full. */
static __always_inline int report(struct walk *walk)
{
	struct vm_area_struct *vma = NULL;
	struct mapped_file found = {};
	struct task_struct *owner;
	struct inode *inode;

	vma = (void *)(walk->at - __builtin_preserve_field_info(vma->shared.rb, 0));
	inode = BPF_CORE_READ(vma, vm_file, f_inode);
	if ((__u64)inode != only_inode)
		return 1;
	owner = BPF_CORE_READ(vma, vm_mm, owner);
	if (!owner || BPF_CORE_READ(vma, vm_flags) & VM_MAYSHARE) /* it is ending, or as above */
		return 0;
	found.start = BPF_CORE_READ(vma, vm_start);
	found.end = BPF_CORE_READ(vma, vm_end);
	found.page = BPF_CORE_READ(vma, vm_pgoff);
	found.is_code = !!(BPF_CORE_READ(vma, vm_flags) & VM_EXEC);
	found.inode = only_inode;
	found.number = BPF_CORE_READ(inode, i_ino);
	found.device = BPF_CORE_READ(inode, i_sb, s_dev);
	found.tgid = number_of(owner);
	return bpf_seq_write(walk->seq, &found, sizeof(found)) != 0;
}

static long walk_on(__u32 n, struct walk *walk)
{
	struct rb_node node = {};
	__u64 left, right, parent, next;

	if (!walk->at)
		return 1;
	if (bpf_probe_read_kernel(&node, sizeof(node), (void *)walk->at))
		return 1;
	left = (__u64)node.rb_left;
	right = (__u64)node.rb_right;
	parent = node.__rb_parent_color & ~3UL;
	if (walk->before == parent) {
		if (report(walk))
			return 1;
		next = left ?: right ?: parent;
	} else {
		next = walk->before == left && right ? right : parent;
	}
	walk->before = walk->at;
	walk->at = next;
	return 0;
}

/*
 * The mappings of one inode, read from the inode itself, without the lock that protects them: all processes' mappings are many
 * more. Ends with an empty row if none was left out as far as this walk could see.
 */
SEC("iter/task")
int mappings_of_inode(struct bpf_iter__task *ctx)
{
	struct walk walk = { .seq = ctx->meta->seq };
	struct mapped_file end = {};
	struct inode *inode = (void *)only_inode;

	/* Once, not for each thread. */
	if (!ctx->task || ctx->meta->seq_num || !bpf_core_field_exists(struct mm_struct, owner))
		return 0;
	walk.at = (__u64)BPF_CORE_READ(inode, i_mapping, i_mmap.rb_root.rb_node);
	bpf_loop(WALK_STEPS, walk_on, &walk, 0);
	if (!walk.at)
		bpf_seq_write(ctx->meta->seq, &end, sizeof(end));
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
