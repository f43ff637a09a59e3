/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Reads memory of the traced program that may not be resident. */
#ifndef USER_BPF_H
#define USER_BPF_H

/* Missing before Linux 6.12, where the loader resolves it to nothing. */
extern int bpf_copy_from_user_str(void *dst, __u32 dst__sz, const void *unsafe_ptr__ign,
				  __u64 flags) __ksym __weak;

#define PAGE_SHIFT 12

static long note_lent(struct task_struct *task, struct vm_area_struct *vma, void *is_lent)
{
	*(bool *)is_lent = bpf_core_field_exists(vma->vm_userfaultfd_ctx.ctx) && vma->vm_userfaultfd_ctx.ctx;
	return 0;
}

/*
 * Whether the program itself supplies the pages of this memory (userfaultfd): the thread that does so would wait for
 * itself. False if that cannot be looked up.
 */
static __always_inline bool is_lent(const void *address)
{
	bool is_lent = false;

	bpf_find_vma(bpf_get_current_task_btf(), (__u64)address, note_lent, &is_lent, 0);
	return is_lent;
}

/* Separate functions, so that their stack is not part of their callers', all of which are in use at the same time. */
static __noinline long fault_in(void *to, __u32 bytes, const void *from)
{
	return is_lent(from) ? -1 : bpf_copy_from_user(to, bytes, from);
}

static __noinline long fault_in_str(void *to, __u32 bytes, const void *from)
{
	/* Reading one byte of each page that the string may be on makes it resident. */
	__u64 first = (__u64)from, last = first + bytes - 1;
	char byte;

	if (is_lent(from))
		return -1;
	if (bpf_ksym_exists(bpf_copy_from_user_str))
		return bpf_copy_from_user_str(to, bytes, from, 0);
	bpf_copy_from_user(&byte, 1, from);
	if ((first ^ last) >> PAGE_SHIFT)
		bpf_copy_from_user(&byte, 1, (const void *)(last >> PAGE_SHIFT << PAGE_SHIFT));
	return bpf_probe_read_user_str(to, bytes, from);
}

/*
 * The fast read fails on a page that is not resident, which is common for a string that the program has not touched
 * yet; the slow one may sleep and fault it in.
 */
static __always_inline long read_user(void *to, __u32 bytes, const void *from)
{
	long err = bpf_probe_read_user(to, bytes, from);

	return err ? fault_in(to, bytes, from) : err;
}

static __always_inline long read_user_str(void *to, __u32 bytes, const void *from)
{
	long len = bpf_probe_read_user_str(to, bytes, from);

	return len < 0 ? fault_in_str(to, bytes, from) : len;
}

#endif
