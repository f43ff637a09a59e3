// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Reports to src/targets/processes.rs which processes start and end, and change their names or cgroups, so that /proc
 * need not be walked.
 *
 * Programs that no target selects cost a few look-ups each time they execute, fork or exit, and are not reported:
 * names and command lines are matched against globs here. The reader is woken only for what may need immediate
 * action: a file that it has not attached to. Everything else stays in the ring buffer until the reader looks next.
 *
 * Where the kernel can run a program before a system call returns (Linux 6.18), a program that executes such a file
 * waits in execve(2), and a loader of one in mmap(2), at most for a moment, until the reader has attached to it: none
 * of its instructions runs before that.
 */
#include "kernel.bpf.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include "events.bpf.h"
#include "glob.bpf.h"
#include "ids.bpf.h"
#include "mmap.bpf.h"
#include "task.bpf.h"
#include "wait.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

static __always_inline __u32 *known_use(const struct process_event *event)
{
	struct file_use use = { .file = event->file, .cgroup = event->cgroup };

	__builtin_memcpy(use.comm, event->comm, sizeof(use.comm));
	return bpf_map_lookup_elem(&known, &use);
}

static __always_inline void set_file(struct file_key *key, struct file *file)
{
	struct inode *inode = BPF_CORE_READ(file, f_inode);

	key->inode = (__u64)inode;
	key->number = BPF_CORE_READ(inode, i_ino);
	key->device = BPF_CORE_READ(inode, i_sb, s_dev);
	key->generation = BPF_CORE_READ(inode, i_generation);
	/*
	 * A change of the inode may be a copy-up: from then on another file is below. Before Linux 6.11 the time has
	 * another name; there, no task waits.
	 */
	if (bpf_core_field_exists(inode->i_ctime_nsec) &&
	    BPF_CORE_READ(inode, i_sb, s_magic) == OVERLAYFS_SUPER_MAGIC)
		key->generation += (__u32)BPF_CORE_READ(inode, i_ctime_sec) + BPF_CORE_READ(inode, i_ctime_nsec);
}

/* Size of an event without the path, where the reader does not need it. */
#define SHORT_EVENT __builtin_offsetof(struct process_event, path)

static __always_inline void send(const struct process_event *event, __u64 bytes, bool at_once)
{
	__u64 waits = bpf_ringbuf_query(&ring, BPF_RB_AVAIL_DATA);
	__u64 flags = at_once || waits >= wake_bytes ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP;

	if (bpf_ringbuf_output(&ring, (void *)event, bytes, flags)) {
		__sync_fetch_and_add(&lost, 1);
		let_go(event->ticket);
	}
}

static __always_inline bool is_comm_wanted(const __u8 *comm)
{
	struct name_key key = { .length = NAME_COMM };

	__builtin_memcpy(key.start, comm, sizeof(key.start));
	return bpf_map_lookup_elem(&names, &key);
}

static __always_inline bool is_exe_wanted(struct file *exe)
{
	struct dentry *dentry = BPF_CORE_READ(exe, f_path.dentry);
	struct name_key key = { .length = BPF_CORE_READ(dentry, d_name.len) };
	__u64 size = key.length;

	if (size > sizeof(key.start))
		size = sizeof(key.start);
	if (!size || bpf_probe_read_kernel(key.start, size, BPF_CORE_READ(dentry, d_name.name)))
		return false;
	return bpf_map_lookup_elem(&names, &key);
}

/*
 * Whether any of these globs matches, or that cannot be determined. Not static, so that it is verified once, on its
 * own.
 */
__noinline int fits_any(__u64 address, __u64 length, bool is_line)
{
	__u32 first = is_line ? name_globs : 0, end = is_line ? name_globs + line_globs : name_globs;

	for (__u32 i = 0; i < MAX_EVENT_GLOBS && first + i < end; i++) {
		if (fits_glob(address, length, first + i, is_line))
			return 1;
	}
	return 0;
}

