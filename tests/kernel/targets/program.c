/*
 * A program to trace: fires the USDT probe t:hit as often as each line of its input says, and answers with the number. It was
 * built with -DPAD=n, so that builds differ in where the probe is.
 *
 *   NUMBER       fires
 *   fork NUMBER  a child fires
 *   leave NUMBER a child fires when its parent has ended
 *   name NAME    calls itself so
 *   exec FILE    becomes another program, which goes on with the input
 *   title TEXT   writes over its command line
 *   run COMMAND  has a shell run it, and waits for that
 *   raised       answers with the value of the probe's semaphore, if it was built with -DSEMAPHORE
 *   retire       goes on in another thread, while the first one ends
 *   confine MODE lets the kernel end it at any system call but what it needs from now on: MODE is strict or filter
 *   load FILE    loads a library from a memfd and fires lib:hit of it as often as NUMBER says from now on
 *   open FILE    likewise with the library itself
 *   again FILE   likewise with a copy of the library in a namespace of its own
 *   close        unloads the library that it had loaded before this one
 *   lib raised   answers with the value of the semaphore of the library's probe
 *   move         replaces its code by a copy, as programs do to have it in huge pages
 *   forget       throws a page of its code away, which is read from the file again
 *   copy FILE    writes its executable, which it maps for that, to the file
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#ifdef SEMAPHORE
#define _SDT_HAS_SEMAPHORES 1
#endif
#include <sys/sdt.h>

#ifdef LIBRARY
#ifdef SEMAPHORE
__extension__ unsigned short lib_hit_semaphore __attribute__((section(".probes"), used));
#define IS_RAISED (*(volatile unsigned short *)&lib_hit_semaphore)
#else
#define IS_RAISED 1
#endif

void fire(void)
{
	if (IS_RAISED)
		DTRACE_PROBE(lib, hit);
}

int raised(void)
{
	return IS_RAISED;
}
#else
static void (*fire_library)(void);
static int (*library_raised)(void);
static void *library_before, *library_now;

static volatile int pad[PAD];

#ifdef SEMAPHORE
__extension__ unsigned short t_hit_semaphore __attribute__((section(".probes"), used));
#define IS_RAISED (*(volatile unsigned short *)&t_hit_semaphore)
#else
#define IS_RAISED 1
#endif

/* A function whose first instruction the kernel emulates. */
__asm__(".pushsection .text\n"
	".type padded, @function\n"
	"padded:\n"
	"nop\n"
	"ret\n"
	".size padded, . - padded\n"
	".popsection");
void padded(void);

__attribute__((noinline)) static void hit(void)
{
	padded();
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

static void use_library(void *library)
{
	if (!library)
		exit(4);
	library_before = library_now;
	library_now = library;
	fire_library = (void (*)(void))dlsym(library, "fire");
	library_raised = (int (*)(void))dlsym(library, "raised");
}

static void load_path(const char *path)
{
	use_library(dlopen(path, RTLD_NOW));
}

static void load(const char *file)
{
	int from = open(file, O_RDONLY), to = memfd_create("made-at-run-time", 0);
	struct stat stat;
	char path[64];

	if (from < 0 || to < 0 || fstat(from, &stat) || sendfile(to, from, NULL, stat.st_size) != stat.st_size)
		exit(3);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", to);
	load_path(path);
}

/* argv[0], which is long enough for what the tests write. */
static char *title;

static void set_title(char *at, const char *text)
{
	memset(at, 0, strlen(at));
	strcpy(at, text);
}

static int move(void)
{
	const size_t page = 4096;
	void *code = (void *)((uintptr_t)hit & -page);
	void *copy = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (copy == MAP_FAILED)
		return 1;
	memcpy(copy, code, page);
	return mprotect(copy, page, PROT_READ | PROT_EXEC) ||
	       mremap(copy, page, page, MREMAP_MAYMOVE | MREMAP_FIXED, code) != code;
}

static int copy(const char *path)
{
	int from = open("/proc/self/exe", O_RDONLY), to = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0755);
	struct stat stat;
	void *own;

	if (from < 0 || to < 0 || fstat(from, &stat))
		return 1;
	own = mmap(NULL, stat.st_size, PROT_READ, MAP_PRIVATE, from, 0);
	return own == MAP_FAILED || write(to, own, stat.st_size) != stat.st_size || munmap(own, stat.st_size) ||
	       close(from) || close(to);
}

static int confine(const char *mode)
{
	struct sock_filter allowed[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_read, 2, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_write, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog filter = { sizeof(allowed) / sizeof(*allowed), allowed };

	if (!strcmp(mode, "strict"))
		return prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT);
	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter);
}

static int serve(pid_t self);

#ifndef NO_THREADS
static void *serve_in_thread(void *first)
{
	/* What it says tells that the other one has ended. */
	pthread_join(*(pthread_t *)first, NULL);
	printf("%d\n", getpid());
	fflush(stdout);
	exit(serve(getpid()));
}
#endif

static int serve(pid_t self)
{
	char line[4096];

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
		} else if (!strncmp(line, "title ", 6)) {
			set_title(title, line + 6);
		} else if (!strncmp(line, "run ", 4)) {
			if (system(line + 4))
				return 6;
		} else if (!strcmp(line, "move")) {
			if (move())
				return 8;
		} else if (!strcmp(line, "forget")) {
			if (madvise((void *)((uintptr_t)hit & -4096UL), 4096, MADV_DONTNEED))
				return 10;
		} else if (!strncmp(line, "copy ", 5)) {
			if (copy(line + 5))
				return 9;
		} else if (!strncmp(line, "open ", 5)) {
			load_path(line + 5);
		} else if (!strncmp(line, "again ", 6)) {
			use_library(dlmopen(LM_ID_NEWLM, line + 6, RTLD_NOW));
		} else if (!strcmp(line, "close")) {
			if (dlclose(library_before))
				return 11;
		} else if (!strncmp(line, "exec ", 5)) {
			execl(line + 5, line + 5, NULL);
			return 5;
		} else if (!strcmp(line, "lib raised")) {
			printf("%d\n", library_raised());
			fflush(stdout);
			continue;
		} else if (!strcmp(line, "raised")) {
			printf("%d\n", IS_RAISED);
			fflush(stdout);
			continue;
#ifndef NO_THREADS
		} else if (!strcmp(line, "retire")) {
			static pthread_t first, next;

			first = pthread_self();
			if (pthread_create(&next, NULL, serve_in_thread, &first))
				return 6;
			pthread_exit(NULL);
#endif
		} else if (!strncmp(line, "confine ", 8)) {
			if (confine(line + 8))
				return 7;
		} else if (!strncmp(line, "load ", 5)) {
			load(line + 5);
		} else {
			fire(atol(line));
		}
		printf("%d\n", self);
		fflush(stdout);
	}
	return 0;
}

int main(int argc, char **argv)
{
	setvbuf(stdin, NULL, _IONBF, 0);
	title = argv[0];
	if (argc > 1)
		fire(atol(argv[1]));
	return serve(getpid());
}
#endif
