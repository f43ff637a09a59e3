/*
 * A stand-in for a FIBRE node: fires the node's probes for made-up blocks and, when it ends, prints what it fired, so
 * that an exporter's numbers can be compared with it. It needs no network, no chain and no privileges.
 */
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "totals.h"

#define MAX_PEERS 100000

struct options {
	double rate; /* blocks a second; 0: no pause */
	uint64_t blocks; /* 0: until a signal */
	uint64_t seed;
	int32_t start_height;
	uint32_t peers;
	double linger; /* seconds */
	bool wait_attached;
	bool guard;
};

static volatile sig_atomic_t stopped;

static void stop(int signal)
{
	(void)signal;
	stopped = 1;
}

static void usage(FILE *out)
{
	fprintf(out,
		"fibre-demo: fires the probes of a FIBRE node for made-up blocks\n\n"
		"  --rate N           blocks a second, 0 for no pause (default 2)\n"
		"  --blocks N         end after N blocks, 0 for never (default 0)\n"
		"  --seed N           the same seed plays the same blocks (default 1)\n"
		"  --start-height N   height of the first block (default 900000)\n"
		"  --peers N          peers that blocks come from, at most %d (default 8)\n"
		"  --wait-attached    wait for a tracer on validation:block_connected first\n"
		"  --linger SECONDS   stay alive after the totals are printed (default 0)\n"
		"  --no-guard         fire also the probes that nobody traces\n"
		"  --help\n\n"
		"Prints its totals as JSON on standard output after the last block, or on SIGINT or SIGTERM.\n",
		MAX_PEERS);
}

static void refuse(const char *name, const char *text, const char *expected)
{
	fprintf(stderr, "fibre-demo: --%s: \"%s\" is not %s\n", name, text, expected);
	exit(2);
}

static uint64_t whole(const char *name, const char *text, uint64_t low, uint64_t high)
{
	char expected[80], *end;
	errno = 0;
	unsigned long long value = strtoull(text, &end, 10);
	if (errno || end == text || *end || *text == '-' || value < low || value > high) {
		snprintf(expected, sizeof(expected), "a whole number from %llu to %llu", (unsigned long long)low,
			 (unsigned long long)high);
		refuse(name, text, expected);
	}
	return value;
}

static double decimal(const char *name, const char *text)
{
	char *end;
	double value = strtod(text, &end);
	if (end == text || *end || !isfinite(value) || value < 0 || value > 1e9)
		refuse(name, text, "a number from 0 to 1e9");
	return value;
}

static struct options parse(int argc, char **argv)
{
	static const struct option flags[] = {
		{ "rate", required_argument, NULL, 'r' },    { "blocks", required_argument, NULL, 'b' },
		{ "seed", required_argument, NULL, 's' },    { "start-height", required_argument, NULL, 'h' },
		{ "peers", required_argument, NULL, 'p' },   { "linger", required_argument, NULL, 'l' },
		{ "wait-attached", no_argument, NULL, 'w' }, { "no-guard", no_argument, NULL, 'g' },
		{ "help", no_argument, NULL, 'H' },	     { NULL, 0, NULL, 0 },
	};
	struct options o = { .rate = 2, .seed = 1, .start_height = 900000, .peers = 8, .guard = true };
	int flag;
	while ((flag = getopt_long(argc, argv, "", flags, NULL)) != -1) {
		switch (flag) {
		case 'r':
			o.rate = decimal("rate", optarg);
			break;
		case 'b':
			o.blocks = whole("blocks", optarg, 0, INT32_MAX);
			break;
		case 's':
			o.seed = whole("seed", optarg, 0, UINT64_MAX);
			break;
		case 'h':
			o.start_height = (int32_t)whole("start-height", optarg, 0, INT32_MAX / 2);
			break;
		case 'p':
			o.peers = (uint32_t)whole("peers", optarg, 1, MAX_PEERS);
			break;
		case 'l':
			o.linger = decimal("linger", optarg);
			break;
		case 'w':
			o.wait_attached = true;
			break;
		case 'g':
			o.guard = false;
			break;
		case 'H':
			usage(stdout);
			exit(0);
		default: /* getopt has printed the error */
			usage(stderr);
			exit(2);
		}
	}
	if (optind < argc) {
		fprintf(stderr, "fibre-demo: unexpected argument \"%s\"; see --help\n", argv[optind]);
		exit(2);
	}
	return o;
}