/* A program that is started again and again is matched against the globs once. */
static __always_inline bool is_program_wanted(struct task_struct *task, struct file *exe,
					      const struct process_event *event)
{
	struct named_program key = { .file = event->file };
	struct dentry *dentry = BPF_CORE_READ(exe, f_path.dentry);
	__u32 *known, fits;

	if (!name_globs)
		return false;
	key.name = BPF_CORE_READ(dentry, d_name.hash_len);
	__builtin_memcpy(key.comm, event->comm, sizeof(key.comm));
	known = bpf_map_lookup_elem(&glob_results, &key);
	if (known)
		return *known;
	fits = fits_any((__u64)task + __builtin_preserve_field_info(task->comm, 0), MAX_NAME, false) ||
	       fits_any((__u64)BPF_CORE_READ(dentry, d_name.name), MAX_NAME, false);
	bpf_map_update_elem(&glob_results, &key, &fits, BPF_ANY);
	return fits;
}

/* The command line of a process that has just executed a program is in memory. */
static __always_inline bool is_line_wanted(struct task_struct *task)
{
	struct mm_struct *mm;
	__u64 start, length;

	if (!line_globs)
		return false;
	mm = BPF_CORE_READ(task, mm);
	start = BPF_CORE_READ(mm, arg_start);
	length = BPF_CORE_READ(mm, arg_end) - start;
	if (length > MAX_LINE)
		length = MAX_LINE;
	return fits_any(start, length, true);
}

/* Whether the process that has just executed the file needs no immediate action. */
static __always_inline bool is_dealt_with(const struct process_event *event, bool was_told)
{
	__u32 *use = known_use(event);

	if (!use || (*use & KNOWN_UNLESS_CHILD && was_told))
		return false;
	return !(*use & KNOWN_UNLESS_LINE) || !event->fits_line;
}

/* A cgroup that was not seen before is reported: it may belong to a new container. */
static __always_inline bool is_cgroup_wanted(__u64 cgroup)
{
	__u32 *state, is_new = CGROUP_NEW;

	if (!has_cgroups)
		return false;
	state = bpf_map_lookup_elem(&cgroups, &cgroup);
	if (!state)
		bpf_map_update_elem(&cgroups, &cgroup, &is_new, BPF_NOEXIST);
	return !state || *state != CGROUP_OTHER;
}

/* Records whether the process is reported from now on; returns that. */
static __always_inline bool track(__u32 pid, bool is_meant)
{
	__u32 *state = bpf_map_lookup_elem(&tracked, &pid), found = TRACKED_FOUND;

	if (is_meant && !state && bpf_map_update_elem(&tracked, &pid, &found, BPF_ANY))
		__sync_fetch_and_add(&lost, 1);
	if (!is_meant && state && *state == TRACKED_FOUND && !wants_children)
		bpf_map_delete_elem(&tracked, &pid);
	return is_meant || state;
}

struct linux_binprm {
	const char *filename;
} __attribute__((preserve_access_index));

SEC("raw_tp/sched_process_exec")
int executed(__u64 *ctx)
{
	struct linux_binprm *program = (void *)ctx[2];
	struct task_struct *task = (void *)bpf_get_current_task();
	struct process_event event = { .kind = PROCESS_EXECUTED, .pid = process_id(task) };
	struct file *exe = BPF_CORE_READ(task, mm, exe_file);
	bool is_named, is_meant, was_told, is_told, needs_semaphores;

	if (!event.pid || !exe)
		return 0;
	bpf_get_current_comm(event.comm, sizeof(event.comm));
	event.cgroup = has_cgroups ? bpf_get_current_cgroup_id() : 0;
	set_file(&event.file, exe);
	is_named = is_comm_wanted(event.comm) || is_exe_wanted(exe) || is_program_wanted(task, exe, &event);
	event.fits_line = is_line_wanted(task);
	is_meant = wants_all || is_named || is_cgroup_wanted(event.cgroup) || event.fits_line;
	was_told = bpf_map_lookup_elem(&tracked, &event.pid);
	is_told = track(event.pid, is_meant);
	needs_semaphores = bpf_map_lookup_elem(&semaphores, &event.file);
	if (!is_told && !needs_semaphores)
		return 0;
	event.time = bpf_ktime_get_ns();
	if (!needs_semaphores && is_dealt_with(&event, was_told)) {
		send(&event, SHORT_EVENT, false);
	} else {
		event.parent = process_id(BPF_CORE_READ(task, group_leader, real_parent));
		bpf_probe_read_kernel_str(event.path, sizeof(event.path), BPF_CORE_READ(program, filename));
		/* If any process may be selected, most are not: they need not wait. */
		if (!wants_all || is_named || needs_semaphores)
			event.ticket = make_wait();
		send(&event, sizeof(event), true);
	}
	return 0;
}

