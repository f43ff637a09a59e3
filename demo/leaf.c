/*
 * Leaf functions that keep everything in the red zone, the 128 bytes below the stack pointer that a function may use
 * without moving it. Anything that pushes onto the stack there changes what they return. There is one for each form
 * of probe site. `leaf COUNT` calls each COUNT times and answers with one line of JSON for each:
 *
 * leaf       the function and, except for the entries, the name of its probe
 * calls      how often it was called
 * wrong      calls that returned a wrong value
 * red_zone   whether it does keep its variables below the stack pointer
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include <sys/sdt.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define WORDS 12
#define EXPECTED(seed) ((seed)*WORDS + WORDS * (WORDS - 1) / 2)

static volatile bool red_zone;

/* The body of a leaf: fills the words, executes `there`, and adds the words up. */
#define BODY(seed, there)                                                       \
	volatile uint64_t words[WORDS];                                         \
	uintptr_t stack;                                                        \
	for (unsigned i = 0; i < WORDS; i++)                                    \
		words[i] = (seed) + i;                                          \
	there;                                                                  \
	__asm__ volatile("mov %%rsp, %0" : "=r"(stack));                        \
	red_zone = (uintptr_t)words < stack && stack - (uintptr_t)words <= 128; \
	uint64_t sum = 0;                                                       \
	for (unsigned i = 0; i < WORDS; i++)                                    \
		sum += words[i];                                                \
	return sum;

#undef _SDT_NOP
#define _SDT_NOP nop
__attribute__((noinline)) uint64_t nop(uint64_t seed)
{
	BODY(seed, STAP_PROBE1(leaf, nop, seed))
}

#undef _SDT_NOP
#define _SDT_NOP \
	nop;     \
	.nops 5
__attribute__((noinline)) uint64_t nop_nop5(uint64_t seed)
{
	BODY(seed, STAP_PROBE1(leaf, nop_nop5, seed))
}

#undef _SDT_NOP
#define _SDT_NOP \
	nop;     \
	.nops 10
__attribute__((noinline)) uint64_t nop_nop10(uint64_t seed)
{
	BODY(seed, STAP_PROBE1(leaf, nop_nop10, seed))
}

/* Not for tracers: one would have to overwrite the red zone, or would never see a hit. */
#undef _SDT_NOP
#define _SDT_NOP .nops 5
__attribute__((noinline)) uint64_t nop5(uint64_t seed)
{
	BODY(seed, STAP_PROBE1(leaf, nop5, seed))
}

#undef _SDT_NOP
#define _SDT_NOP .nops 10
__attribute__((noinline)) uint64_t nop10(uint64_t seed)
{
	BODY(seed, STAP_PROBE1(leaf, nop10, seed))
}

/* The file is compiled with -fcf-protection=branch: every function begins with endbr64 unless declared otherwise. */
__attribute__((noinline)) uint64_t entry_endbr64(uint64_t seed)
{
	BODY(seed, )
}

__attribute__((noinline, nocf_check)) uint64_t entry_plain(uint64_t seed){ BODY(seed, ) }

/*
 * Entries that the compiler cannot be made to generate: a push, with and without endbr64; and the five-byte nop that
 * some functions are compiled with for a tracer of their own.
 */
#define ENTRY(name, first, last)                                                         \
	uint64_t name(uint64_t seed);                                                    \
	__asm__(".text\n"                                                                \
		".globl " #name "\n"                                                     \
		".type " #name ", @function\n" #name ":\n" first "	mov %rdi, -8(%rsp)\n" \
		"	mov %rdi, -64(%rsp)\n"                                                 \
		"	movb $1, red_zone(%rip)\n"                                             \
		"	mov $66, %eax\n" #name "_inside:\n"                              \
		"	.nops 5\n"                                                             \
		"	lea (%rdi,%rdi,8), %rcx\n"                                             \
		"	lea (%rcx,%rdi), %rcx\n"                                               \
		"	add %rcx, %rax\n"                                                      \
		"	add -8(%rsp), %rax\n"                                                  \
		"	add -64(%rsp), %rax\n" last "	ret\n"                             \
		".size " #name ", . - " #name "\n");

ENTRY(entry_push, "	push %rbx\n", "	pop %rbx\n")
	ENTRY(entry_endbr64_push, "	endbr64\n	push %rbx\n", "	pop %rbx\n")
		ENTRY(entry_nop5, "	.nops 5\n", "")

			static const struct leaf {
	const char *name;
	uint64_t (*call)(uint64_t seed);
} leaves[] = {
	{ "nop", nop },
	{ "nop_nop5", nop_nop5 },
	{ "nop_nop10", nop_nop10 },
	{ "nop5", nop5 },
	{ "nop10", nop10 },
	{ "entry_endbr64", entry_endbr64 },
	{ "entry_plain", (uint64_t(*)(uint64_t))entry_plain },
	{ "entry_push", entry_push },
	{ "entry_endbr64_push", entry_endbr64_push },
	{ "entry_nop5", entry_nop5 },
};

int main(int argc, char **argv)
{
	char *end = NULL;
	unsigned long long calls = argc == 2 ? strtoull(argv[1], &end, 10) : 0;
	if (!end || end == argv[1] || *end) {
		fprintf(stderr, "usage: leaf COUNT\n");
		return 2;
	}
	for (size_t n = 0; n < COUNT(leaves); n++) {
		uint64_t wrong = 0;
		red_zone = false;
		for (uint64_t seed = 0; seed < calls; seed++)
			wrong += leaves[n].call(seed) != EXPECTED(seed);
		printf("{\"leaf\": \"%s\", \"calls\": %llu, \"wrong\": %" PRIu64 ", \"red_zone\": %s}\n",
		       leaves[n].name, calls, wrong, red_zone ? "true" : "false");
	}
	return 0;
}
