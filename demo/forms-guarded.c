/* Probes with semaphores, one for each form of argument. They fire whether or not they are traced. */
#include "forms.h"

#include <sys/wait.h>
#include <unistd.h>

#define _SDT_HAS_SEMAPHORES 1
#include <sys/sdt.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define BITS(type) (8 * sizeof(type))
#define SEMAPHORE(name) volatile unsigned short forms_##name##_semaphore __attribute__((section(".probes")))

/*
 * Fires an integer of one width and signedness, alternately from memory (the volatile variable) and from a register
 * whose higher bits contain something else: one round through the values from each.
 */
#define INTEGER_FORM(name, type, ...)                                                                      \
	SEMAPHORE(name);                                                                                   \
	static bool fire_##name(uint64_t shot)                                                             \
	{                                                                                                  \
		static const type values[] = { __VA_ARGS__ };                                              \
		type value = values[shot % COUNT(values)];                                                 \
		if (shot / COUNT(values) % 2 == 0) {                                                       \
			volatile type in_memory = value;                                                   \
			STAP_PROBE1(forms, name, in_memory);                                               \
		} else {                                                                                   \
			uint64_t in_register =                                                             \
				(uint64_t)value ^ (UINT64_C(0xA5A5A5A5A5A5A5A5) << (BITS(type) - 1) << 1); \
			__asm__ volatile("" : "+r"(in_register));                                          \
			STAP_PROBE1(forms, name, (type)in_register);                                       \
		}                                                                                          \
		return true;                                                                               \
	}

INTEGER_FORM(i8, int8_t, INT8_MIN, -1, 0, 1, INT8_MAX)
INTEGER_FORM(u8, uint8_t, 0, 1, 128, UINT8_MAX)
INTEGER_FORM(i16, int16_t, INT16_MIN, -1, 0, 1, INT16_MAX)
INTEGER_FORM(u16, uint16_t, 0, 1, 32768, UINT16_MAX)
INTEGER_FORM(i32, int32_t, INT32_MIN, -1, 0, 1, INT32_MAX)
INTEGER_FORM(u32, uint32_t, 0, 1, 2147483648, UINT32_MAX)
INTEGER_FORM(i64, int64_t, INT64_MIN, -1, 0, 1, INT64_MAX)
INTEGER_FORM(u64, uint64_t, 0, 1, 9223372036854775808u, UINT64_MAX)

/* Fires a pointer. */
#define POINTER_FORM(name, expression)              \
	SEMAPHORE(name);                            \
	static bool fire_##name(uint64_t shot)      \
	{                                           \
		const void *pointer = (expression); \
		(void)shot;                         \
		STAP_PROBE1(forms, name, pointer);  \
		return true;                        \
	}

#define LONG_TEXT                                                                                          \
	"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef" \
	"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef" \
	"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef" \
	"0123456789abcdef"

POINTER_FORM(string, "a string")
POINTER_FORM(empty, "")
POINTER_FORM(null, NULL)
POINTER_FORM(bad, (const void *)1)
POINTER_FORM(long_string, LONG_TEXT)

static uint8_t raw[32];
POINTER_FORM(bytes, raw)

static void __attribute__((constructor)) fill_raw(void)
{
	for (unsigned i = 0; i < sizeof(raw); i++)
		raw[i] = (uint8_t)(i * 7 + 1);
}

SEMAPHORE(cold);
static bool fire_cold(uint64_t shot)
{
	const char *text = cold_string();
	(void)shot;
	if (!text)
		return false;
	STAP_PROBE1(forms, cold, text);
	cold_drop();
	return true;
}

SEMAPHORE(crossing);
static bool fire_crossing(uint64_t shot)
{
	const char *text = cold_crossing();
	(void)shot;
	if (!text)
		return false;
	STAP_PROBE1(forms, crossing, text);
	cold_drop();
	return true;
}

