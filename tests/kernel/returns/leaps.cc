/*
 * Leaves functions in every way that is not a return: each scenario calls functions that are traced, and says how often they
 * were entered and how often they returned. A wrong result ends the program with a line that tells.
 *
 * Usage: leaps SCENARIO CALLS. Prints "FUNCTION ENTERED RETURNED SUM" for each function; SUM is of what it returned.
 */
#include <csetjmp>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <pthread.h>
#include <stdexcept>
#include <string>
#include <sys/mman.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#define TRACED extern "C" __attribute__((noinline, noclone))
#define COUNTED(name) static struct { volatile unsigned long entered, returned, sum; } name##_is

static void show(const char *name, unsigned long entered, unsigned long returned, unsigned long sum)
{
	printf("%s %lu %lu %lu\n", name, entered, returned, sum);
}

#define SHOW(name) show(#name, name##_is.entered, name##_is.returned, name##_is.sum)

static void check(bool holds, const char *what)
{
	if (holds)
		return;
	printf("wrong: %s\n", what);
	exit(1);
}

template <class Counts> static unsigned long leave(Counts &counts, unsigned long result)
{
	counts.returned = counts.returned + 1;
	counts.sum = counts.sum + result;
	return result;
}

/* Exceptions: thrown at some depth, caught at another, through frames with cleanups and without. */
COUNTED(deep);
COUNTED(guarded);
struct Cleanup {
	volatile int *count;
	~Cleanup() { *count = *count + 1; }
};
static volatile int cleanups;

TRACED unsigned long guarded(unsigned depth, unsigned thrown_at, unsigned caught_at);
TRACED unsigned long deep(unsigned depth, unsigned thrown_at, unsigned caught_at)
{
	deep_is.entered = deep_is.entered + 1;
	if (depth == thrown_at)
		throw std::runtime_error(std::string("thrown"));
	unsigned long below = depth ? guarded(depth - 1, thrown_at, caught_at) : 0;
	return leave(deep_is, below + 1);
}

TRACED unsigned long guarded(unsigned depth, unsigned thrown_at, unsigned caught_at)
{
	guarded_is.entered = guarded_is.entered + 1;
	Cleanup cleanup = { &cleanups };
	if (depth == caught_at) {
		try {
			return leave(guarded_is, depth ? deep(depth - 1, thrown_at, caught_at) + 1 : 1);
		} catch (const std::exception &) {
			return leave(guarded_is, 1000);
		}
	}
	return leave(guarded_is, depth ? deep(depth - 1, thrown_at, caught_at) + 1 : 1);
}

static void exceptions(unsigned long calls)
{
	const unsigned top = 8;
	unsigned long caught = 0, returned = 0;

	for (unsigned long i = 0; i < calls; i++) {
		unsigned thrown_at = i % 10, caught_at = i / 10 % 10;
		try {
			guarded(top, thrown_at, caught_at);
			returned++;
		} catch (const std::exception &) {
			caught++;
		}
	}
	check(caught + returned == calls && caught && returned, "exceptions");
	check((unsigned long)cleanups == guarded_is.entered, "cleanups");
	SHOW(deep);
	SHOW(guarded);
}

/* longjmp over several frames, and out of a signal's handler. */
COUNTED(jumps_down);
COUNTED(signalled);
static sigjmp_buf back;

TRACED unsigned long jumps_down(unsigned depth, bool jumps)
{
	jumps_down_is.entered = jumps_down_is.entered + 1;
	if (!depth && jumps)
		siglongjmp(back, 7);
	return leave(jumps_down_is, depth ? jumps_down(depth - 1, jumps) + 1 : 1);
}

static void on_signal(int)
{
	siglongjmp(back, 9);
}

TRACED unsigned long signalled(bool jumps)
{
	signalled_is.entered = signalled_is.entered + 1;
	if (jumps)
		raise(SIGUSR1);
	return leave(signalled_is, 3);
}

static void jumps(unsigned long calls)
{
	volatile unsigned long jumped = 0;

	signal(SIGUSR1, on_signal);
	for (volatile unsigned long i = 0; i < calls; i = i + 1) {
		int way = sigsetjmp(back, 1);
		if (way == 0) {
			check(jumps_down(i % 5, i % 3 == 0) == i % 5 + 1, "what a recursion returns");
			check(i % 3 != 0, "a jump");
			signalled(i % 7 == 0);
		} else {
			check(way == 7 || way == 9, "what setjmp returns");
			jumped = jumped + 1;
		}
	}
	check(jumped > calls / 3, "jumps");
	SHOW(jumps_down);
	SHOW(signalled);
}

