/*
 * The provider, names, order and types are those of the FIBRE fork of Bitcoin Core (provider `udp`) and of
 * Bitcoin Core itself (validation:block_connected). The fork does not document the arguments of
 * block_header_chunk and block_coinbase; the ones here are the demo's own.
 */
#include "probes.h"

#include <string.h>

#define _SDT_HAS_SEMAPHORES 1
#include <sys/sdt.h>

/* Volatile, because it is the kernel that changes it when a tracer attaches. */
#define SEMAPHORE(name) volatile unsigned short name##_semaphore __attribute__((section(".probes")))

SEMAPHORE(udp_block_header_chunk);
SEMAPHORE(udp_block_coinbase);
SEMAPHORE(udp_block_reconstructed);
SEMAPHORE(udp_block_reconstruction_detail);
SEMAPHORE(udp_block_send_start);
SEMAPHORE(udp_block_race_winner);
SEMAPHORE(udp_block_race_time);
SEMAPHORE(validation_block_connected);

static void fire_header_chunk(const struct block *block)
{
	char peer[PEER_LENGTH];
	peer_name(block->udp_peer, peer);
	STAP_PROBE3(udp, block_header_chunk, (const char *)block->hash_hex, (const char *)peer, block->height);
}

static void fire_coinbase(const struct block *block)
{
	STAP_PROBE2(udp, block_coinbase, (const char *)block->hash_hex, block->height);
}

static void fire_reconstructed(const struct block *block)
{
	char peer[PEER_LENGTH];
	peer_name(block->udp_peer, peer);
	STAP_PROBE7(udp, block_reconstructed, (const char *)block->hash_hex, (const char *)peer,
		    block->chunks_used, block->chunks_received, block->chunk_peers, block->rebuild_us,
		    block->height);
}

static void fire_reconstruction_detail(const struct block *block)
{
	bool all_from_mempool = block->missing_count == 0;
	STAP_PROBE7(udp, block_reconstruction_detail, (const char *)block->hash_hex, block->height,
		    block->missing_count, block->missing_bytes, block->mempool_count, block->transactions,
		    all_from_mempool);
}

static void fire_send_start(const struct block *block)
{
	STAP_PROBE2(udp, block_send_start, (const char *)block->hash_hex, block->height);
}

static void fire_race_winner(const struct block *block)
{
	char peer[PEER_LENGTH];
	winner_peer(block, peer);
	STAP_PROBE4(udp, block_race_winner, (const uint8_t *)block->hash, block->height, block->winner_name,
		    (const char *)peer);
}

static void race_peer(int64_t ns, uint32_t peer, char name[PEER_LENGTH])
{
	if (ns < 0)
		strcpy(name, "n/a");
	else
		peer_name(peer, name);
}

static void fire_race_time(const struct block *block)
{
	char udp[PEER_LENGTH], compact[PEER_LENGTH];
	race_peer(block->udp_ns, block->udp_peer, udp);
	race_peer(block->compact_ns, block->compact_peer, compact);
	STAP_PROBE6(udp, block_race_time, (const uint8_t *)block->hash, block->height, block->udp_ns,
		    (const char *)udp, block->compact_ns, (const char *)compact);
}

static void fire_connected(const struct block *block)
{
	uint64_t transactions = block->transactions;
	STAP_PROBE6(validation, block_connected, (const uint8_t *)block->hash, block->height, transactions,
		    block->inputs, block->sigops, block->connect_ns);
}

static const struct {
	const char *name;
	volatile unsigned short *semaphore;
	void (*fire)(const struct block *);
} table[PROBES] = {
	[HEADER_CHUNK] = { "udp:block_header_chunk", &udp_block_header_chunk_semaphore, fire_header_chunk },
	[COINBASE] = { "udp:block_coinbase", &udp_block_coinbase_semaphore, fire_coinbase },
	[RECONSTRUCTED] = { "udp:block_reconstructed", &udp_block_reconstructed_semaphore, fire_reconstructed },
	[RECONSTRUCTION_DETAIL] = { "udp:block_reconstruction_detail", &udp_block_reconstruction_detail_semaphore,
				    fire_reconstruction_detail },
	[SEND_START] = { "udp:block_send_start", &udp_block_send_start_semaphore, fire_send_start },
	[RACE_WINNER] = { "udp:block_race_winner", &udp_block_race_winner_semaphore, fire_race_winner },
	[RACE_TIME] = { "udp:block_race_time", &udp_block_race_time_semaphore, fire_race_time },
	[CONNECTED] = { "validation:block_connected", &validation_block_connected_semaphore, fire_connected },
};

const char *probe_name(enum probe probe)
{
	return table[probe].name;
}

unsigned probe_semaphore(enum probe probe)
{
	return *table[probe].semaphore;
}

bool probe_fire(enum probe probe, const struct block *block, bool guard)
{
	if (guard && *table[probe].semaphore == 0)
		return false;
	table[probe].fire(block);
	return true;
}

void winner_peer(const struct block *block, char name[PEER_LENGTH])
{
	switch (block->winner) {
	case BY_FIBRE:
		peer_name(block->udp_peer, name);
		break;
	case BY_COMPACT_BLOCK:
		peer_name(block->compact_peer, name);
		break;
	default:
		strcpy(name, "n/a");
	}
}
