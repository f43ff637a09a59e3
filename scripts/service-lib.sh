# For scripts that boot a Debian 12 of its own in a container, with the exporter as a service in it: sourced by them, below
# `set -euo pipefail`, in the project's directory, with the exporter to test as the first argument.
# shellcheck shell=bash

# shellcheck source=scripts/test-lib.sh
source scripts/test-lib.sh

exporter=${1:-}
[[ -n $exporter ]] || for built in target/debug/exporter target/release/exporter; do
	[[ ! -x $built ]] || exporter=$built
done
# shellcheck disable=SC2034 # who sources this uses it
metrics=http://127.0.0.1:19439/metrics
work=
container=
prometheus=
# An address that was added to this machine.
late=

# As scripts/test-lib.sh has it, and what the service says.
fail() {
	echo "$script: FAILED: $*" >&2
	[[ -z $container ]] || inside journalctl --no-pager -u fibre-exporter -n 30 >&2 || true
	exit 1
}

clean_up() {
	# The shell tells whom it has killed.
	exec 2>/dev/null
	[[ -z $prometheus ]] || kill "$prometheus" 2>/dev/null || true
	# With its first process all of the container ends; systemd-nspawn alone would leave it behind.
	# shellcheck disable=SC2046 # several numbers
	[[ -z $container ]] || kill -KILL $(pgrep --parent "$container" || true) "$container" 2>/dev/null || true
	[[ -z $late ]] || ip address del "$late/32" dev lo 2>/dev/null || true
	wait 2>/dev/null || true
	[[ -z $work ]] || rm -rf --one-file-system "$work"
}
trap clean_up EXIT

# Runs a command in the container.
inside() {
	nsenter --all --target "$(pgrep --parent "$container" | head -n 1)" "$@"
}

# A tree in directory $1, with packages $2 beside what the exporter needs.
make_tree() {
	mmdebstrap --quiet --variant=apt --include="systemd,systemd-sysv,dbus,libelf1,zlib1g,$2" bookworm "$1" "$mirror"
	rm -f "$1/etc/machine-id"
	ln -s /dev/null "$1/etc/systemd/system/systemd-networkd-wait-online.service"
	ln -s /dev/null "$1/etc/systemd/system/systemd-firstboot.service"
	install -d "$1/etc/systemd/system/fibre-exporter.service.d"
	# Quicker than a person would have it.
	printf '[Service]\nRestartSec=0.2\nWatchdogSec=3\n' >"$1/etc/systemd/system/fibre-exporter.service.d/test.conf"
}

# The exporter as a Debian package of version $2. As debhelper has it: the service is restarted when the new files are there.
make_exporter_package() {
	local tree=$1 version=$2 root=$work/package
	rm -rf "$root"
	install -D -m 755 "$exporter" "$root/usr/local/bin/exporter"
	printf '%s' "$version" >>"$root/usr/local/bin/exporter"
	install -D -m 644 fibre-exporter.service "$root/lib/systemd/system/fibre-exporter.service"
	install -D -m 644 fibre-exporter.logrotate "$root/etc/logrotate.d/fibre-exporter"
	install -d "$root/DEBIAN"
	printf 'Package: fibre-exporter\nVersion: %s\nArchitecture: amd64\nMaintainer: nobody\nDescription: exporter\nDepends: libelf1, zlib1g\n' \
		"$version" >"$root/DEBIAN/control"
	printf '#!/bin/sh\nset -e\nsystemctl daemon-reload\nsystemctl try-restart fibre-exporter\n' >"$root/DEBIAN/postinst"
	chmod 755 "$root/DEBIAN/postinst"
	dpkg-deb -Zgzip -z1 --build --root-owner-group "$root" "$tree/root/exporter_$version.deb" >/dev/null
}

# The kernel keeps nothing from this machine in there; the container's own system call filter would forbid bpf(2).
boot() {
	SYSTEMD_SECCOMP=0 systemd-nspawn --quiet --boot --directory="$1" --machine="exporter-test-$$" --capability=all \
		--register=no --keep-unit --bind-ro=/sys/kernel/btf --console=pipe >"$work/boot.log" 2>&1 </dev/null &
	container=$!
	wait_for "the container's systemd" inside systemctl is-active basic.target
	wait_for "the end of the boot" eval "[[ \$(inside systemctl is-system-running) =~ running|degraded ]]"
}

# Scrapes every five seconds, and is asked for what it saw. The network is the host's.
start_prometheus() {
	cat >"$work/prometheus.yml" <<-END
		scrape_configs:
		- job_name: exporter
		  scrape_interval: 5s
		  scrape_timeout: 5s
		  static_configs: [{ targets: ['127.0.0.1:19439'] }]
	END
	prometheus --config.file="$work/prometheus.yml" --storage.tsdb.path="$work/prometheus" \
		--web.listen-address=127.0.0.1:19441 >"$work/prometheus.log" 2>&1 &
	prometheus=$!
}

# The value of a query, or nothing.
asked() {
	curl --silent --fail --get --data-urlencode "query=$1" http://127.0.0.1:19441/api/v1/query |
		grep -o '"value":\[[^]]*\]' | grep -o '"[0-9.]*"\]' | tr -d '"]'
}

# What the unit has logged, of this priority and above. Read to its end before it is searched: a `grep -q` at the end of a pipe
# would have journalctl fail.
journal() {
	inside journalctl --no-pager -o cat -p "$1" -u fibre-exporter
}

main_pid() {
	inside systemctl show --property=MainPID --value fibre-exporter
}

# Root, these programs, and the exporter that is to be tested.
check_needs() {
	((EUID == 0)) || fail "run this as root"
	local tool
	for tool in mmdebstrap systemd-nspawn dpkg-deb curl prometheus "$@"; do
		command -v "$tool" >/dev/null || fail "there is no $tool"
	done
	[[ -x $exporter ]] || fail "build the exporter first"
	work=$(mktemp -d "${TMPDIR:-/var/tmp}/exporter-service.XXXXXX")
	tree=$work/tree
}
