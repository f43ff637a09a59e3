/*
 * Runs what a few CPUs do in every order in which they can, up to a number of preemptions.
 *
 * What they do is in a model (numbers.c, tickets.c), which is compiled twice. With STEPS it is that, instrumented by -fsanitize=thread: the
 * compiler calls a function at each access to memory. Without, it is what the CPUs share. Here are these functions, which are not the
 * sanitizer's but a scheduler's: each is a place at which another CPU may go on.
 */
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>

#include "orders.h"

enum { MOST_STEPS = 200, PREEMPTIONS = 4, STACK = 64 << 10 };

static ucontext_t scheduler, contexts[CPUS];
static char stacks[CPUS][STACK];
static bool ended[CPUS];
static int running = -1;

/* The order that is tried: at each step the choice, of how many, and which CPU that was. */
static int choices[MOST_STEPS], possible[MOST_STEPS], chosen[MOST_STEPS], steps;

void fail(const char *what)
{
	printf("%s; CPUs in this order:", what);
	for (int i = 0; i < steps; i++)
		printf(" %d", chosen[i]);
	printf("\n");
	exit(1);
}

static void step(void)
{
	if (running >= 0)
		swapcontext(&contexts[running], &scheduler);
}

/* Only what several of them write is a step. */
static void touch(const void *at)
{
	if (is_shared(at))
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

static void begin_all(void)
{
	begin();
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

	begin_all();
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
