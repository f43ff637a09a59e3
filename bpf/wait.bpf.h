/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Makes the current task wait, before its system call returns, until user space has answered its ticket: src/kernel/tickets.rs.
 * Where the kernel cannot do that (before Linux 6.18) nobody waits; nor does anybody after one has waited in vain, until user space
 * answers again.
 */
#ifndef WAIT_BPF_H
#define WAIT_BPF_H

#include <bpf/bpf_helpers.h>

enum ticket_limit {
	TURNSTILES = 64, /* tasks that wait at a time */
};

/* Tasks below it have a real-time policy. From <linux/sched/prio.h>. */
#define MAX_RT_PRIO 100

/* Nanoseconds that a task waits at most; 0 where the kernel cannot make it wait. */
const volatile __u64 longest_wait = 0;

/* The ticket that was answered last at each turnstile. */
volatile __u64 answered[TURNSTILES] = {};

/* A task has waited in vain since user space answered last. */
volatile __u64 is_unanswered = 0;

__u64 tickets = 0;

/* From the kernel; without it, nobody waits. */
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
};

static long wait_on(__u64 turn, struct waiting *waiting)
{
	char byte;

	if (answered[waiting->ticket % TURNSTILES] >= waiting->ticket)
		return 1;
	if (bpf_ktime_get_ns() > waiting->until) {
		is_unanswered = 1;
		return 1;
	}
	/* It lets others run on this CPU, whatever it reads. */
	bpf_copy_from_user_task(&byte, sizeof(byte), (void *)waiting->ticket, bpf_get_current_task_btf(), 0);
	return 0;
}

/* Before the system call returns. */
static int wait_for_answer(struct bpf_map *map, void *key, struct turnstile *value)
{
	struct waiting waiting = { .ticket = value->ticket, .until = bpf_ktime_get_ns() + longest_wait };

	bpf_loop(1 << 23, wait_on, &waiting, 0);
	return 0;
}

/* The number that the current task waits for before its system call returns, or 0. */
static __always_inline __u64 make_wait(void)
{
	struct turnstile *turnstile;
	__u64 ticket;
	__u32 at;

	if (!longest_wait || is_unanswered || !bpf_ksym_exists(bpf_task_work_schedule_resume_impl))
		return 0;
	/* It would keep user space from the CPU. */
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
	/* Read by this task, later. */
	turnstile->ticket = ticket;
	return ticket;
}

/* Nobody will answer it. */
static __always_inline void let_go(__u64 ticket)
{
	if (ticket)
		answered[ticket % TURNSTILES] = ticket;
}

#endif