/* Coroutines of the C library: two stacks, functions that are left in their middle. */
COUNTED(yields);
static ucontext_t home, one, other;
static unsigned long turns;

TRACED unsigned long yields(ucontext_t *me, ucontext_t *to, unsigned long value)
{
	yields_is.entered = yields_is.entered + 1;
	swapcontext(me, to);
	return leave(yields_is, value);
}

static void run_one()
{
	for (unsigned long i = 0; i < turns; i++)
		check(yields(&one, &other, i) == i, "a coroutine's value");
}

static void run_other()
{
	for (unsigned long i = 0;; i++)
		check(yields(&other, &one, 2 * i) == 2 * i, "the other coroutine's value");
}

static void contexts(unsigned long calls)
{
	const size_t size = 1 << 16;
	char *stacks = (char *)malloc(2 * size);

	turns = calls / 2;
	getcontext(&one);
	getcontext(&other);
	one.uc_stack = { stacks + size, 0, size };
	other.uc_stack = { stacks, 0, size };
	one.uc_link = &home;
	makecontext(&one, run_one, 0);
	makecontext(&other, run_other, 0);
	swapcontext(&home, &one);
	/* The other one has been left in its last call. */
	check(yields_is.returned + 1 == yields_is.entered, "coroutines");
	SHOW(yields);
}

/* Coroutines with a switch of their own, as libraries for them have it; and each is resumed by either of two threads. */
extern "C" void switch_stack(void **from, void *to);
asm(".text\n.type switch_stack, @function\nswitch_stack:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp, (%rdi)\nmov %rsi, %rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n"
    ".size switch_stack, . - switch_stack\n");

COUNTED(leaves_stack);
static void *inside, *outside[2];
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

TRACED unsigned long leaves_stack(unsigned long value)
{
	leaves_stack_is.entered = leaves_stack_is.entered + 1;
	unsigned long next = value * 3 + 1;
	switch_stack(&inside, outside[value & 1]);
	return leave(leaves_stack_is, next - 1);
}

static void body()
{
	for (unsigned long i = 0;; i++)
		check(leaves_stack(i) == 3 * i, "a value on a stack of its own");
}

static unsigned long resumed;

static void *resume(void *who)
{
	unsigned long me = (unsigned long)who, calls = turns;

	for (;;) {
		pthread_mutex_lock(&turn);
		if (resumed >= calls) {
			pthread_mutex_unlock(&turn);
			return NULL;
		}
		/* Coroutine number resumed goes back to the thread whose turn it is. */
		if ((resumed & 1) == me) {
			resumed++;
			switch_stack(&outside[me], inside);
		}
		pthread_cond_broadcast(&changed);
		if ((resumed & 1) != me && resumed < calls)
			pthread_cond_wait(&changed, &turn);
		pthread_mutex_unlock(&turn);
	}
}

static void stacks(unsigned long calls)
{
	const size_t size = 1 << 16;
	char *stack = (char *)mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	void **top = (void **)(stack + size) - 8;
	pthread_t thread[2];

	top[6] = (void *)body;
	inside = top;
	turns = calls;
	for (unsigned long i = 0; i < 2; i++)
		pthread_create(&thread[i], NULL, resume, (void *)i);
	for (unsigned long i = 0; i < 2; i++)
		pthread_join(thread[i], NULL);
	check(leaves_stack_is.entered == calls && leaves_stack_is.returned == calls - 1, "stacks");
	SHOW(leaves_stack);
}

/* Threads that end, or are ended, in a function that is traced. */
COUNTED(ends_thread);
COUNTED(is_cancelled);
static volatile int cleaned;

static void clean(void *)
{
	__sync_fetch_and_add(&cleaned, 1);
}

TRACED unsigned long ends_thread(bool ends)
{
	ends_thread_is.entered = ends_thread_is.entered + 1;
	if (ends)
		pthread_exit(NULL);
	return leave(ends_thread_is, 5);
}

TRACED unsigned long is_cancelled(bool waits)
{
	is_cancelled_is.entered = is_cancelled_is.entered + 1;
	pthread_cleanup_push(clean, NULL);
	if (waits)
		pause();
	pthread_cleanup_pop(0);
	return leave(is_cancelled_is, 6);
}

static void *thread_exits(void *)
{
	ends_thread(false);
	ends_thread(true);
	return (void *)1;
}

