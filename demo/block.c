#include "block.h"

#include <stdio.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* xorshift64* (Vigna 2016): small, and the same on every machine, unlike rand(). */
static uint64_t draw(struct player *player)
{
	uint64_t x = player->random;
	x ^= x >> 12;
	x ^= x << 25;
	x ^= x >> 27;
	player->random = x;
	return x * UINT64_C(0x2545F4914F6CDD1D);
}

/* A number in [low, high]. */
static uint64_t between(struct player *player, uint64_t low, uint64_t high)
{
	return low + draw(player) % (high - low + 1);
}

static bool percent(struct player *player, unsigned chance)
{
	return draw(player) % 100 < chance;
}

/* Most values are near `low`, a few far above, as with times and sizes: the span doubles up to ten times. */
static uint64_t skewed(struct player *player, uint64_t low, uint64_t step)
{
	unsigned doublings = (unsigned)between(player, 0, 10);
	return low + draw(player) % ((step << doublings) + 1);
}

/*
 * One value in sixteen is moved to the bound of a bucket, or just above it: a histogram that counts `<`
 * where it should count `<=` then differs from the demo's totals.
 */
static uint64_t near_bound(struct player *player, uint64_t value, uint64_t unit)
{
	static const uint64_t thousandths[] = { 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000 };
	if (draw(player) % 16 != 0)
		return value;
	return thousandths[draw(player) % COUNT(thousandths)] * unit / 1000 + draw(player) % 2;
}

static void play_hash(struct player *player, struct block *block)
{
	for (size_t i = 0; i < HASH_BYTES; i += sizeof(uint64_t)) {
		uint64_t word = draw(player);
		memcpy(block->hash + i, &word, sizeof(word));
	}
	memset(block->hash + HASH_BYTES - 10, 0, 10); /* the proof of work */
	for (size_t i = 0; i < HASH_BYTES; i++)
		snprintf(block->hash_hex + 2 * i, 3, "%02x", block->hash[HASH_BYTES - 1 - i]);
}

static void play_transactions(struct player *player, struct block *block)
{
	block->transactions = (uint32_t)(percent(player, 5) ? 1 : skewed(player, 1, 6));
	block->inputs = (int32_t)(block->transactions * between(player, 1, 3));
	block->sigops = (int64_t)block->transactions * 4;
	if (percent(player, 60)) {
		block->missing_count = 0;
	} else {
		block->missing_count = (uint32_t)between(player, 0, block->transactions);
	}
	block->mempool_count = block->transactions - block->missing_count;
	block->missing_bytes = 0;
	for (uint32_t i = 0; i < block->missing_count; i++)
		block->missing_bytes += between(player, 100, 900);
}

static void play_chunks(struct player *player, struct block *block)
{
	block->chunks_used = (uint32_t)skewed(player, 1, 5);
	block->chunks_received = block->chunks_used + (uint32_t)between(player, 0, block->chunks_used);
	block->chunk_peers = (uint32_t)between(player, 1, player->peers);
	block->rebuild_us = (int64_t)near_bound(player, skewed(player, 300, 2000), 1000000);
	block->udp_peer = (uint32_t)between(player, 0, player->peers - 1);
}

static void play_race(struct player *player, struct block *block)
{
	bool compact = percent(player, 70);
	block->compact_peer = (uint32_t)between(player, 0, player->peers - 1);
	block->udp_ns = -1;
	block->compact_ns = -1;
	if (block->over_udp)
		block->udp_ns = (int64_t)near_bound(player, skewed(player, 500000, 3000000), 1000000000);
	if (compact)
		block->compact_ns = (int64_t)near_bound(player, skewed(player, 800000, 3000000), 1000000000);

	if (block->over_udp && (!compact || block->udp_ns >= block->compact_ns)) {
		/* Each time runs from the path's first packet to connection: the longer one started first. */
		block->winner = BY_FIBRE;
		block->winner_name = "FIBRE/UDP";
	} else if (compact) {
		block->winner = BY_COMPACT_BLOCK;
		block->winner_name = "BIP152/CMPCTBLOCK";
	} else {
		block->winner = BY_OTHER;
		block->winner_name = "headers";
	}
}

struct player player_new(uint64_t seed, int32_t start_height, uint32_t peers)
{
	struct player player = { .random = seed ^ UINT64_C(0x9E3779B97F4A7C15),
				 .peers = peers,
				 .next_height = start_height };
	if (player.random == 0) /* the one state that xorshift never leaves */
		player.random = 1;
	return player;
}

void player_next(struct player *player, struct block *block)
{
	memset(block, 0, sizeof(*block));
	block->height = player->next_height++;
	block->over_udp = percent(player, 85);
	block->relayed = percent(player, 90);
	play_hash(player, block);
	play_transactions(player, block);
	play_chunks(player, block);
	play_race(player, block);
	block->connect_ns = (int64_t)near_bound(player, skewed(player, 400000, 1000000), 1000000000);
}

void peer_name(uint32_t index, char name[PEER_LENGTH])
{
	snprintf(name, PEER_LENGTH, "203.0.113.%u:%u", index % 254 + 1, 8336 + index / 254);
}
