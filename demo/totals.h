/* The demo's own totals: what the metrics of an exporter that missed nothing must show. */
#ifndef DEMO_TOTALS_H
#define DEMO_TOTALS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include "probes.h"

#define MAX_BUCKETS 16

struct histogram {
	const char *name;
	const char *mechanism; /* value of the label, or NULL */
	uint64_t per_unit; /* observed units in one unit of the metric: 1000000 for microseconds */
	unsigned buckets;
	const uint64_t *bounds; /* upper, inclusive, in thousandths of the metric's unit */
	uint64_t counts[MAX_BUCKETS]; /* of each bucket on its own; made cumulative when printed */
	uint64_t count;
	uint64_t sum; /* in observed units */
};

enum {
	H_REBUILD,
	H_CHUNKS,
	H_MISSING_COUNT,
	H_MISSING_BYTES,
	H_MEMPOOL_COUNT,
	H_RACE_FIBRE,
	H_RACE_COMPACT,
	H_CONNECT,
	H_TRANSACTIONS,
	HISTOGRAMS
};

struct totals {
	uint64_t fired[PROBES];
	uint64_t guarded_off[PROBES];
	uint64_t blocks;
	uint64_t chunks_used;
	uint64_t chunks_received;
	uint64_t all_from_mempool;
	int32_t last_height; /* of the last fired probe that sets the gauge; -1: none */
	uint32_t peers;
	uint64_t *deliveries; /* by mechanism, then peer, then "n/a" */
	struct histogram histograms[HISTOGRAMS];
};

/* Returns false if there is not enough memory. The totals live as long as the process. */
bool totals_init(struct totals *totals, uint32_t peers);

/* Counts one probe that was fired, or that was not because of its guard. */
void totals_add(struct totals *totals, enum probe probe, const struct block *block, bool fired);

/* Prints one JSON object and a newline. */
void totals_print(const struct totals *totals, FILE *out);

#endif
