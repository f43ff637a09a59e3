/* What the parts of `forms` share. */
#ifndef DEMO_FORMS_H
#define DEMO_FORMS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * A form that can be fired. `fire` fires it once: `shot` counts from 0 and selects one of the edge values. It returns
 * false if it detected damage or could not prepare (only `redzone`, `fork` and the `cold` forms can).
 */
struct form {
	const char *name;
	const char *probe; /* "provider:name" */
	volatile unsigned short *semaphore; /* NULL: the probe has none */
	bool (*fire)(uint64_t shot);
	const char *values; /* JSON list: argument values, which repeat from its start */
};

extern const struct form guarded_forms[]; /* probes with semaphores */
extern const size_t guarded_forms_count;
extern const struct form plain_forms[]; /* probes without */
extern const size_t plain_forms_count;

/* A string whose page is in no page table of this process; NULL on failure. `cold_drop` frees it. */
const char *cold_string(void);
/* A string that begins on a page in use and continues on one that is not. */
const char *cold_crossing(void);
void cold_drop(void);

#define COLD_TEXT "a string on a page that nobody has touched"
#define CROSSING_TEXT "it begins on one page and it ends on the next"

#endif
