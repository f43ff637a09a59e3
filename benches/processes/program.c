/*
 * idle NUMBER          so many children that do nothing until the input ends; says "up" when all are there
 * storm NUMBER FILE    starts FILE so often, one after the other; says how many nanoseconds of CPU time it all took
 * wait NANOSECONDS     says when `probed` has a breakpoint: nanoseconds after that time of CLOCK_MONOTONIC
 * call FUNCTION NUMBER calls `cheap`, `dear` or `returns` so often; says how many nanoseconds of CPU time that took
 *                      without arguments it ends at once
 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Begin with an instruction that the kernel emulates, and with one that it single-steps. */
__asm__(".text\n.globl cheap\n.type cheap,@function\ncheap: nop\n ret\n.size cheap,.-cheap\n"
	".globl dear\n.type dear,@function\ndear: xorl %eax,%eax\n ret\n.size dear,.-dear\n"
	".globl returns\n.type returns,@function\nreturns: nop\n ret\n.size returns,.-returns\n"
	".globl probed\n.type probed,@function\nprobed: nop\n ret\n.size probed,.-probed\n");
void cheap(void);
void dear(void);
void returns(void);
void probed(void);

static long now(clockid_t clock)
{
	struct timespec time;

	clock_gettime(clock, &time);
	return time.tv_sec * 1000000000L + time.tv_nsec;
}

static long used(int who)
{
	struct rusage usage;

	getrusage(who, &usage);
	return (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000000L +
	       (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1000L;
}

static int idle(long number)
{
	char byte;

	for (long i = 0; i < number; i++)
		switch (fork()) {
		case -1:
			return perror("fork"), 1;
		case 0:
			/* All have the one input, whose end wakes all. */
			while (read(0, &byte, 1) > 0)
				;
			_exit(0);
		}
	puts("up");
	fflush(stdout);
	while (wait(0) > 0)
		;
	return 0;
}

static int storm(long number, char *file)
{
	char *const arguments[] = { file, NULL }, *const environment[] = { NULL };
	long before = used(RUSAGE_SELF) + used(RUSAGE_CHILDREN);

	for (long i = 0; i < number; i++) {
		pid_t child = vfork();

		if (!child) {
			execve(file, arguments, environment);
			_exit(1);
		}
		if (child < 0 || waitpid(child, NULL, 0) != child)
			return perror("start"), 1;
	}
	printf("%ld\n", used(RUSAGE_SELF) + used(RUSAGE_CHILDREN) - before);
	return 0;
}

int main(int argc, char **argv)
{
	long number, before;

	if (argc < 3)
		return 0;
	number = atol(argv[argc == 4 && !strcmp(argv[1], "call") ? 3 : 2]);
	if (!strcmp(argv[1], "idle"))
		return idle(number);
	if (!strcmp(argv[1], "storm"))
		return storm(number, argv[3]);
	if (!strcmp(argv[1], "wait")) {
		while (*(volatile unsigned char *)probed != 0xcc)
			poll(NULL, 0, 1);
		printf("%ld\n", now(CLOCK_MONOTONIC) - number);
		return 0;
	}
	before = now(CLOCK_PROCESS_CPUTIME_ID);
	if (!strcmp(argv[2], "cheap"))
		for (long i = 0; i < number; i++)
			cheap();
	else if (!strcmp(argv[2], "dear"))
		for (long i = 0; i < number; i++)
			dear();
	else
		for (long i = 0; i < number; i++)
			returns();
	printf("%ld\n", now(CLOCK_PROCESS_CPUTIME_ID) - before);
	return 0;
}
