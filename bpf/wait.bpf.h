/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Makes the current task wait, before its system call returns, until user space has answered its ticket: see
 * src/kernel/tickets.rs. Where the kernel cannot do that (before Linux 6.18), no task waits; nor does any after one
 * has waited in vain, until user space answers that one's ticket.
 */
#ifndef WAIT_BPF_H
#define WAIT_BPF_H

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include "task.bpf.h"
#include "tickets.bpf.h"

/* Tasks with a lower value have a real-time policy. From <linux/sched/prio.h>. */
#define MAX_RT_PRIO 100

/* Maximum nanoseconds that a task waits; 0 where the kernel cannot make it wait. */
const volatile __u64 longest_wait = 0;

__u64 tickets = 0;

/* Provided by the kernel; without it, no task waits. */
struct bpf_task_work {
	__u64 __opaque;
} __attribute__((aligned(8)));

struct turnstile {
	struct bpf_task_work work;
	__u64 ticket;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, TURNSTILES);
	__type(key, __u32);
	__type(value, struct turnstile);
} turnstiles SEC(".maps");

struct bpf_map {
	__u32 id;
} __attribute__((preserve_access_index));

typedef int (*work_callback)(struct bpf_map *map, void *key, void *value);
extern int bpf_task_work_schedule_resume_impl(struct task_struct *task, struct bpf_task_work *work, void *map__map,
					      work_callback callback, void *aux__prog) __ksym __weak;

struct waiting {
	__u64 ticket;
	__u64 until;
	const void *mapped;
};

/* From <asm/signal.h>. */
#define SIGKILL 9

/* Whether the current task is being killed, so that it need not wait. */
static __always_inline bool is_killed(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	return BPF_CORE_READ(task, pending.signal.sig[0]) & 1UL << (SIGKILL - 1);
}

static long wait_on(__u64 turn, struct waiting *waiting)
{
	char byte;

	if (is_answered(waiting->ticket) || is_killed())
		return 1;
	if (bpf_ktime_get_ns() > waiting->until) {
		give_up(waiting->ticket);
		return 1;
	}
	/*
	 * This lets other tasks run on this CPU if something is mapped there (cond_resched() in __get_user_pages()).
	 * No function that a program may call sleeps for a given time.
	 */
	bpf_copy_from_user_task(&byte, sizeof(byte), waiting->mapped, bpf_get_current_task_btf(), 0);
	return 0;
}

/* Runs before the system call returns. */
static int wait_for_answer(struct bpf_map *map, void *key, struct turnstile *value)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct waiting waiting = { .ticket = value->ticket, .until = bpf_ktime_get_ns() + longest_wait };

	/* The stack, as far as the kernel has filled it. */
	waiting.mapped = (const void *)BPF_CORE_READ(task, mm, arg_start);
	bpf_loop(1 << 23, wait_on, &waiting, 0);
	return 0;
}

/*
 * Makes the current task wait before its system call returns. Returns the ticket that it waits for, or 0 if it does
 * not.
 */
static __always_inline __u64 make_wait(void)
{
	struct turnstile *turnstile;
	__u64 ticket;
	__u32 at;

	if (!longest_wait || !may_wait() || !bpf_ksym_exists(bpf_task_work_schedule_resume_impl))
		return 0;
	/* A real-time task would keep user space off the CPU. */
	if (bpf_get_current_task_btf()->prio < MAX_RT_PRIO)
		return 0;
	ticket = __sync_fetch_and_add(&tickets, 1) + 1;
	at = ticket % TURNSTILES;
	turnstile = bpf_map_lookup_elem(&turnstiles, &at);
	if (!turnstile)
		return 0;
	if (bpf_task_work_schedule_resume_impl(bpf_get_current_task_btf(), &turnstile->work, &turnstiles,
					       (work_callback)wait_for_answer, NULL))
		return 0;
	/* Read later, by this task. */
	turnstile->ticket = ticket;
	return ticket;
}

/* The ticket will not be answered: the current task need not wait. */
static __always_inline void let_go(__u64 ticket)
{
	__u32 at = ticket % TURNSTILES;
	struct turnstile *turnstile = ticket ? bpf_map_lookup_elem(&turnstiles, &at) : NULL;

	/* While a task that was made to wait has not begun to, no other task uses its turnstile. */
	if (turnstile)
		turnstile->ticket = 0;
}

#endif
