#!/usr/bin/env bash
# Runs the soak test of the test command for longer: an hour, or so many seconds.
#
#   scripts/soak.sh [SECONDS]
#
# Programs that fork, end, are killed and replaced, reloads that add and remove probes: counts must be exact in each round, and
# memory, descriptors, threads, mappings and BPF maps at the end those of the beginning. Needs root. The last lines have the
# figures.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."
export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
((EUID == 0)) || {
	echo "soak: run this as root" >&2
	exit 1
}
SOAK_SECONDS=${1:-3600} exec cargo test --locked --release --test whole -- --exact soak::what_it_takes_does_not_grow --nocapture
