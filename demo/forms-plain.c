/*
 * Probes without semaphores, among them one on a `nop` followed by a 5-byte nop. Some tracers take that pair as
 * permission to put the probe on the second one: there, kernels with optimized uprobes push onto the stack and so
 * overwrite what a leaf function keeps below its stack pointer. `redzone` would detect that.
 */
#include "forms.h"

#include <sys/sdt.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static bool fire_plain(uint64_t shot)
{
	volatile int32_t value = (int32_t)shot;
	STAP_PROBE1(forms, plain, value);
	return true;
}

static bool fire_plain_string(uint64_t shot)
{
	const char *text = "no semaphore";
	(void)shot;
	STAP_PROBE1(forms, plain_string, text);
	return true;
}

#undef _SDT_NOP
#define _SDT_NOP \
	nop;     \
	.nops 5

/* A leaf function, so the compiler places `words` below the stack pointer without moving it. */
__attribute__((noinline)) static uint64_t leaf(uint64_t seed)
{
	volatile uint64_t words[8];
	for (unsigned i = 0; i < COUNT(words); i++)
		words[i] = seed + i;
	STAP_PROBE1(forms, redzone, seed);
	uint64_t sum = 0;
	for (unsigned i = 0; i < COUNT(words); i++)
		sum += words[i];
	return sum;
}

static bool fire_redzone(uint64_t shot)
{
	return leaf(shot) == shot * 8 + 28;
}

#define ENTRY(name, values)                                      \
	{                                                        \
#name, "forms:" #name, NULL, fire_##name, values \
	}

const struct form plain_forms[] = {
	ENTRY(plain, "[\"shot\"]"),
	ENTRY(plain_string, "[\"no semaphore\"]"),
	ENTRY(redzone, "[\"shot\"]"),
};
const size_t plain_forms_count = COUNT(plain_forms);