SEC("raw_tp/sched_process_fork")
int forked(__u64 *ctx)
{
	struct task_struct *parent = (void *)ctx[0], *child = (void *)ctx[1];
	struct process_event event = { .kind = PROCESS_FORKED };
	__u32 found = TRACKED_FOUND;

	if (BPF_CORE_READ(child, pid) != BPF_CORE_READ(child, tgid))
		return 0;
	event.parent = process_id(parent);
	event.pid = process_id(child);
	if (!event.pid)
		return 0;
	if (bpf_map_lookup_elem(&tracked, &event.pid)) {
		send(&event, SHORT_EVENT, true);
		return 0;
	}
	if (!bpf_map_lookup_elem(&tracked, &event.parent))
		return 0;
	if (bpf_map_update_elem(&tracked, &event.pid, &found, BPF_ANY))
		__sync_fetch_and_add(&lost, 1);
	send(&event, SHORT_EVENT, false);
	return 0;
}

/* From the kernel; without it (before Linux 6.7) it is not known what a process maps. */
struct bpf_iter_task_vma {
	__u64 __opaque[1];
} __attribute__((aligned(8)));

extern int bpf_iter_task_vma_new(struct bpf_iter_task_vma *it, struct task_struct *task, __u64 addr) __ksym __weak;
extern struct vm_area_struct *bpf_iter_task_vma_next(struct bpf_iter_task_vma *it) __ksym __weak;
extern void bpf_iter_task_vma_destroy(struct bpf_iter_task_vma *it) __ksym __weak;

/* Code at such a breakpoint, by process; the latest of each. */
HASH(trapped_code, BPF_MAP_TYPE_LRU_HASH, 0, __u32, __u8[16], 256);

/*
 * Reports, for a process that ends after it has reached such a breakpoint, the code there and each file that it maps:
 * user space knows whether the code is a copy of what it traces in one of them. Before Linux 6.16 the memory is gone.
 */
static __always_inline void report_trapped(__u32 pid)
{
	struct process_event event = { .kind = PROCESS_TRAPPED, .pid = pid };
	__u8 *code = bpf_map_lookup_elem(&trapped_code, &pid);
	struct bpf_iter_task_vma all;
	struct vm_area_struct *vma;

	if (!code || !bpf_ksym_exists(bpf_iter_task_vma_new))
		return;
	__builtin_memcpy(event.comm, code, sizeof(event.comm));
	bpf_map_delete_elem(&trapped_code, &pid);
	bpf_iter_task_vma_new(&all, bpf_get_current_task_btf(), 0);
	while ((vma = bpf_iter_task_vma_next(&all))) {
		__u64 inode = (__u64)BPF_CORE_READ(vma, vm_file, f_inode);

		/* The segments of a file follow each other. */
		if (!inode || inode == event.address)
			continue;
		event.address = inode;
		send(&event, SHORT_EVENT, true);
	}
	bpf_iter_task_vma_destroy(&all);
}

