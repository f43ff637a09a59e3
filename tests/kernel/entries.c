/* Functions that begin, or are left, in ways that compilers and assembly have and most programs do not. */
#include <stdio.h>
#include <stdlib.h>

__asm__(".macro begin name\n.globl \\name\n.type \\name, @function\n\\name:\n.endm\n"
	".macro end name\n.size \\name, . - \\name\n.endm\n"
	/* No probe can be set at the first instruction. */
	"begin locked\n lock incl (%rsi)\n mov %edi, %eax\n ret\nend locked\n"
	"begin filled\n nopw %cs:0(%rax,%rax,1)\n mov %edi, %eax\n ret\nend filled\n"
	"begin patchable\n nopl 0(%rax,%rax,1)\n mov %edi, %eax\n ret\nend patchable\n"
	/* The first instruction is a loop's head, too; of the second also one that no probe can be set at. */
	"begin turns\n1: incl (%rsi)\n dec %edi\n jg 1b\n mov (%rsi), %eax\n ret\nend turns\n"
	"begin spins\n1: lock incl (%rsi)\n dec %edi\n jg 1b\n mov (%rsi), %eax\n ret\nend spins\n"
	/* Calls itself in each turn, and begins with a landing pad. */
	"begin nests\n endbr64\n1: push %rdi\n dec %edi\n jle 2f\n call nests\n2: pop %rdi\n shr %edi\n jne 1b\n "
	"xor %eax, %eax\n"
	" ret\nend nests\n"
	/* Only the part that was moved away goes back to the first instruction. */
	"begin thaws\n incl (%rsi)\n cmp $1, %edi\n jg thaws.cold\n mov (%rsi), %eax\n ret\nend thaws\n"
	".pushsection .text.unlikely, \"ax\"\n .type thaws.cold, @function\nthaws.cold:\n dec %edi\n jmp thaws\n"
	"end thaws.cold\n .popsection\n"
	/* A jump table leads to the first instruction. */
	"begin spreads\n movl %edi, %eax\n decl %edi\n movl %eax, %ecx\n addl %eax, (%rsi)\n jmp "
	"*spread(,%rcx,8)\n"
	"1: incl (%rsi)\n jmp spreads\n2: movl (%rsi), %eax\n ret\nend spreads\n"
	".pushsection .rodata\n .balign 8\nspread:\n .quad 2b, spreads, 1b, spreads, 1b, spreads, 1b, spreads\n "
	".popsection\n"
	/* One thread needs no lock. */
	"begin skips\n test $1, %edi\n je 1f + 1\n1: lock addl $2, (%rsi)\n mov (%rsi), %eax\n ret\nend skips\n"
	/* The stack pointer is kept in a register. */
	"begin keeps\n push %rbx\n mov %rsp, %rbx\n sub $512, %rsp\n and $-256, %rsp\n mov %edi, (%rsp)\n mov "
	"(%rsp), %eax\n"
	" test $1, %edi\n je 1f\n mov %rbx, %rsp\n pop %rbx\n ret\n1: mov %rbx, %rsp\n pop %rbx\n ret\nend "
	"keeps\n");

typedef int function(int, int *);
function locked, filled, patchable, turns, spins, nests, thaws, spreads, skips, keeps;

/* Built so that its jumps to computed places go through a thunk. */
__attribute__((noinline)) int interprets(int n, int *sum)
{
	static void *const places[] = { &&one, &&two, &&leave };
	const unsigned char code[] = { n & 1, 1, 0, n & 1, 2 };
	const unsigned char *next = code;

	goto *places[*next++];
one:
	*sum += 1;
	goto *places[*next++];
two:
	*sum += 2;
	goto *places[*next++];
leave:
	return n;
}

__attribute__((noinline)) int passes_on(int n, int *sum, function *volatile *to)
{
	return (*to)(n, sum);
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		function *call;
	} functions[] = {
		{ "locked", locked }, { "filled", filled }, { "patchable", patchable },	  { "turns", turns },
		{ "spins", spins },   { "nests", nests },   { "thaws", thaws },		  { "spreads", spreads },
		{ "skips", skips },   { "keeps", keeps },   { "interprets", interprets },
	};
	int calls = atoi(argv[1]);
	function *volatile to = filled;
	long all = 0;

	for (unsigned i = 0; i < sizeof(functions) / sizeof(*functions); i++) {
		long sum = 0;
		int kept = 0;

		for (int n = 0; n < calls; n++)
			sum += functions[i].call(n % 7, &kept);
		printf("%s %ld %d\n", functions[i].name, sum, kept);
	}
	for (int n = 0; n < calls; n++)
		all += passes_on(n % 7, 0, &to);
	printf("passes_on %ld 0\n", all);
	return 0;
}
