/*
 * The traced program: calls one probe in a loop and prints what a call costs.
 *
 *   target PROBE CALLS [CALLS_PER_SECOND]
 *
 * Prints nanoseconds of the process's CPU time per call, and seconds of wall time. Every probe but bare stands in a
 * function of its own, as it does in real programs: there the return is predicted wrongly after the trap, which a
 * bare loop does not show.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sdt.h>
#include <time.h>

#define OWN_FUNCTION __attribute__((noipa))

static char names[8][32];
static unsigned char bytes[8][32];

OWN_FUNCTION static void ints3(uint64_t a, uint64_t b, uint64_t c)
{
	DTRACE_PROBE3(bench, ints3, a, b, c);
}

OWN_FUNCTION static void ints6(uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f)
{
	DTRACE_PROBE6(bench, ints6, a, b, c, d, e, f);
}

OWN_FUNCTION static void labelled(uint64_t label, uint64_t value)
{
	DTRACE_PROBE2(bench, labelled, label, value);
}

OWN_FUNCTION static void named(const char *name, uint64_t value)
{
	DTRACE_PROBE2(bench, named, name, value);
}

OWN_FUNCTION static void five(uint64_t a, uint64_t b, uint64_t c, const char *name, const void *hash)
{
	DTRACE_PROBE5(bench, five, a, b, c, name, hash);
}

OWN_FUNCTION static void strings3(const char *a, const char *b, const char *c)
{
	DTRACE_PROBE3(bench, strings3, a, b, c);
}

OWN_FUNCTION static uint64_t pass(uint64_t number)
{
	return number;
}

/* A function as most are: it begins with a push, which the kernel need not single-step. */
OWN_FUNCTION static uint64_t called(uint64_t number)
{
	return pass(number) + number;
}

/* As most functions of programs that distributions ship: it ends with a check of its stack. */
__attribute__((noipa, stack_protect)) static uint64_t checked(uint64_t number)
{
	return pass(number) + number;
}

/* A thousand sites of one probe, to attach to; they are not run. */
#define SITE DTRACE_PROBE1(bench, site, number);
#define TEN(x) x x x x x x x x x x
OWN_FUNCTION static void sites(uint64_t number)
{
	TEN(TEN(TEN(SITE)))
}

static uint64_t nanoseconds(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static void call(const char *probe, uint64_t from, uint64_t to)
{
#define LOOP(name, ...)                                \
	if (!strcmp(probe, name)) {                    \
		for (uint64_t i = from; i < to; i++) { \
			__VA_ARGS__;                   \
		}                                      \
		return;                                \
	}
	LOOP("bare", DTRACE_PROBE3(bench, bare, i, i + 1, i + 2))
	LOOP("ints3", ints3(i, i + 1, i + 2))
	LOOP("ints6", ints6(i, i + 1, i + 2, i + 3, i + 4, i + 5))
	LOOP("labelled", labelled(i & 7, i * 40503 & 0xffff))
	LOOP("distinct", labelled(i, i))
	LOOP("named", named(names[i & 7], i * 40503 & 0xffff))
	LOOP("five", five(i, i + 1, i + 2, names[i & 7], bytes[i & 7]))
	LOOP("strings3", strings3(names[i & 7], names[(i + 1) & 7], names[(i + 2) & 7]))
	LOOP("called", called(i))
	LOOP("checked", checked(i))
	LOOP("sites", sites(i))
	fprintf(stderr, "target: unknown probe \"%s\"\n", probe);
	exit(2);
}

/* Slices so short that the ring buffer sees the rate as steady. */
static void call_at_rate(const char *probe, uint64_t calls, uint64_t rate)
{
	const uint64_t slice = 256;
	uint64_t start = nanoseconds(CLOCK_MONOTONIC);

	for (uint64_t done = 0; done < calls; done += slice) {
		while ((nanoseconds(CLOCK_MONOTONIC) - start) * rate < done * 1000000000)
			;
		call(probe, done, done + slice < calls ? done + slice : calls);
	}
}

int main(int argc, char **argv)
{
	uint64_t calls, rate, cpu, wall;

	if (argc < 3) {
		fprintf(stderr, "usage: target PROBE CALLS [CALLS_PER_SECOND]\n");
		return 2;
	}
	calls = strtoull(argv[2], NULL, 10);
	rate = argc > 3 ? strtoull(argv[3], NULL, 10) : 0;
	for (unsigned i = 0; i < 8; i++) {
		snprintf(names[i], sizeof(names[i]), "peer-%u.relay.example.net:8333/tcp", i);
		memset(bytes[i], (int)i, sizeof(bytes[i]));
	}
	wall = nanoseconds(CLOCK_MONOTONIC);
	cpu = nanoseconds(CLOCK_PROCESS_CPUTIME_ID);
	if (rate)
		call_at_rate(argv[1], calls, rate);
	else
		call(argv[1], 0, calls);
	cpu = nanoseconds(CLOCK_PROCESS_CPUTIME_ID) - cpu;
	wall = nanoseconds(CLOCK_MONOTONIC) - wall;
	printf("%.3f %.6f\n", (double)cpu / (double)(calls ? calls : 1), (double)wall / 1e9);
	return 0;
}
