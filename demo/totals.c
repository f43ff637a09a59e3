#include "totals.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define K UINT64_C(1000)
#define M (K * K)

/* All bounds are thousandths of the metric's unit: milliseconds for seconds. */
static const uint64_t seconds[] = { 1, 5, 10, 25, 50, 100, 250, 500, 1 * K, 2500, 5 * K, 10 * K };
static const uint64_t chunks[] = { 1 * K,   2 * K,   5 * K,   10 * K,	20 * K,	  50 * K,
				   100 * K, 200 * K, 500 * K, 1000 * K, 2000 * K, 5000 * K };
static const uint64_t transactions[] = { 1 * K,	   10 * K,   50 * K,   100 * K,	 250 * K,  500 * K,
					 1000 * K, 2000 * K, 3000 * K, 5000 * K, 10000 * K };
static const uint64_t missing_count[] = { 0 * K,   1 * K,   2 * K,   5 * K,    10 * K,	 20 * K,   50 * K,
					  100 * K, 250 * K, 500 * K, 1000 * K, 2000 * K, 5000 * K, 10000 * K };
static const uint64_t missing_bytes[] = { 100 * K, 500 * K, 1 * M,   5 * M,    10 * M,	 50 * M,
					  100 * M, 250 * M, 500 * M, 1000 * M, 2000 * M, 4000 * M };
static const uint64_t mempool_count[] = { 0 * K,   1 * K,    10 * K,   50 * K,	 100 * K,  250 * K,
					  500 * K, 1000 * K, 2000 * K, 3000 * K, 5000 * K, 10000 * K };

#define BOUNDS(array) .buckets = COUNT(array), .bounds = (array)

static const struct histogram empty[HISTOGRAMS] = {
	[H_REBUILD] = { .name = "fibre_block_reconstruction_duration_seconds", .per_unit = M, BOUNDS(seconds) },
	[H_CHUNKS] = { .name = "fibre_block_chunks_used", .per_unit = 1, BOUNDS(chunks) },
	[H_MISSING_COUNT] = { .name = "fibre_block_missing_tx_count", .per_unit = 1, BOUNDS(missing_count) },
	[H_MISSING_BYTES] = { .name = "fibre_block_missing_tx_bytes", .per_unit = 1, BOUNDS(missing_bytes) },
	[H_MEMPOOL_COUNT] = { .name = "fibre_block_mempool_tx_count", .per_unit = 1, BOUNDS(mempool_count) },
	[H_RACE_FIBRE] = { .name = "fibre_block_race_duration_seconds",
			   .mechanism = "fibre_udp",
			   .per_unit = M * K,
			   BOUNDS(seconds) },
	[H_RACE_COMPACT] = { .name = "fibre_block_race_duration_seconds",
			     .mechanism = "bip152_cmpct",
			     .per_unit = M * K,
			     BOUNDS(seconds) },
	[H_CONNECT] = { .name = "bitcoin_block_connection_duration_seconds", .per_unit = M * K, BOUNDS(seconds) },
	[H_TRANSACTIONS] = { .name = "bitcoin_block_tx_count", .per_unit = 1, BOUNDS(transactions) },
};

static const char *const mechanism_names[MECHANISMS] = { "fibre_udp", "bip152_cmpct", "other" };

/* Integers throughout, so that a value on a bound is exactly on that bound. */
static void observe(struct totals *totals, unsigned index, uint64_t value)
{
	struct histogram *h = &totals->histograms[index];
	h->count++;
	h->sum += value;
	for (unsigned i = 0; i < h->buckets; i++) {
		if (value * K <= h->bounds[i] * h->per_unit) {
			h->counts[i]++;
			return;
		}
	}
}

static void add_reconstructed(struct totals *totals, const struct block *block)
{
	totals->chunks_used += block->chunks_used;
	totals->chunks_received += block->chunks_received;
	observe(totals, H_REBUILD, (uint64_t)block->rebuild_us);
	observe(totals, H_CHUNKS, block->chunks_used);
}

static void add_detail(struct totals *totals, const struct block *block)
{
	totals->all_from_mempool += block->missing_count == 0;
	observe(totals, H_MISSING_COUNT, block->missing_count);
	observe(totals, H_MISSING_BYTES, block->missing_bytes);
	observe(totals, H_MEMPOOL_COUNT, block->mempool_count);
}

static uint64_t *delivery(const struct totals *totals, enum mechanism mechanism, uint32_t peer)
{
	return &totals->deliveries[(size_t)mechanism * (totals->peers + 1) + peer];
}

static void add_winner(struct totals *totals, const struct block *block)
{
	uint32_t peer = totals->peers; /* "n/a" */
	if (block->winner == BY_FIBRE)
		peer = block->udp_peer;
	else if (block->winner == BY_COMPACT_BLOCK)
		peer = block->compact_peer;
	(*delivery(totals, block->winner, peer))++;
	totals->last_height = block->height;
}

static void add_race_time(struct totals *totals, const struct block *block)
{
	if (block->udp_ns >= 0)
		observe(totals, H_RACE_FIBRE, (uint64_t)block->udp_ns);
	if (block->compact_ns >= 0)
		observe(totals, H_RACE_COMPACT, (uint64_t)block->compact_ns);
}