static void *thread_waits(void *)
{
	is_cancelled(false);
	is_cancelled(true);
	return (void *)1;
}

static void threads(unsigned long calls)
{
	for (unsigned long i = 0; i < calls / 4; i++) {
		pthread_t thread;
		void *result;

		pthread_create(&thread, NULL, thread_exits, NULL);
		pthread_join(thread, &result);
		check(result == NULL, "pthread_exit");
		pthread_create(&thread, NULL, thread_waits, NULL);
		pthread_cancel(thread);
		pthread_join(thread, &result);
		check(result == PTHREAD_CANCELED, "pthread_cancel");
	}
	check((unsigned long)cleaned <= calls / 4, "cleanup");
	SHOW(ends_thread);
	SHOW(is_cancelled);
}

/* Deeper than the kernel follows returns, and by a tail call at each end. */
COUNTED(recursive);
COUNTED(last_call);
COUNTED(through_pointer);

TRACED unsigned long recursive(unsigned depth)
{
	recursive_is.entered = recursive_is.entered + 1;
	return leave(recursive_is, depth ? recursive(depth - 1) + 1 : 1);
}

TRACED __attribute__((optimize("O2"))) unsigned long finishes(unsigned long value)
{
	asm volatile("");
	last_call_is.returned = last_call_is.returned + 1;
	last_call_is.sum = last_call_is.sum + value;
	return value;
}

TRACED __attribute__((optimize("O2"))) unsigned long last_call(unsigned long value)
{
	last_call_is.entered = last_call_is.entered + 1;
	return finishes(value + 1);
}

static unsigned long (*volatile pointer)(unsigned long) = finishes;

TRACED __attribute__((optimize("O2"))) unsigned long through_pointer(unsigned long value)
{
	through_pointer_is.entered = through_pointer_is.entered + 1;
	through_pointer_is.returned = through_pointer_is.returned + 1;
	return pointer(value);
}

/* Entered and left by one instruction. */
COUNTED(nothing);
extern "C" void nothing(void);
asm(".text\n.globl nothing\n.type nothing, @function\nnothing: ret\n.size nothing, . - nothing\n");

static void recursion(unsigned long calls)
{
	const unsigned depth = 99;

	for (unsigned long i = 0; i < calls / (depth + 1); i++) {
		check(recursive(depth) == depth + 1, "recursion");
		for (unsigned n = 0; n < 20; n++)
			check(last_call(i + n) == i + n + 1, "a tail call");
		check(finishes(i) == i, "what is called otherwise too");
		last_call_is.returned = last_call_is.returned - 1;
		last_call_is.sum = last_call_is.sum - i;
		unsigned long returned = last_call_is.returned, sum = last_call_is.sum;
		for (unsigned n = 0; n < 20; n++)
			check(through_pointer(i) == i, "a tail call through a pointer");
		last_call_is.returned = returned;
		last_call_is.sum = sum;
		nothing_is.entered = nothing_is.entered + 1;
		nothing();
		nothing_is.returned = nothing_is.returned + 1;
	}
	SHOW(recursive);
	SHOW(last_call);
	SHOW(through_pointer);
	SHOW(nothing);
}

/* A process that becomes two in the middle: the child returns too, and is not the parent. */
COUNTED(forks);

TRACED unsigned long forks(bool forks_now)
{
	forks_is.entered = forks_is.entered + 1;
	pid_t child = forks_now ? fork() : 1;
	if (!child)
		return 77;
	if (forks_now) {
		int status;
		waitpid(child, &status, 0);
		check(WIFEXITED(status) && WEXITSTATUS(status) == 77, "a child");
	}
	return leave(forks_is, 4);
}

static void processes(unsigned long calls)
{
	for (unsigned long i = 0; i < calls; i++) {
		unsigned long result = forks(i % 50 == 0);
		if (result == 77)
			_exit(77);
		check(result == 4, "a parent");
	}
	SHOW(forks);
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*run)(unsigned long);
	} scenarios[] = { { "exceptions", exceptions }, { "jumps", jumps }, { "contexts", contexts },
			  { "stacks", stacks }, { "threads", threads }, { "recursion", recursion },
			  { "processes", processes } };

	if (argc != 3)
		return 2;
	for (const auto &scenario : scenarios)
		if (!strcmp(scenario.name, argv[1]))
			scenario.run(strtoul(argv[2], NULL, 10));
	return 0;
}
