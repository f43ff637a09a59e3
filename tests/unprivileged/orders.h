/* What a model has, and what it is given: see orders.c. */
#ifndef ORDERS_H
#define ORDERS_H

#include <stdbool.h>
#include <linux/types.h>

enum { CPUS = 3 };

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

/* What a CPU does. */
void cpu(int which);
/* Before each order, and after. */
void begin(void);
void check(void);
/* Whether others may see what is written there. */
bool is_shared(const void *at);

/* Tells what is wrong with the order, and ends. */
void fail(const char *what);

#endif