static void add_connected(struct totals *totals, const struct block *block)
{
	observe(totals, H_CONNECT, (uint64_t)block->connect_ns);
	observe(totals, H_TRANSACTIONS, block->transactions);
	totals->last_height = block->height;
}

bool totals_init(struct totals *totals, uint32_t peers)
{
	memset(totals, 0, sizeof(*totals));
	memcpy(totals->histograms, empty, sizeof(empty));
	totals->peers = peers;
	totals->last_height = -1;
	totals->deliveries = calloc((size_t)MECHANISMS * (peers + 1), sizeof(*totals->deliveries));
	return totals->deliveries != NULL;
}

void totals_add(struct totals *totals, enum probe probe, const struct block *block, bool fired)
{
	if (!fired) {
		totals->guarded_off[probe]++;
		return;
	}
	totals->fired[probe]++;
	switch (probe) {
	case RECONSTRUCTED:
		add_reconstructed(totals, block);
		break;
	case RECONSTRUCTION_DETAIL:
		add_detail(totals, block);
		break;
	case RACE_WINNER:
		add_winner(totals, block);
		break;
	case RACE_TIME:
		add_race_time(totals, block);
		break;
	case CONNECTED:
		add_connected(totals, block);
		break;
	default:
		break;
	}
}

static void print_probes(const struct totals *totals, FILE *out)
{
	fprintf(out, " \"probes\": {");
	for (unsigned p = 0; p < PROBES; p++)
		fprintf(out, "%s\n  \"%s\": {\"fired\": %" PRIu64 ", \"guarded_off\": %" PRIu64 "}", p ? "," : "",
			probe_name(p), totals->fired[p], totals->guarded_off[p]);
	fprintf(out, "\n },\n");
}

static void print_counters(const struct totals *totals, FILE *out)
{
	const struct {
		const char *name;
		uint64_t value;
	} counters[] = {
		{ "fibre_blocks_reconstructed_total", totals->fired[RECONSTRUCTED] },
		{ "fibre_chunks_received_total", totals->chunks_received },
		{ "fibre_chunks_used_total", totals->chunks_used },
		{ "fibre_blocks_sent_total", totals->fired[SEND_START] },
		{ "fibre_block_all_tx_from_mempool_total", totals->all_from_mempool },
		{ "bitcoin_blocks_connected_total", totals->fired[CONNECTED] },
	};
	fprintf(out, " \"counters\": {");
	for (unsigned i = 0; i < COUNT(counters); i++)
		fprintf(out, "%s\n  \"%s\": %" PRIu64, i ? "," : "", counters[i].name, counters[i].value);
	fprintf(out, "\n },\n");
}

static void print_deliveries(const struct totals *totals, FILE *out)
{
	const char *separator = "";
	fprintf(out, " \"deliveries\": [");
	for (unsigned m = 0; m < MECHANISMS; m++) {
		for (uint32_t p = 0; p <= totals->peers; p++) {
			uint64_t count = *delivery(totals, m, p);
			char peer[PEER_LENGTH] = "n/a";
			if (count == 0)
				continue;
			if (p < totals->peers)
				peer_name(p, peer);
			fprintf(out, "%s\n  {\"mechanism\": \"%s\", \"peer\": \"%s\", \"count\": %" PRIu64 "}",
				separator, mechanism_names[m], peer, count);
			separator = ",";
		}
	}
	fprintf(out, "\n ],\n");
}

static void print_histogram(const struct histogram *h, FILE *out)
{
	uint64_t below = 0;
	fprintf(out, "\n  {\"name\": \"%s\", ", h->name);
	if (h->mechanism)
		fprintf(out, "\"labels\": {\"mechanism\": \"%s\"}, ", h->mechanism);
	else
		fprintf(out, "\"labels\": {}, ");
	fprintf(out,
		"\"count\": %" PRIu64 ", \"sum\": %" PRIu64 ", \"sum_divisor\": %" PRIu64 ",\n   \"buckets\": [",
		h->count, h->sum, h->per_unit);
	for (unsigned i = 0; i < h->buckets; i++) {
		below += h->counts[i];
		fprintf(out, "%s[%.10g, %" PRIu64 "]", i ? ", " : "", (double)h->bounds[i] / 1000.0, below);
	}
	fprintf(out, "]}");
}

void totals_print(const struct totals *totals, FILE *out)
{
	fprintf(out, "{\n \"blocks\": %" PRIu64 ",\n", totals->blocks);
	print_probes(totals, out);
	print_counters(totals, out);
	fprintf(out, " \"gauges\": {");
	if (totals->last_height >= 0)
		fprintf(out, "\"fibre_last_block_height\": %" PRId32, totals->last_height);
	fprintf(out, "},\n");
	print_deliveries(totals, out);
	fprintf(out, " \"histograms\": [");
	for (unsigned i = 0; i < HISTOGRAMS; i++) {
		fprintf(out, "%s", i ? "," : "");
		print_histogram(&totals->histograms[i], out);
	}
	fprintf(out, "\n ]\n}\n");
}
