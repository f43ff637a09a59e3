/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The tickets of waiting tasks, and the answers of user space. Only user space writes `answered`, and only waiting
 * tasks write `in_vain`, so no order of events loses an answer. A flag written by both could lose one, with no
 * remedy: set by a task that checked its ticket before the answer, after user space has cleared the flag.
 *
 * tests/unprivileged/tickets.c runs this very source as a user program, in every order in which a few tasks can
 * execute it.
 */
#ifndef TICKETS_BPF_H
#define TICKETS_BPF_H

enum ticket_limit {
	TURNSTILES = 64, /* tasks that can wait at the same time */
};

/* The last ticket answered at each turnstile. */
volatile __u64 answered[TURNSTILES] = {};

/* A ticket whose task has waited in vain. */
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
