/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Tickets that tasks wait with, and what user space has answered. Only user space writes `answered`, and only tasks that wait write
 * `in_vain`: so no order of these loses an answer. A flag that both write would, once, for ever: set by a task that looked at its
 * ticket before the answer, after user space had cleared it.
 *
 * tests/unprivileged/tickets.c runs this very text as a user program, in every order in which a few tasks can do it.
 */
#ifndef TICKETS_BPF_H
#define TICKETS_BPF_H

enum ticket_limit {
	TURNSTILES = 64, /* tasks that wait at a time */
};

/* The ticket that was answered last at each turnstile. */
volatile __u64 answered[TURNSTILES] = {};

/* A ticket that a task has waited with in vain. */
volatile __u64 in_vain = 0;

static __always_inline bool is_answered(__u64 ticket)
{
	return answered[ticket % TURNSTILES] >= ticket;
}

/* Whether user space answers, as far as is known. */
static __always_inline bool may_wait(void)
{
	return is_answered(in_vain);
}

static __always_inline void give_up(__u64 ticket)
{
	in_vain = ticket;
}

#endif
