/*
 * A program to trace: fires the USDT probe t:hit as often as each line of its input says, and answers with the number. It was
 * built with -DPAD=n, so that builds differ in where the probe is.
 *
 *   NUMBER       fires
 *   fork NUMBER  a child fires
 *   leave NUMBER a child fires when its parent has ended
 *   name NAME    calls itself so
 *   exec FILE    becomes another program, which goes on with the input
 *   raised       answers with the value of the probe's semaphore, if it was built with -DSEMAPHORE
 *   load FILE    loads a library from a memfd and fires lib:hit of it as often as NUMBER says from now on
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#ifdef SEMAPHORE
#define _SDT_HAS_SEMAPHORES 1
#endif
#include <sys/sdt.h>

#ifdef LIBRARY
void fire(void)
{
	DTRACE_PROBE(lib, hit);
}
#else
static void (*fire_library)(void);

static volatile int pad[PAD];

#ifdef SEMAPHORE
__extension__ unsigned short t_hit_semaphore __attribute__((section(".probes"), used));
#define IS_RAISED (*(volatile unsigned short *)&t_hit_semaphore)
#else
#define IS_RAISED 1
#endif

__attribute__((noinline)) static void hit(void)
{
	for (int i = 0; i < PAD; i++)
		pad[i]++;
	if (IS_RAISED)
		DTRACE_PROBE(t, hit);
	if (fire_library)
		fire_library();
}

static void fire(long times)
{
	for (long i = 0; i < times; i++)
		hit();
}

static void load(const char *file)
{
	int from = open(file, O_RDONLY), to = memfd_create("made-at-run-time", 0);
	struct stat stat;
	char path[64];
	void *library;

	if (from < 0 || to < 0 || fstat(from, &stat) || sendfile(to, from, NULL, stat.st_size) != stat.st_size)
		exit(3);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", to);
	library = dlopen(path, RTLD_NOW);
	if (!library)
		exit(4);
	fire_library = (void (*)(void))dlsym(library, "fire");
}

int main(int argc, char **argv)
{
	char line[4096];

	setvbuf(stdin, NULL, _IONBF, 0);
	if (argc > 1)
		fire(atol(argv[1]));
	while (fgets(line, sizeof(line), stdin)) {
		line[strcspn(line, "\n")] = 0;
		if (!strncmp(line, "fork ", 5)) {
			int status = 0;
			pid_t child = fork();

			if (!child) {
				fire(atol(line + 5));
				_exit(0);
			}
			if (waitpid(child, &status, 0) != child || status)
				return 2;
		} else if (!strncmp(line, "leave ", 6)) {
			pid_t parent = getpid();

			if (!fork()) {
				while (getppid() == parent)
					usleep(1000);
				fire(atol(line + 6));
				_exit(0);
			}
		} else if (!strncmp(line, "name ", 5)) {
			prctl(PR_SET_NAME, line + 5);
		} else if (!strncmp(line, "exec ", 5)) {
			execl(line + 5, line + 5, NULL);
			return 5;
		} else if (!strcmp(line, "raised")) {
			printf("%d\n", IS_RAISED);
			fflush(stdout);
			continue;
		} else if (!strncmp(line, "load ", 5)) {
			load(line + 5);
		} else {
			fire(atol(line));
		}
		printf("%d\n", getpid());
		fflush(stdout);
	}
	return 0;
}
#endif
