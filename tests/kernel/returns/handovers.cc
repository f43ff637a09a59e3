/*
 * Calls that end in other functions (tail calls), or begin where a loop does, beside calls that are left by exceptions and whose
 * places on the stack are used anew, by the same instruction of the same caller. Prints as leaps.cc does.
 *
 * Usage: handovers SCENARIO CALLS.
 */
#include <cstdio>
#include <cstdlib>
#include <cstring>

#define TRACED extern "C" __attribute__((noinline, noclone, optimize("O2")))

struct counts {
	volatile unsigned long entered, returned, sum;
};
static counts first_is, second_is, finishes_is, drains_is, pings_is, prints_is;

static void show(const char *name, const counts &is)
{
	printf("%s %lu %lu %lu\n", name, is.entered, is.returned, is.sum);
}

/* Ends the calls of both handlers, and throws at times. Called by itself, too. */
TRACED unsigned long finishes(unsigned long value)
{
	finishes_is.entered = finishes_is.entered + 1;
	if (value % 7 == 3)
		throw 3;
	return value + 1;
}

TRACED unsigned long first(unsigned long value)
{
	first_is.entered = first_is.entered + 1;
	if (value % 5 == 2)
		throw 5;
	return finishes(value);
}

TRACED unsigned long second(unsigned long value)
{
	second_is.entered = second_is.entered + 1;
	return finishes(value * 2);
}

static void handlers(unsigned long calls)
{
	static unsigned long (*volatile table[])(unsigned long) = { first, second, finishes };
	static counts *const of[] = { &first_is, &second_is, &finishes_is };

	for (unsigned long i = 0; i < calls; i++) {
		unsigned which = i / 3 % 3;
		try {
			/* One place that calls all. */
			unsigned long result = table[which](i);
			of[which]->returned = of[which]->returned + 1;
			of[which]->sum = of[which]->sum + result;
			if (which != 2) {
				finishes_is.returned = finishes_is.returned + 1;
				finishes_is.sum = finishes_is.sum + result;
			}
		} catch (int) {
		}
	}
	show("first", first_is);
	show("second", second_is);
	show("finishes", finishes_is);
}

/* Its first instruction is the head of a loop. */
extern "C" unsigned long drains(volatile unsigned long *left);
asm(".text\n.globl drains\n.type drains, @function\ndrains:\n"
    "decq (%rdi)\njg drains\nmov $2, %eax\nret\n.size drains, . - drains\n");

static void loops(unsigned long calls)
{
	for (unsigned long i = 0; i < calls; i++) {
		volatile unsigned long left = i % 5 + 1;
		drains_is.entered = drains_is.entered + i % 5 + 1;
		drains_is.sum = drains_is.sum + drains(&left);
		drains_is.returned = drains_is.returned + 1;
	}
	show("drains", drains_is);
}

/* Two that end in one another, and jump only under a condition. */
extern "C" unsigned long pings(unsigned long left);
asm(".text\n.globl pings\n.type pings, @function\npings:\n"
    "dec %rdi\njns pongs\nmov $4, %eax\nret\n.size pings, . - pings\n"
    ".type pongs, @function\npongs:\n"
    "dec %rdi\njns pings\nmov $4, %eax\nret\n.size pongs, . - pongs\n");

/* Leaves for another file's function, under a condition. */
extern "C" unsigned long prints(unsigned long value);
asm(".text\n.globl prints\n.type prints, @function\nprints:\n"
    "test $3, %dil\njz labs@PLT\nmov %rdi, %rax\nret\n.size prints, . - prints\n");

static void turns(unsigned long calls)
{
	for (unsigned long i = 0; i < calls; i++) {
		unsigned long entered = i % 6 / 2 + 1;
		pings(i % 6);
		pings_is.entered = pings_is.entered + entered;
		pings_is.returned = pings_is.returned + entered;
		if (prints(i) != i)
			exit(1);
		prints_is.entered = prints_is.entered + 1;
		prints_is.returned = prints_is.returned + 1;
	}
	show("pings", pings_is);
	show("prints", prints_is);
}

int main(int argc, char **argv)
{
	unsigned long calls = argc == 3 ? strtoul(argv[2], NULL, 10) : 0;

	if (calls && !strcmp(argv[1], "handlers"))
		handlers(calls);
	else if (calls && !strcmp(argv[1], "loops"))
		loops(calls);
	else if (calls && !strcmp(argv[1], "turns"))
		turns(calls);
	else
		return 2;
	return 0;
}
