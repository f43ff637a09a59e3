/* The probes of a FIBRE node. A function fires one probe and returns whether it did. */
#ifndef DEMO_PROBES_H
#define DEMO_PROBES_H

#include <stdbool.h>
#include "block.h"

enum probe {
	HEADER_CHUNK,
	COINBASE,
	RECONSTRUCTED,
	RECONSTRUCTION_DETAIL,
	SEND_START,
	RACE_WINNER,
	RACE_TIME,
	CONNECTED,
	PROBES
};

/* "provider:name". */
const char *probe_name(enum probe probe);

/* How many tracers have raised the probe's semaphore. */
unsigned probe_semaphore(enum probe probe);

/* Fires the probe for the block; with `guard` only if its semaphore is raised, as the node does. */
bool probe_fire(enum probe probe, const struct block *block, bool guard);

/* The peer that the winner's probe names: "n/a" if the mechanism knows none. */
void winner_peer(const struct block *block, char name[PEER_LENGTH]);

#endif