/* A pointer and a length, without a NUL at the end (as OpenJDK passes strings). */
SEMAPHORE(counted);
static bool fire_counted(uint64_t shot)
{
	const char *text = "counted, and this is not of it";
	volatile int32_t length = 7;
	(void)shot;
	STAP_PROBE2(forms, counted, text, length);
	return true;
}

/* As many arguments as a note of sys/sdt.h can have, one of them floating-point. */
SEMAPHORE(many);
static bool fire_many(uint64_t shot)
{
	volatile int8_t a = -1;
	volatile uint8_t b = 2;
	volatile int16_t c = -3;
	volatile uint16_t d = 4;
	volatile int32_t e = -5;
	volatile uint32_t f = 6;
	volatile int64_t g = -7;
	uint64_t h = shot;
	volatile double i = 9.5;
	STAP_PROBE12(forms, many, a, b, c, d, e, f, g, h, i, "ten", 11, -12L);
	return true;
}

/* In memory at a symbol: `symbol(%rip)` in a position-independent program. */
static struct {
	int64_t padding[5];
	int32_t value;
} global = { .value = -77 };

SEMAPHORE(global);
static bool fire_global(uint64_t shot)
{
	(void)shot;
	__asm__ volatile("" : "+m"(global));
	STAP_PROBE1(forms, global, *(volatile int32_t *)&global.value);
	return true;
}

/* One probe at two sites, whose notes differ in width and place. */
SEMAPHORE(sites);
static bool fire_sites(uint64_t shot)
{
	volatile int32_t narrow = -10;
	if (shot % 2)
		STAP_PROBE1(forms, sites, INT64_C(20));
	else
		STAP_PROBE1(forms, sites, narrow);
	return true;
}

/* Fired by a child process that is forked for this purpose. */
SEMAPHORE(forked);
static bool fire_forked(uint64_t shot)
{
	pid_t child = fork();
	int status = 0;
	if (child == 0) {
		volatile int32_t value = (int32_t)shot;
		STAP_PROBE1(forms, forked, value);
		_exit(0);
	}
	return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

#define ENTRY(name, values)                                                           \
	{                                                                             \
#name, "forms:" #name, &forms_##name##_semaphore, fire_##name, values \
	}

const struct form guarded_forms[] = {
	ENTRY(i8, "[-128, -1, 0, 1, 127]"),
	ENTRY(u8, "[0, 1, 128, 255]"),
	ENTRY(i16, "[-32768, -1, 0, 1, 32767]"),
	ENTRY(u16, "[0, 1, 32768, 65535]"),
	ENTRY(i32, "[-2147483648, -1, 0, 1, 2147483647]"),
	ENTRY(u32, "[0, 1, 2147483648, 4294967295]"),
	ENTRY(i64, "[-9223372036854775808, -1, 0, 1, 9223372036854775807]"),
	ENTRY(u64, "[0, 1, 9223372036854775808, 18446744073709551615]"),
	ENTRY(string, "[\"a string\"]"),
	ENTRY(empty, "[\"\"]"),
	ENTRY(null, "[null]"),
	ENTRY(bad, "[null]"),
	ENTRY(long_string, "[\"" LONG_TEXT "\"]"),
	ENTRY(bytes, "[\"01080f161d242b323940474e555c636a71787f868d949ba2a9b0b7bec5ccd3da\"]"),
	ENTRY(cold, "[\"" COLD_TEXT "\"]"),
	ENTRY(crossing, "[\"" CROSSING_TEXT "\"]"),
	ENTRY(counted, "[\"counted\"]"),
	ENTRY(many, "[[-1, 2, -3, 4, -5, 6, -7, \"shot\", 9.5, \"ten\", 11, -12]]"),
	ENTRY(global, "[-77]"),
	ENTRY(sites, "[-10, 20]"),
	ENTRY(forked, "[\"shot\"]"),
};
const size_t guarded_forms_count = COUNT(guarded_forms);