SEC("raw_tp/sched_process_exit")
int ended(__u64 *ctx)
{
	struct task_struct *task = (void *)ctx[0];
	struct process_event event = { .kind = PROCESS_ENDED };
	int code;
	__u32 *state;

	/* The process lives on in threads that outlive this one. */
	if (BPF_CORE_READ(task, signal, live.counter) > 0)
		return 0;
	event.pid = process_id(task);
	report_trapped(event.pid);
	state = event.pid ? bpf_map_lookup_elem(&tracked, &event.pid) : NULL;
	if (!state)
		return 0;
	code = BPF_CORE_READ(task, signal, group_exit_code);
	event.signal = code & SIGNAL_OF_CODE;
	if (code && *state & TRACKED_TRAPPED)
		event.signal = SIGNAL_TRAP;
	if ((*state & ~TRACKED_TRAPPED) == TRACKED_FOUND)
		bpf_map_delete_elem(&tracked, &event.pid);
	event.time = bpf_ktime_get_ns();
	send(&event, SHORT_EVENT, false);
	return 0;
}

/*
 * A breakpoint that belongs to neither a probe nor a debugger, as in code that was copied together with a probe's
 * breakpoint. A runtime may handle the signal and end the process in another way.
 */
SEC("raw_tp/signal_generate")
int trapped(__u64 *ctx)
{
	struct kernel_siginfo *info = (void *)ctx[1];
	struct task_struct *task = (void *)ctx[2];
	struct pt_regs *regs;
	__u8 code[16];
	__u32 pid, *state;

	/* Small numbers stand for signals without details. */
	if (ctx[0] != SIGNAL_TRAP || ctx[1] <= 2 || BPF_CORE_READ(info, si_code) != SIGNAL_BY_KERNEL ||
	    BPF_CORE_READ(task, ptrace))
		return 0;
	pid = process_id(task);
	regs = (void *)bpf_task_pt_regs((void *)bpf_get_current_task_btf());
	if (pid && task == (void *)bpf_get_current_task() &&
	    !bpf_probe_read_user(code, sizeof(code), (void *)(BPF_CORE_READ(regs, ip) - 1)) &&
	    code[0] == BREAKPOINT)
		bpf_map_update_elem(&trapped_code, &pid, code, BPF_ANY);
	state = pid ? bpf_map_lookup_elem(&tracked, &pid) : NULL;
	if (state)
		*state |= TRACKED_TRAPPED;
	return 0;
}

SEC("raw_tp/task_rename")
int renamed(__u64 *ctx)
{
	struct task_struct *task = (void *)ctx[0];
	struct process_event event = { .kind = PROCESS_RENAMED };
	struct file *exe = BPF_CORE_READ(task, mm, exe_file);
	bool is_wanted;

	/* A thread, a kernel task, or a process on the way to another program, which is reported then. */
	if (BPF_CORE_READ(task, pid) != BPF_CORE_READ(task, tgid) || !exe ||
	    BPF_CORE_READ_BITFIELD_PROBED(task, in_execve))
		return 0;
	bpf_probe_read_kernel_str(event.comm, sizeof(event.comm), (void *)ctx[1]);
	event.pid = process_id(task);
	if (!event.pid)
		return 0;
	/* It may have overwritten its command line, too. */
	is_wanted = wants_all || line_globs || is_comm_wanted(event.comm) || fits_any(ctx[1], MAX_NAME, false);
	if (is_wanted)
		track(event.pid, true);
	else if (!bpf_map_lookup_elem(&tracked, &event.pid))
		return 0;
	set_file(&event.file, exe);
	event.cgroup = has_cgroups ? bpf_get_current_cgroup_id() : 0;
	send(&event, SHORT_EVENT, is_wanted && !known_use(&event));
	return 0;
}

SEC("raw_tp/cgroup_attach_task")
int moved(__u64 *ctx)
{
	struct cgroup *to = (void *)ctx[0];
	struct task_struct *task = (void *)ctx[2];
	struct process_event event = { .kind = PROCESS_MOVED };

	event.cgroup = BPF_CORE_READ(to, kn, id);
	event.pid = process_id(task);
	if (!event.pid)
		return 0;
	if (is_cgroup_wanted(event.cgroup))
		track(event.pid, true);
	if (bpf_map_lookup_elem(&tracked, &event.pid))
		send(&event, SHORT_EVENT, true);
	return 0;
}

#define PAGE_SIZE 4096

