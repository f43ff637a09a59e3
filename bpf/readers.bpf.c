// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Reports processes that read traced files as memory instead of running them. The kernel sets its breakpoints in
 * every private mapping that could be made executable, even where a program maps the file only to copy it
 * (llvm-strip, git) or to translate its code (Valgrind, QEMU's user mode). Such readers are reported to
 * src/targets/readers, which removes the breakpoints from their memory.
 *
 * Where the kernel can run a program before a system call returns (Linux 6.18), the reader waits there until that is
 * done, at most for a moment.
 */
#include "kernel.bpf.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include "ids.bpf.h"
#include "mmap.bpf.h"
#include "wait.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

enum reader_limit {
	EXE_NAME = 32,
};

enum reader_event_kind {
	READER_MAPS, /* maps a traced file, privately and read-only */
	READER_TRANSLATES, /* runs a program that translates others' code */
	READER_TRANSLATES_MORE, /* and has mapped something, possibly a traced file */
};

struct reader_event {
	__u32 kind; /* enum reader_event_kind */
	__u32 pid;
	__u64 inode; /* READER_MAPS: address of the kernel's inode */
	__u64 address; /* READER_MAPS: of the mapping */
	__u64 ticket; /* what it waits for, or 0 */
	__u64 time; /* by CLOCK_MONOTONIC */
	__u8 comm[16];
};

struct readers_abi {
	struct reader_event reader_event;
	enum reader_limit reader_limit;
	enum ticket_limit ticket_limit;
	enum reader_event_kind reader_event_kind;
};
const volatile struct readers_abi readers_abi = {};

/* By the address of the kernel's inode, which the probes hold a reference to. */
HASH(traced, BPF_MAP_TYPE_HASH, BPF_F_NO_PREALLOC, __u64, __u32, 8192);

/* Names of executables that translate code. */
HASH(translators, BPF_MAP_TYPE_HASH, 0, char[EXE_NAME], __u32, 64);

/* Processes that run one of them. */
HASH(translating, BPF_MAP_TYPE_LRU_HASH, 0, __u32, __u32, 4096);

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 16);
} ring SEC(".maps");

static __always_inline void send(struct reader_event *event)
{
	event->time = bpf_ktime_get_ns();
	bpf_get_current_comm(event->comm, sizeof(event->comm));
	if (bpf_ringbuf_output(&ring, event, sizeof(*event), BPF_RB_FORCE_WAKEUP))
		let_go(event->ticket);
}

/* Returns the file's inode if it is traced, otherwise 0. */
static __always_inline __u64 traced_inode_of(struct file *file)
{
	__u64 inode = (__u64)BPF_CORE_READ(file, f_inode);

	return inode && bpf_map_lookup_elem(&traced, &inode) ? inode : 0;
}

/* The maximum number of layers: overlays over overlays, as many as the kernel allows, and what is below them. */
#define LAYERS 3

/*
 * Returns the inode of the file that mmap(2) is to map, if it is traced and not mapped shared. For a file on
 * overlayfs, the file below is mapped, which is the file's private data; since Linux 6.13, that is a structure that
 * begins with it.
 */
static __always_inline __u64 traced_inode(struct task_struct *task, struct pt_regs *regs)
{
	struct file *file = regs->r10 & (MAP_ANONYMOUS | MAP_SHARED) ? NULL : file_at(task, regs->r8);
	struct file *below;
	__u64 inode;
	int layer;

	for (layer = 0; layer < LAYERS && file; layer++) {
		inode = traced_inode_of(file);
		if (inode || BPF_CORE_READ(file, f_inode, i_sb, s_magic) != OVERLAYFS_SUPER_MAGIC)
			return inode;
		below = BPF_CORE_READ(file, private_data);
		inode = traced_inode_of(below);
		if (inode)
			return inode;
		if (bpf_probe_read_kernel(&file, sizeof(file), below))
			return 0;
	}
	return 0;
}

/*
 * The kernel has found a place for a new mapping. Loaders reserve the place for all segments by mapping the first
 * one, which is not executable, and then map the code into it.
 */
SEC("raw_tp/vm_unmapped_area")
int reads(__u64 *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task_btf();
	struct pt_regs *regs = (void *)bpf_task_pt_regs(task);
	struct reader_event event = { .kind = READER_MAPS, .address = ctx[0] };

	if (regs->orig_ax != NR_mmap || regs->r10 & MAP_DENYWRITE || regs->dx & (PROT_WRITE | PROT_EXEC))
		return 0;
	event.inode = traced_inode(task, regs);
	if (!event.inode)
		return 0;
	event.pid = process_id(task);
	if (!event.pid || event.pid == own_pid || bpf_map_lookup_elem(&translating, &event.pid))
		return 0;
	event.ticket = make_wait();
	send(&event);
	return 0;
}

/* Attached while a program runs that translates code: it chooses the addresses of most of its mappings itself. */
SEC("raw_tp/sys_exit")
int translates(__u64 *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task_btf();
	struct pt_regs *regs = (void *)bpf_task_pt_regs(task);
	struct reader_event event = { .kind = READER_TRANSLATES_MORE };
	__u64 call = regs->orig_ax;

	if (call != NR_mmap && call != NR_mprotect && call != NR_mremap)
		return 0;
	event.pid = process_id(task);
	if (!event.pid || !bpf_map_lookup_elem(&translating, &event.pid))
		return 0;
	/* The kernel sets the breakpoints again in a mapping that is merged or split. */
	if (call == NR_mmap && !traced_inode(task, regs))
		return 0;
	event.ticket = make_wait();
	send(&event);
	return 0;
}

SEC("raw_tp/sched_process_exec")
int executed(__u64 *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct reader_event event = { .kind = READER_TRANSLATES, .pid = process_id(task) };
	struct dentry *dentry = BPF_CORE_READ(task, mm, exe_file, f_path.dentry);
	char name[EXE_NAME] = {};
	__u32 is_one = 1;

	if (bpf_probe_read_kernel_str(name, sizeof(name), BPF_CORE_READ(dentry, d_name.name)) > 0 &&
	    bpf_map_lookup_elem(&translators, name)) {
		bpf_map_update_elem(&translating, &event.pid, &is_one, BPF_ANY);
		event.ticket = make_wait();
		send(&event);
	} else {
		bpf_map_delete_elem(&translating, &event.pid);
	}
	return 0;
}

SEC("raw_tp/sched_process_fork")
int forked(__u64 *ctx)
{
	struct task_struct *parent = (void *)ctx[0], *child = (void *)ctx[1];
	struct reader_event event = { .kind = READER_TRANSLATES };
	__u32 of_parent = process_id(parent), is_one = 1;

	if (!bpf_map_lookup_elem(&translating, &of_parent))
		return 0;
	event.pid = process_id(child);
	if (event.pid == of_parent)
		return 0;
	bpf_map_update_elem(&translating, &event.pid, &is_one, BPF_ANY);
	send(&event);
	return 0;
}
