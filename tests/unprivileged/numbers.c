/*
 * Runs bpf/numbers.bpf.h in every order in which three CPUs can do it: see orders.c.
 */
#include <stdio.h>
#include <string.h>

#include "orders.h"
#include "abi.h"

enum { NUMBERS = 4 };

extern struct interner interner;
extern struct entry entries[NUMBERS];
void taken(__u32 number);
void given(__u32 number);
/* As cpu(3), without being interrupted: takes all that there are; how many. */
int take_all(void);

#ifdef STEPS

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

struct interner interner;
struct entry entries[NUMBERS];
static bool held[NUMBERS];

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

/* The rest of the interner never changes. */
bool is_shared(const void *at)
{
	const char *c = at;
	bool is_entry = c >= (char *)entries && c < (char *)(entries + NUMBERS);

	return is_entry || at == &interner.free || at == &interner.next;
}

/* Numbers 1 and 0 are on the stack, 2 is user space's, 3 was never given out. */
void begin(void)
{
	memset(entries, 0, sizeof(entries));
	memset(held, 0, sizeof(held));
	interner = (struct interner){ .capacity = NUMBERS, .limit = NUMBERS, .next = 3, .free = 2 };
	entries[1].words[0] = 1;
	held[2] = true;
}

/* All numbers that nobody has can be taken, and no others. */
void check(void)
{
	int free_ones = 0, found;

	for (int n = 0; n < NUMBERS; n++)
		free_ones += !held[n];
	found = take_all();
	if (found != free_ones)
		fail(found < free_ones ? "a number is lost" : "there are too many numbers");
}

#endif