/*
 * Whether the call looks like musl's loader, which sets no distinguishing flag: it asks for as many pages as all
 * segments occupy in memory, and the file hardly ever has exactly that many. A program that reads a file maps all of
 * it, or a part of that size.
 */
static __always_inline bool is_for_all_segments(struct file *file, const struct pt_regs *regs)
{
	__u64 bytes = regs->si, size = BPF_CORE_READ(file, f_inode, i_size);

	return regs->r10 == MAP_PRIVATE && !regs->r9 && !(regs->dx & PROT_WRITE) && !(bytes % PAGE_SIZE) &&
	       bytes != (size + PAGE_SIZE - 1) / PAGE_SIZE * PAGE_SIZE;
}

/* Whether the current process has mapped the same code of the file more than once, or that cannot be determined. */
static __always_inline bool is_mapped_again(__u64 inode)
{
	struct bpf_iter_task_vma all;
	struct vm_area_struct *vma;
	__u64 first = 0;
	bool is_first = true, is_again = false;

	if (!bpf_ksym_exists(bpf_iter_task_vma_new))
		return true;
	/* Another thread may be changing its mappings. */
	if (bpf_iter_task_vma_new(&all, bpf_get_current_task_btf(), 0))
		is_again = true;
	while ((vma = bpf_iter_task_vma_next(&all))) {
		struct file *file = BPF_CORE_READ(vma, vm_file);
		__u64 page;

		if (!file || (__u64)BPF_CORE_READ(file, f_inode) != inode ||
		    !(BPF_CORE_READ(vma, vm_flags) & VM_EXEC))
			continue;
		page = BPF_CORE_READ(vma, vm_pgoff);
		if (is_first)
			first = page;
		else if (page == first)
			is_again = true;
		is_first = false;
	}
	bpf_iter_task_vma_destroy(&all);
	return is_again;
}

/*
 * Attached to the first code that a loader runs of a file whose semaphores have to be raised: all of the file is
 * mapped by then, and none of its probes has been reached. The cookie is the inode's address, with LOADED_AGAIN set
 * if only processes that had already loaded the file are to be reported.
 */
SEC("uprobe.multi")
int loaded(void *ctx)
{
	struct process_event event = { .kind = PROCESS_LOADED };
	__u64 cookie = bpf_get_attach_cookie(ctx);

	event.pid = process_id((void *)bpf_get_current_task_btf());
	event.address = cookie & ~(__u64)LOADED_AGAIN;
	if (!event.pid || (cookie & LOADED_AGAIN && !is_mapped_again(event.address)))
		return 0;
	event.ticket = make_wait();
	send(&event, SHORT_EVENT, true);
	return 0;
}

/*
 * The kernel has found a place for a new mapping: a loader asks for one for each library, and maps the library's
 * parts there. No tracepoint reports the mapping itself, which follows a moment later. Most calls are for memory
 * without a file. Loaders map files privately; shared mappings are of data, such as the tables of a database, which
 * are mapped all the time.
 */
SEC("raw_tp/vm_unmapped_area")
int mapped(__u64 *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task_btf();
	struct pt_regs *regs = (void *)bpf_task_pt_regs(task);
	struct process_event event = { .kind = PROCESS_MAPPED, .address = ctx[0] };
	struct named_file key = {};
	struct file *file;

	if (regs->orig_ax != NR_mmap || regs->r10 & (MAP_ANONYMOUS | MAP_SHARED))
		return 0;
	event.pid = process_id(task);
	if (!event.pid || event.pid == own_pid || !bpf_map_lookup_elem(&tracked, &event.pid))
		return 0;
	file = file_at(task, regs->r8);
	if (!file)
		return 0;
	set_file(&key.file, file);
	key.name = BPF_CORE_READ(file, f_path.dentry, d_name.hash_len);
	if (bpf_map_lookup_elem(&libraries, &key))
		return 0;
	event.file = key.file;
	event.name = key.name;
	if (regs->r10 & MAP_DENYWRITE || is_for_all_segments(file, regs))
		event.ticket = make_wait();
	send(&event, SHORT_EVENT, true);
	return 0;
}
