/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Process and thread ids as in the exporter's /proc. */
#ifndef IDS_BPF_H
#define IDS_BPF_H

#include <bpf/bpf_core_read.h>
#include "task.bpf.h"

/* Zero if /proc belongs to the initial pid namespace; the verifier then removes the code that depends on them. */
const volatile __u64 pid_namespace = 0;
const volatile __u32 pid_level = 0;

/* A task's id in the exporter's pid namespace, or 0 if it is outside. */
static __always_inline __u32 id_inside(struct task_struct *task)
{
	struct pid *pid = BPF_CORE_READ(task, thread_pid);
	struct upid upid;

	if (!pid || BPF_CORE_READ(pid, level) < pid_level || upid_at(pid, pid_level, &upid) ||
	    (__u64)upid.ns != pid_namespace)
		return 0;
	return upid.nr;
}

/* The id of a task's process there. */
static __always_inline __u32 process_id(struct task_struct *task)
{
	return pid_namespace ? id_inside(BPF_CORE_READ(task, group_leader)) : BPF_CORE_READ(task, tgid);
}

static __always_inline __u64 ids_inside(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	__u32 tid = id_inside(task);

	return tid ? (__u64)id_inside(BPF_CORE_READ(task, group_leader)) << 32 | tid : 0;
}

/* Process and thread ids, in the upper and the lower half. */
static __always_inline __u64 ids(void)
{
	return pid_namespace ? ids_inside() : bpf_get_current_pid_tgid();
}

#endif
