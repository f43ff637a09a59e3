// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Prevents traced files from being overwritten in place while their probes are pinned and no exporter runs, as the
 * kernel does for running executables: the old code's breakpoints would end up in the new code. While the exporter
 * runs, its leases make writers wait until the probes are removed, and nothing is refused here.
 */
#include "kernel.bpf.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include "task.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

enum guard_limit {
	GUARDED_FILES = 8192,
};

/* The exporter that protects the files. */
struct guardian {
	__u32 tgid; /* in the initial pid namespace; 0 once it has ended */
	__u32 pad;
};

struct guard_abi {
	struct guardian guardian;
	enum guard_limit guard_limit;
};
const volatile struct guard_abi guard_abi = {};

/* By the address of the kernel's inode, which the probes hold a reference to. */
HASH(guarded, BPF_MAP_TYPE_HASH, BPF_F_NO_PREALLOC, __u64, __u32, GUARDED_FILES);

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct guardian);
} guardian SEC(".maps");

/* From <linux/fs.h> and <asm-generic/errno-base.h>. */
#define FMODE_WRITE 2
#define ETXTBSY 26

struct file___guard {
	unsigned int f_mode;
	struct inode *f_inode;
} __attribute__((preserve_access_index));

struct dentry___guard {
	struct inode *d_inode;
} __attribute__((preserve_access_index));

struct path___guard {
	struct dentry___guard *dentry;
} __attribute__((preserve_access_index));

static __always_inline int verdict(__u64 inode)
{
	__u32 zero = 0;
	struct guardian *now;

	if (!bpf_map_lookup_elem(&guarded, &inode))
		return 0;
	now = bpf_map_lookup_elem(&guardian, &zero);
	return now && now->tgid ? 0 : -ETXTBSY;
}

SEC("fmod_ret/security_file_open")
int guard_open(__u64 *ctx)
{
	struct file___guard *file = (void *)ctx[0];

	if ((int)ctx[1])
		return (int)ctx[1];
	if (!(BPF_CORE_READ(file, f_mode) & FMODE_WRITE))
		return 0;
	return verdict((__u64)BPF_CORE_READ(file, f_inode));
}

SEC("fmod_ret/security_path_truncate")
int guard_truncate(__u64 *ctx)
{
	struct path___guard *path = (void *)ctx[0];

	if ((int)ctx[1])
		return (int)ctx[1];
	return verdict((__u64)BPF_CORE_READ(path, dentry, d_inode));
}

/* The exporter's leases are released after this. */
SEC("raw_tp/sched_process_exit")
int guardian_ended(__u64 *ctx)
{
	struct task_struct *task = (void *)ctx[0];
	__u32 zero = 0;
	struct guardian *now = bpf_map_lookup_elem(&guardian, &zero);

	if (now && now->tgid == (__u32)BPF_CORE_READ(task, tgid) && BPF_CORE_READ(task, signal, live.counter) <= 0)
		now->tgid = 0;
	return 0;
}

/* Run by the exporter, not attached: it protects the files from now on. */
SEC("syscall")
int take_charge(void *ctx)
{
	__u32 zero = 0;
	struct guardian *now = bpf_map_lookup_elem(&guardian, &zero);

	if (!now)
		return 1;
	now->tgid = bpf_get_current_pid_tgid() >> 32;
	return 0;
}
