/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The few members of the kernel's own structures that are read. They are not a stable ABI: libbpf looks up their
 * offsets by name in the running kernel's type information.
 */
#ifndef TASK_BPF_H
#define TASK_BPF_H

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

/* From <linux/magic.h>. */
#define OVERLAYFS_SUPER_MAGIC 0x794c7630

struct super_block {
	__u32 s_dev;
	unsigned long s_magic;
};

struct rb_node {
	unsigned long __rb_parent_color;
	struct rb_node *rb_right;
	struct rb_node *rb_left;
};

struct rb_root {
	struct rb_node *rb_node;
};

struct rb_root_cached {
	struct rb_root rb_root;
};

struct address_space {
	struct rb_root_cached i_mmap; /* its mappings, of all processes */
};

struct inode {
	struct super_block *i_sb;
	struct address_space *i_mapping;
	unsigned long i_ino;
	long long i_size;
	long long i_ctime_sec; /* since Linux 6.11 */
	__u32 i_ctime_nsec;
	__u32 i_generation;
};

struct qstr {
	union {
		struct {
			__u32 hash;
			__u32 len;
		};
		__u64 hash_len;
	};
	const unsigned char *name;
};

struct dentry {
	struct dentry *d_parent;
	struct qstr d_name;
};

struct vfsmount {
	struct dentry *mnt_root;
};

struct mount {
	struct mount *mnt_parent;
	struct dentry *mnt_mountpoint;
	struct vfsmount mnt;
};

struct path {
	struct vfsmount *mnt;
	struct dentry *dentry;
};

struct file {
	struct path f_path;
	struct inode *f_inode;
	void *private_data;
};

struct task_struct;

struct mm_struct {
	struct file *exe_file;
	struct task_struct *owner; /* with CONFIG_MEMCG */
	unsigned long arg_start;
	unsigned long arg_end;
};

struct vm_userfaultfd_ctx {
	struct userfaultfd_ctx *ctx;
};

/* From <linux/mm.h>. */
#define VM_EXEC 0x4
#define VM_MAYSHARE 0x80 /* MAP_SHARED */

struct vm_area_struct {
	unsigned long vm_start;
	unsigned long vm_end;
	unsigned long vm_flags;
	unsigned long vm_pgoff;
	struct file *vm_file;
	struct mm_struct *vm_mm;
	struct {
		struct rb_node rb;
	} shared;
	struct vm_userfaultfd_ctx vm_userfaultfd_ctx;
};

struct pid_namespace;

struct upid {
	int nr;
	struct pid_namespace *ns;
};

struct pid {
	unsigned int level;
	struct upid numbers[1];
};

struct kernfs_node {
	const char *name;
	__u64 id;
};

struct cgroup {
	int level;
	struct kernfs_node *kn;
	struct cgroup *ancestors[1];
};

struct css_set {
	struct cgroup *dfl_cgrp;
};

struct signal_struct {
	int group_exit_code;
	struct {
		int counter;
	} live;
};

typedef struct {
	unsigned long sig[1];
} sigset_t;

struct sigpending {
	sigset_t signal;
};

struct kernel_siginfo {
	int si_code;
};

struct task_struct {
	unsigned int flags;
	unsigned int ptrace;
	unsigned in_execve : 1;
	int prio;
	int pid;
	int tgid;
	__u64 start_time; /* by CLOCK_MONOTONIC */
	__u64 start_boottime;
	__u64 self_exec_id;
	char comm[16];
	struct task_struct *real_parent;
	struct task_struct *group_leader;
	struct mm_struct *mm;
	struct pid *thread_pid;
	struct css_set *cgroups;
	struct signal_struct *signal;
	struct sigpending pending;
};

#pragma clang attribute pop

/* Reads one of a process's pids: it has one in its own pid namespace and in each of the namespaces around it. */
static __always_inline int upid_at(const struct pid *pid, __u32 level, struct upid *upid)
{
	__u64 numbers = (__u64)pid + __builtin_preserve_field_info(pid->numbers, 0);

	return bpf_probe_read_kernel(upid, sizeof(*upid), (const void *)(numbers + level * sizeof(*upid)));
}

#endif