static void advance(struct timespec *moment, double seconds)
{
	seconds = fmin(seconds, 1e9); /* so that it fits into a time_t */
	double whole_seconds = floor(seconds);
	moment->tv_sec += (time_t)whole_seconds;
	moment->tv_nsec += (long)((seconds - whole_seconds) * 1e9);
	if (moment->tv_nsec >= 1000000000L) {
		moment->tv_nsec -= 1000000000L;
		moment->tv_sec++;
	}
}

static void sleep_until(const struct timespec *moment)
{
	while (!stopped && clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, moment, NULL) == EINTR)
		;
}

static void pause_for(double seconds)
{
	struct timespec moment;
	clock_gettime(CLOCK_MONOTONIC, &moment);
	advance(&moment, seconds);
	sleep_until(&moment);
}

static unsigned semaphores_raised(void)
{
	unsigned raised = 0;
	for (unsigned p = 0; p < PROBES; p++)
		raised += probe_semaphore(p) != 0;
	return raised;
}

/*
 * A tracer raises one semaphore after the other, and each a moment before the probe itself is in place. So the demo
 * continues only when nothing has changed for a while.
 */
static void wait_attached(void)
{
	const unsigned quiet_rounds = 15;
	unsigned before = 0, quiet = 0;
	while (!stopped && (probe_semaphore(CONNECTED) == 0 || quiet < quiet_rounds)) {
		pause_for(0.02);
		unsigned now = semaphores_raised();
		quiet = now == before ? quiet + 1 : 0;
		before = now;
	}
}

static void play(struct totals *totals, enum probe probe, const struct block *block, bool guard)
{
	totals_add(totals, probe, block, probe_fire(probe, block, guard));
}

static void play_block(struct totals *totals, const struct block *block, bool guard)
{
	if (block->over_udp) {
		play(totals, HEADER_CHUNK, block, guard);
		play(totals, COINBASE, block, guard);
		play(totals, RECONSTRUCTED, block, guard);
		play(totals, RECONSTRUCTION_DETAIL, block, guard);
	}
	if (block->relayed)
		play(totals, SEND_START, block, guard);
	play(totals, CONNECTED, block, guard);
	play(totals, RACE_WINNER, block, guard);
	play(totals, RACE_TIME, block, guard);
	totals->blocks++;
}

static void play_all(const struct options *o, struct totals *totals)
{
	struct player player = player_new(o->seed, o->start_height, o->peers);
	struct block block;
	struct timespec next;
	clock_gettime(CLOCK_MONOTONIC, &next);
	while (!stopped && (o->blocks == 0 || totals->blocks < o->blocks)) {
		if (player.next_height == INT32_MAX)
			player.next_height = o->start_height;
		player_next(&player, &block);
		play_block(totals, &block, o->guard);
		if (o->rate > 0) {
			advance(&next, 1 / o->rate);
			sleep_until(&next);
		}
	}
}

int main(int argc, char **argv)
{
	struct options options = parse(argc, argv);
	struct totals totals;
	struct sigaction action = { .sa_handler = stop };
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);

	if (!totals_init(&totals, options.peers)) {
		fprintf(stderr, "fibre-demo: no memory for the totals of %u peers\n", options.peers);
		return 1;
	}
	if (options.wait_attached)
		wait_attached();
	play_all(&options, &totals);
	totals_print(&totals, stdout);
	if (fflush(stdout) != 0) {
		fprintf(stderr, "fibre-demo: cannot write the totals: %s\n", strerror(errno));
		return 1;
	}
	if (options.linger > 0)
		pause_for(options.linger);
	return 0;
}
