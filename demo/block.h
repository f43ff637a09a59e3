/* A block as played by the demo: what a FIBRE node would know about it when its probes fire. */
#ifndef DEMO_BLOCK_H
#define DEMO_BLOCK_H

#include <stdbool.h>
#include <stdint.h>

#define HASH_BYTES 32
#define PEER_LENGTH 32

enum mechanism { BY_FIBRE, BY_COMPACT_BLOCK, BY_OTHER, MECHANISMS };

struct block {
	uint8_t hash[HASH_BYTES]; /* as in memory: the reverse of the displayed form */
	char hash_hex[2 * HASH_BYTES + 1]; /* as displayed */
	int32_t height;
	bool over_udp; /* its chunks came over UDP and it was rebuilt from them */
	bool relayed; /* sent on over UDP */

	uint32_t chunks_used;
	uint32_t chunks_received;
	uint32_t chunk_peers;
	int64_t rebuild_us;
	uint32_t udp_peer; /* index of the peer */

	uint32_t transactions;
	uint32_t missing_count;
	uint64_t missing_bytes;
	uint32_t mempool_count;

	enum mechanism winner;
	const char *winner_name;
	int64_t udp_ns; /* -1: this path took no part */
	int64_t compact_ns; /* -1: likewise */
	uint32_t compact_peer;

	int32_t inputs;
	int64_t sigops;
	int64_t connect_ns;
};

struct player {
	uint64_t random;
	uint32_t peers;
	int32_t next_height;
};

/* Creates a player that plays the same blocks for the same seed. `peers` must not be 0. */
struct player player_new(uint64_t seed, int32_t start_height, uint32_t peers);

void player_next(struct player *player, struct block *block);

/* Writes the address of a peer, a documentation address (RFC 5737) with a port. */
void peer_name(uint32_t index, char name[PEER_LENGTH]);

#endif
