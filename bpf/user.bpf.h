/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Reading memory of the traced program that may not be resident. */
#ifndef USER_BPF_H
#define USER_BPF_H

/* Missing before Linux 6.12, where the loader resolves it to nothing. */
extern int bpf_copy_from_user_str(void *dst, __u32 dst__sz, const void *unsafe_ptr__ign,
				  __u64 flags) __ksym __weak;

#define PAGE_SHIFT 12

/*
 * The quick read fails on a page that is not resident, which is common for a string that the program has not
 * touched yet; the slow one may sleep and fault it in.
 */
static __always_inline long read_user(void *to, __u32 bytes, const void *from)
{
	long err = bpf_probe_read_user(to, bytes, from);

	if (err)
		err = bpf_copy_from_user(to, bytes, from);
	return err;
}

static __always_inline long read_user_str(void *to, __u32 bytes, const void *from)
{
	long len = bpf_probe_read_user_str(to, bytes, from);

	if (len >= 0)
		return len;
	if (bpf_ksym_exists(bpf_copy_from_user_str)) {
		len = bpf_copy_from_user_str(to, bytes, from, 0);
	} else {
		/* One byte of each page that the string may be on makes it resident. */
		__u64 first = (__u64)from, last = first + bytes - 1;
		char byte;

		bpf_copy_from_user(&byte, 1, from);
		if ((first ^ last) >> PAGE_SHIFT)
			bpf_copy_from_user(&byte, 1, (const void *)(last >> PAGE_SHIFT << PAGE_SHIFT));
		len = bpf_probe_read_user_str(to, bytes, from);
	}
	return len;
}

#endif
