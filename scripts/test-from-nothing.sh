#!/usr/bin/env bash
# Runs README's first commands where nothing is installed: in a minimal tree of Debian, made for this and removed after.
#
#   scripts/test-from-nothing.sh [bookworm|trixie]...        without names: both
#
# In each: ./run --once (which installs what builds the exporter, Rust among it, builds it and runs it), then
# scripts/install-deps.sh --tests. The tree has mounts and processes of its own; the kernel, the network and the
# certificates in /usr/local/share/ca-certificates are this machine's. Needs root, mmdebstrap, 6 GB in /var/tmp (or
# TMPDIR), Debian's mirror (or MIRROR) and, for rustup and crates, static.rust-lang.org and crates.io. It takes half an
# hour for each on two cores. What the commands print goes to a log beside the tree, which stays; its end is shown.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."

# shellcheck source=scripts/test-lib.sh
source scripts/test-lib.sh

port=${PORT:-19435}
work=

# The mounts have gone with their namespace by now; should one be left, nothing behind it is touched.
remove_tree() {
	[[ -z $work ]] || rm -rf --one-file-system "$work"
	work=
}
trap remove_tree EXIT

# Committed or not, but nothing that git ignores: no build results.
copy_source() {
	git ls-files -z --cached --others --exclude-standard | tar --create --null --files-from=- |
		tar --extract --directory="$1"
}

make_tree() {
	local release=$1 tree=$2
	mmdebstrap --quiet --variant=apt --include=ca-certificates "$release" "$tree" "$mirror"
	cp /etc/resolv.conf "$tree/etc/"
	cp /etc/hosts "$tree/etc/"
	cp -r /usr/local/share/ca-certificates/. "$tree/usr/local/share/ca-certificates/"
	chroot "$tree" update-ca-certificates >/dev/null
	mkdir "$tree/root/exporter"
	copy_source "$tree/root/exporter"
}

# Run in namespaces of its own, as their first process: when it ends, all others there end, and the mounts go.
inside() {
	local tree=$1
	mount -t proc proc "$tree/proc"
	mount --rbind /sys "$tree/sys"
	mount --rbind /dev "$tree/dev"
	mount -t tmpfs tmpfs "$tree/run"
	# shellcheck disable=SC2016 # expanded in there
	exec chroot "$tree" env -i HOME=/root USER=root TERM=dumb PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
		http_proxy="${http_proxy-}" https_proxy="${https_proxy-}" \
		bash -euc '
			cd /root/exporter
			cat /etc/debian_version
			./run --once --port "$1" --health-port "$(($1 + 1))"
			ldd target/release/exporter
			scripts/install-deps.sh --tests
			scripts/install-deps.sh --tests # nothing is left to install
		' from-nothing "$port"
}

test_release() {
	local release=$1 log=${TMPDIR:-/var/tmp}/exporter-from-nothing-$1.log status=0
	work=$(mktemp -d "${TMPDIR:-/var/tmp}/exporter-from-nothing.XXXXXX")
	chmod 755 "$work"
	say "$release: in $work, log in $log"
	make_tree "$release" "$work" >"$log" 2>&1 || fail "$release: no tree could be made; see $log"
	unshare --mount --pid --fork --kill-child --propagation private "$0" --inside "$work" >>"$log" 2>&1 || status=$?
	tail -n 25 "$log"
	remove_tree
	((status == 0)) || fail "$release: FAILED with status $status; see $log"
	say "$release: passed"
}

if [[ ${1-} == --inside ]]; then
	trap - EXIT
	inside "$2"
fi
((EUID == 0)) || fail "a tree of Debian has owners and mounts: run this as root"
command -v mmdebstrap >/dev/null || fail "there is no mmdebstrap: apt-get install mmdebstrap"
(($#)) || set -- bookworm trixie
for release in "$@"; do
	[[ $release == bookworm || $release == trixie ]] || fail "unknown release \"$release\"; known: bookworm trixie"
	test_release "$release"
done
