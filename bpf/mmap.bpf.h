/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The arguments of an mmap(2) in progress. */
#ifndef MMAP_BPF_H
#define MMAP_BPF_H

#include <bpf/bpf_core_read.h>
#include "task.bpf.h"

/* From <asm/unistd_64.h> and <linux/mman.h>. */
#define NR_mmap 9
#define NR_mprotect 10
#define NR_mremap 25
#define PROT_WRITE 0x2
#define PROT_EXEC 0x4
#define MAP_SHARED 0x01
#define MAP_PRIVATE 0x02
#define MAP_ANONYMOUS 0x20
#define MAP_DENYWRITE 0x800 /* has no effect; glibc's loader sets it */

/* The exporter. It maps files to inspect them, and must not wait for itself. */
const volatile __u32 own_pid = 0;

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
} __attribute__((preserve_access_index));

struct files_struct {
	struct fdtable *fdt;
} __attribute__((preserve_access_index));

struct task_struct___files {
	struct files_struct *files;
} __attribute__((preserve_access_index));

static __always_inline struct file *file_at(struct task_struct *task, __u32 fd)
{
	struct fdtable *table = BPF_CORE_READ((struct task_struct___files *)task, files, fdt);
	struct file *file = NULL;

	if (fd < BPF_CORE_READ(table, max_fds))
		bpf_probe_read_kernel(&file, sizeof(file), BPF_CORE_READ(table, fd) + fd);
	return file;
}

#endif
