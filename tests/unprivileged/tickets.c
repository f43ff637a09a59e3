/*
 * Runs bpf/tickets.bpf.h in every order in which two tasks that wait and user space can do it: see orders.c.
 */
#include <stdio.h>
#include <string.h>

#include "orders.h"

enum { TICKETS = 2, LOOKS = 2 };

/* What user space was told of, and how much of it it has answered. */
extern __u64 told[TICKETS];
extern int all_told, all_answered;
/* The next ticket. */
__u64 tell(void);
/* As user space, without being interrupted: answers what is left; whether tasks may wait then. */
bool answer_all(void);
void forget_all(void);
bool is_of_protocol(const void *at);

#ifdef STEPS

#include "tickets.bpf.h"

/* As src/kernel/tickets.rs. */
static void answer(__u64 ticket)
{
	if (answered[ticket % TURNSTILES] < ticket)
		answered[ticket % TURNSTILES] = ticket;
#ifdef CLEARS
	in_vain = 0;
#endif
}

static void answer_some(void)
{
	while (all_answered < all_told)
		answer(told[all_answered++]);
}

static void wait_once(void)
{
	__u64 ticket;

	if (!may_wait())
		return;
	ticket = tell();
	for (int look = 0; look < LOOKS; look++)
		if (is_answered(ticket))
			return;
	give_up(ticket);
}

void cpu(int which)
{
	if (which < 2) {
		wait_once();
		return;
	}
	/* It can be that nothing is told yet. */
	for (int turn = 0; turn < 3; turn++) {
		answer_some();
		may_wait();
	}
}

bool answer_all(void)
{
	answer_some();
	return may_wait();
}

void forget_all(void)
{
	memset((void *)answered, 0, sizeof(answered));
	in_vain = 0;
}

bool is_of_protocol(const void *at)
{
	const char *c = at;

	return c == (char *)&in_vain || (c >= (char *)answered && c < (char *)(answered + TURNSTILES));
}

#else

__u64 told[TICKETS];
int all_told, all_answered;

__u64 tell(void)
{
	__u64 ticket = all_told + 1;

	told[all_told++] = ticket;
	return ticket;
}

bool is_shared(const void *at)
{
	return is_of_protocol(at);
}

void begin(void)
{
	forget_all();
	all_told = all_answered = 0;
}

void check(void)
{
	if (!answer_all())
		fail("all is answered, and nobody waits any more");
}

#endif
