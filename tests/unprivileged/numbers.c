/*
 * Runs bpf/numbers.bpf.h in every order in which three CPUs can do it, up to a number of preemptions.
 *
 * This file is compiled twice. With STEPS it is what the CPUs do, instrumented by -fsanitize=thread: the compiler calls a
 * function at each access to memory. Without, it has these functions, which are not the sanitizer's but a scheduler's: each is
 * a place at which another CPU may go on.
 */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <linux/types.h>

#include "abi.h"

enum { NUMBERS = 4, CPUS = 3 };

extern struct interner interner;
extern struct entry entries[NUMBERS];
void taken(__u32 number);
void given(__u32 number);
void cpu(int which);
/* As cpu(3), without being interrupted: takes all that there are; how many. */
int take_all(void);

#ifdef STEPS

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif
#define bpf_map_lookup_elem(map, at) (*(at) < NUMBERS ? &(*(map))[*(at)] : NULL)

#include "numbers.bpf.h"

/* What its owner does with a number: it writes a name to where the stack had its link. */
static __u32 take(void)
{
	__u32 number = take_number(&interner);

	if (number == ~0U)
		return number;
	taken(number);
	*(volatile __u64 *)&entries[number].words[0] = 0x77777777;
	return number;
}

static void give(__u32 number)
{
	if (number == ~0U)
		return;
	given(number);
	give_back(&interner, number);
}

void cpu(int which)
{
	__u32 first, second;

	switch (which) {
	case 0:
		take();
		break;
	case 1:
		first = take();
		second = take();
		give(first);
		(void)second;
		break;
	default:
		/* User space, which has number 2 from the start. */
		give(2);
	}
}

int take_all(void)
{
	int count = 0;

	while (take() != ~0U)
		count++;
	return count;
}

#else

#include <ucontext.h>

enum { MOST_STEPS = 200, PREEMPTIONS = 4, STACK = 64 << 10 };

struct interner interner;
struct entry entries[NUMBERS];
static bool held[NUMBERS];

static ucontext_t scheduler, contexts[CPUS];
static char stacks[CPUS][STACK];
static bool ended[CPUS];
static int running = -1;

/* The order that is tried: at each step the choice, of how many, and which CPU that was. */
static int choices[MOST_STEPS], possible[MOST_STEPS], chosen[MOST_STEPS], steps;

static void fail(const char *what)
{
	printf("%s; CPUs in this order:", what);
	for (int i = 0; i < steps; i++)
		printf(" %d", chosen[i]);
	printf("\n");
	exit(1);
}

void taken(__u32 number)
{
	if (number >= NUMBERS || held[number])
		fail("a number is given out twice");
	held[number] = true;
}

void given(__u32 number)
{
	held[number] = false;
}

static void step(void)
{
	if (running >= 0)
		swapcontext(&contexts[running], &scheduler);
}

/* Only what several of them write is a step: the rest of the interner never changes. */
static void touch(const void *at)
{
	const char *c = at;
	bool is_entry = c >= (char *)entries && c < (char *)(entries + NUMBERS);

	if (is_entry || at == &interner.free || at == &interner.next)
		step();
}

#define HOOK(name) void __tsan_##name(void *at) { touch(at); }
HOOK(read1) HOOK(read2) HOOK(read4) HOOK(read8) HOOK(write1) HOOK(write2) HOOK(write4) HOOK(write8)

void __tsan_init(void)
{
}

void __tsan_func_entry(void *caller)
{
	(void)caller;
}

void __tsan_func_exit(void)
{
}

bool __tsan_atomic64_compare_exchange_strong(__u64 *at, __u64 *expected, __u64 to, int order, int failed)
{
	bool is_it;

	(void)order, (void)failed;
	touch(at);
	is_it = *at == *expected;
	*expected = *at;
	if (is_it)
		*at = to;
	return is_it;
}

__u64 __tsan_atomic64_compare_exchange_val(__u64 *at, __u64 expected, __u64 to, int order, int failed)
{
	__tsan_atomic64_compare_exchange_strong(at, &expected, to, order, failed);
	return expected;
}

__u32 __tsan_atomic32_fetch_add(__u32 *at, __u32 by, int order)
{
	(void)order;
	touch(at);
	*at += by;
	return *at - by;
}

static void run_cpu(int which)
{
	cpu(which);
	ended[which] = true;
}

/* Numbers 1 and 0 are on the stack, 2 is user space's, 3 was never given out. */
static void begin(void)
{
	memset(entries, 0, sizeof(entries));
	memset(held, 0, sizeof(held));
	interner = (struct interner){ .capacity = NUMBERS, .limit = NUMBERS, .next = 3, .free = 2 };
	entries[1].words[0] = 1;
	held[2] = true;
	for (int n = 0; n < CPUS; n++) {
		ended[n] = false;
		getcontext(&contexts[n]);
		contexts[n].uc_stack.ss_sp = stacks[n];
		contexts[n].uc_stack.ss_size = STACK;
		contexts[n].uc_link = &scheduler;
		makecontext(&contexts[n], (void (*)(void))run_cpu, 1, n);
	}
}

/* One order: the choices so far, and from there on the CPU that ran last. */
static void run(int given_steps)
{
	int last = -1, preemptions = 0;

	begin();
	for (steps = 0; steps < MOST_STEPS; steps++) {
		int could[CPUS], n = 0;

		/* The one that ran last comes first: to leave it is to preempt it. */
		if (last >= 0 && !ended[last])
			could[n++] = last;
		for (int other = 0; other < CPUS; other++)
			if (other != last && !ended[other] && (n == 0 || could[0] != last || preemptions < PREEMPTIONS))
				could[n++] = other;
		if (n == 0)
			break;
		possible[steps] = n;
		if (steps >= given_steps)
			choices[steps] = 0;
		if (could[0] == last && choices[steps] > 0)
			preemptions++;
		last = chosen[steps] = could[choices[steps]];
		running = last;
		swapcontext(&scheduler, &contexts[last]);
		running = -1;
	}
	if (steps == MOST_STEPS)
		fail("it does not end");
}

/* All numbers that nobody has can be taken, and no others. */
static void check(void)
{
	int free_ones = 0, found;

	for (int n = 0; n < NUMBERS; n++)
		free_ones += !held[n];
	found = take_all();
	if (found != free_ones)
		fail(found < free_ones ? "a number is lost" : "there are too many numbers");
}

int main(void)
{
	long orders = 0;
	int given_steps = 0;

	for (;;) {
		run(given_steps);
		check();
		orders++;
		/* The next one: the last step that has another choice takes it. */
		for (given_steps = steps; given_steps > 0; given_steps--)
			if (++choices[given_steps - 1] < possible[given_steps - 1])
				break;
		if (given_steps == 0)
			break;
	}
	printf("%ld orders\n", orders);
	return 0;
}

#endif
