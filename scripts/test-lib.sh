# For scripts that test what is installed in trees of Debian made for this: sourced by them, below `set -euo pipefail`.
# shellcheck shell=bash

# shellcheck disable=SC2034 # who sources this uses it
mirror=${MIRROR:-http://deb.debian.org/debian}
script=$(basename "$0" .sh)
# Tenths of a second that are waited.
patience=900

say() {
	echo "$script: $*"
}

fail() {
	echo "$script: FAILED: $*" >&2
	exit 1
}

wait_for() {
	local what=$1 tries=0
	shift
	until "$@" >/dev/null 2>&1; do
		((++tries < patience)) || fail "$what did not come"
		sleep 0.1
	done
}
