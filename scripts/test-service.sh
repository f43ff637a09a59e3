#!/usr/bin/env bash
# Runs the exporter as a service under a systemd of its own: a minimal Debian 12, booted in a container.
#
#   scripts/test-service.sh [EXPORTER]        without it: target/release/exporter, else target/debug/exporter
#
# The exporter, as a Debian package with the shipped unit, and the demo program are installed there, and then: a start without
# configuration fails and the journal says why; a start returns when metrics are served; blocks are counted exactly; a reload loses
# none of them; the traced program is upgraded by dpkg and goes on being counted; the exporter is upgraded by dpkg while a Prometheus
# scrapes it, which sees no gap; it comes back after SIGKILL and, by the watchdog, after SIGSTOP; its log is rotated; with pinned
# state it is upgraded and killed while blocks go on, and counts all of them; and it stops. Needs root, mmdebstrap, systemd-container, make, gcc, curl, prometheus and Debian's mirror (or MIRROR); the tree is made in
# /var/tmp (or TMPDIR) and removed at the end. It takes two minutes, most of it for the tree.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."

mirror=${MIRROR:-http://deb.debian.org/debian}
exporter=${1:-}
[[ -n $exporter ]] || for built in target/debug/exporter target/release/exporter; do
	[[ ! -x $built ]] || exporter=$built
done
demo=target/demo/fibre-demo
metrics=http://127.0.0.1:19439/metrics
work=
container=
prometheus=

say() {
	echo "test-service: $*"
}

fail() {
	echo "test-service: FAILED: $*" >&2
	[[ -z $container ]] || inside journalctl --no-pager -u fibre-exporter -n 30 >&2 || true
	exit 1
}

clean_up() {
	[[ -z $prometheus ]] || kill "$prometheus" 2>/dev/null || true
	[[ -z $container ]] || kill -KILL "$container" 2>/dev/null || true
	wait 2>/dev/null || true
	[[ -z $work ]] || rm -rf --one-file-system "$work"
}
trap clean_up EXIT

# Runs a command in the container.
inside() {
	nsenter --all --target "$(pgrep --parent "$container" | head -n 1)" "$@"
}

wait_for() {
	local what=$1 tries=0
	shift
	until "$@" >/dev/null 2>&1; do
		((++tries < 900)) || fail "$what did not come"
		sleep 0.1
	done
}

make_tree() {
	mmdebstrap --quiet --variant=apt --include=systemd,systemd-sysv,dbus,libelf1,zlib1g,logrotate bookworm "$1" "$mirror"
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

# The traced program as a Debian package of version $2. Each version is a file of its own.
make_package() {
	local tree=$1 version=$2 root=$work/package
	rm -rf "$root"
	install -D -m 755 "$demo" "$root/usr/bin/bitcoind"
	# What follows the ELF file's end is in no segment: another file for the kernel, the same program.
	printf '%s' "$version" >>"$root/usr/bin/bitcoind"
	install -d "$root/DEBIAN"
	printf 'Package: demo\nVersion: %s\nArchitecture: amd64\nMaintainer: nobody\nDescription: demo\n' "$version" >"$root/DEBIAN/control"
	dpkg-deb --build --root-owner-group "$root" "$tree/root/demo_$version.deb" >/dev/null
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

# Asks for metrics over and over, until the file $1 is there; writes what each curl came to.
ask_on_and_on() {
	local status
	while [[ ! -e $1 ]]; do
		status=0
		curl --silent --output /dev/null --max-time 30 "$metrics" || status=$?
		echo "$status"
	done
}

counted() {
	curl --silent --show-error "$metrics" | awk '/^bitcoin_blocks_connected_total/ { print $2 }'
}

# Plays $1 blocks, each of which is to be counted; waits until they are.
play() {
	inside bitcoind --wait-attached --rate 0 --blocks "$1" >/dev/null
}

# What the unit has logged, of this priority and above. Read to its end before it is searched: a `grep -q` at the end of a pipe
# would have journalctl fail.
journal() {
	inside journalctl --no-pager -o cat -p "$1" -u fibre-exporter
}

main_pid() {
	inside systemctl show --property=MainPID --value fibre-exporter
}

# The same as this machine numbers it.
inside_pid() {
	local pid
	for pid in $(pgrep --full --exact '/usr/local/bin/exporter --config /etc/fibre-exporter/config.yaml'); do
		[[ $(readlink "/proc/$pid/ns/pid") != "$(readlink "/proc/$(pgrep --parent "$container" | head -n 1)/ns/pid")" ]] || echo "$pid"
	done
}

is_another_than() {
	local now
	now=$(main_pid)
	((now != 0 && now != $1)) && curl --silent --fail http://127.0.0.1:19440/ready
}

((EUID == 0)) || fail "run this as root"
for tool in mmdebstrap systemd-nspawn dpkg-deb curl prometheus; do
	command -v "$tool" >/dev/null || fail "there is no $tool"
done
[[ -x $exporter ]] || fail "build the exporter first"
make --silent -C demo
work=$(mktemp -d "${TMPDIR:-/var/tmp}/exporter-service.XXXXXX")
tree=$work/tree
say "making a Debian tree in $work"
make_tree "$tree" >"$work/tree.log" 2>&1 || fail "no tree could be made: $(tail -n 5 "$work/tree.log")"
make_package "$tree" 1
make_package "$tree" 2
make_exporter_package "$tree" 1
make_exporter_package "$tree" 2
make_exporter_package "$tree" 3
boot "$tree"

say "a start without configuration fails, and the journal says why"
inside dpkg --install /root/exporter_1.deb >/dev/null
! inside systemctl enable --now --quiet fibre-exporter 2>/dev/null || fail "it started without a configuration"
[[ $(journal err) == *config.yaml* ]] || fail "no reason in the journal"

say "a start returns when metrics are served"
inside dpkg --install /root/demo_1.deb >/dev/null
install -D -m 600 /dev/stdin "$tree/etc/fibre-exporter/config.yaml" <<-END
	bitcoind_path: /usr/bin/bitcoind
	node_name: test
	metrics_port: 19439
	health_port: 19440
	log_file: /var/log/fibre-exporter/exporter.log
END
inside systemctl reset-failed fibre-exporter
inside systemctl start fibre-exporter || fail "it does not start"
curl --silent --fail http://127.0.0.1:19440/ready >/dev/null || fail "it is not ready"
# The unit must allow it to refuse system calls itself.
[[ $(journal warning) != *"filter of system calls"* ]] || fail "its filter of system calls was not installed"
play 500
[[ $(counted) == 500 ]] || fail "$(counted) of 500 blocks were counted"

say "a reload keeps what is counted; one with a mistake changes nothing"
reloaded() {
	(($(journal info | grep -c 'Configuration reloaded') == $1))
}
config=$tree/etc/fibre-exporter/config.yaml
before=$(main_pid)
echo 'log_level: DEBUG' >>"$config"
inside systemctl reload fibre-exporter
wait_for "the reload" reloaded 1
[[ $(counted) == 500 && $(main_pid) == "$before" ]] || fail "a reload lost what was counted"
echo 'nonsense: 1' >>"$config"
inside systemctl reload fibre-exporter
mistake() {
	journal err | grep 'unknown key'
}
wait_for "the mistake in the journal" mistake
sed -i '/nonsense/d' "$config"
inside systemctl reload fibre-exporter
wait_for "the reload after a mistake" reloaded 2
[[ $(counted) == 500 && $(main_pid) == "$before" ]] || fail "a reload lost what was counted"

say "dpkg upgrades the traced program"
inside dpkg --install /root/demo_2.deb >/dev/null
play 500
[[ $(counted) == 1000 ]] || fail "$(counted) of 1000 blocks were counted over an upgrade"

say "dpkg upgrades the exporter while Prometheus scrapes it"
start_prometheus
scraped_once() {
	[[ $(asked up) == 1 ]]
}
wait_for "Prometheus's first scrape" scraped_once
before=$(main_pid)
ask_on_and_on "$work/enough" >"$work/asked" &
asking=$!
inside dpkg --install /root/exporter_2.deb >/dev/null
wait_for "the new exporter" is_another_than "$before"
touch "$work/enough"
wait "$asking"
# 7: connection refused; 28: no answer in time. A connection that the old one had taken may end without an answer.
! grep -q -x -e 7 -e 28 "$work/asked" || fail "connections were refused during the upgrade: $(sort "$work/asked" | uniq -c)"
grep -q -x 0 "$work/asked" || fail "nothing was answered during the upgrade"
[[ $(tail -c 1 "/proc/$(inside_pid)/exe") == 2 ]] || fail "the old exporter runs"
play 300
[[ $(counted) == 300 ]] || fail "$(counted) of 300 blocks were counted after the upgrade"
scraped_after() {
	[[ $(asked 'bitcoin_blocks_connected_total') == 300 ]]
}
wait_for "Prometheus's scrape of the new exporter" scraped_after
[[ $(asked 'min_over_time(up[10m])') == 1 ]] || fail "a gap in up"

for signal in KILL STOP; do
	say "it comes back after SIG$signal"
	before=$(main_pid)
	inside systemctl kill --kill-whom=main --signal="$signal" fibre-exporter
	wait_for "another exporter after SIG$signal" is_another_than "$before"
	play 50
	[[ $(counted) == 50 ]] || fail "$(counted) of 50 blocks were counted after SIG$signal"
done

say "the log file is written, and the journal knows warnings from the rest"
grep -q '\[INFO\] exporter: Waiting for events' "$tree/var/log/private/fibre-exporter/exporter.log" || fail "no log file"
[[ $(journal info) == *$'\n'"Waiting for events"* ]] || fail "no line in the journal"
[[ $(journal warning) != *"Waiting for events"* ]] || fail "all lines are warnings"

say "logrotate rotates it, and no line is lost"
logs=$tree/var/log/private/fibre-exporter
lines=$(wc -l <"$logs/exporter.log")
inside logrotate --force /etc/logrotate.d/fibre-exporter || fail "logrotate fails"
[[ -s $logs/exporter.log.1 ]] || fail "nothing was rotated: $(ls "$logs")"
# It looks for its file once a second, so lines of the first second are still in the earlier one.
rotated() {
	inside systemctl reload fibre-exporter
	grep -q 'Configuration reloaded' "$logs/exporter.log"
}
wait_for "the log in a new file" rotated
((lines <= $(wc -l <"$logs/exporter.log.1"))) || fail "lines are lost"

say "with pinned state dpkg upgrades the exporter while blocks go on: all are counted, and no counter goes down"
# As docs/restarts.md has it.
inside mountpoint --quiet /sys/fs/bpf || inside mount -t bpf bpf /sys/fs/bpf
inside useradd --system fibre-exporter
install -m 644 /dev/stdin "$tree/etc/systemd/system/fibre-exporter.service.d/pinned.conf" <<-'END'
	[Service]
	DynamicUser=no
	ExecStartPre=+/usr/bin/install -d -m 700 -o fibre-exporter /sys/fs/bpf/exporter-19439
	ReadWritePaths=-/sys/fs/bpf/exporter-19439
END
printf 'state: pinned\nstate_directory: /sys/fs/bpf/exporter-19439\n' >>"$config"
inside systemctl daemon-reload
inside systemctl restart fibre-exporter || fail "it does not start with pinned state"
first=$(($(counted) + 0))
# Since when Prometheus is asked: the restart that has just begun anew is before that.
since=$(date +%s)
pinned_scraped() {
	[[ $(asked "timestamp(bitcoin_blocks_connected_total) > bool $since") == 1 ]]
}
wait_for "Prometheus's scrape of the pinned exporter" pinned_scraped
inside bitcoind --wait-attached --rate 20 --blocks 1200 >/dev/null &
playing=$!
before=$(main_pid)
inside dpkg --install /root/exporter_3.deb >/dev/null
wait_for "the new exporter" is_another_than "$before"
[[ $(tail -c 1 "/proc/$(inside_pid)/exe") == 3 ]] || fail "the old exporter runs"
[[ $(journal info) == *"Took over"* ]] || fail "nothing was taken over"
say "it is killed and comes back, and nothing is lost by that"
before=$(main_pid)
inside systemctl kill --kill-whom=main --signal=KILL fibre-exporter
wait_for "another exporter after SIGKILL" is_another_than "$before"
wait "$playing" || fail "the traced program failed"
[[ $(counted) == $((first + 1200)) ]] || fail "$(counted) of $((first + 1200)) blocks were counted over an upgrade and a SIGKILL"
pinned_scraped_all() {
	[[ $(asked 'bitcoin_blocks_connected_total') == $((first + 1200)) ]]
}
wait_for "Prometheus's scrape of all blocks" pinned_scraped_all
range=$(($(date +%s) - since))s
[[ $(asked "resets(bitcoin_blocks_connected_total[$range])") == 0 ]] || fail "a counter went down"
[[ $(asked "min_over_time(up[$range])") == 1 ]] || fail "a gap in up"
inside systemctl stop fibre-exporter
inside exporter unpin /sys/fs/bpf/exporter-19439 >/dev/null || fail "it cannot be unpinned"
sed -i '/^state/d' "$config"
inside rm /etc/systemd/system/fibre-exporter.service.d/pinned.conf
inside systemctl daemon-reload
inside systemctl start fibre-exporter || fail "it does not start after unpinning"

say "it stops"
inside systemctl stop fibre-exporter
[[ $(inside systemctl is-failed fibre-exporter || true) == inactive ]] || fail "it did not stop cleanly"

exposure=$(systemd-analyze security --offline=true ./fibre-exporter.service | grep -o '[0-9]\+\.[0-9]\+ ' | tail -n 1)
awk -v is="$exposure" 'BEGIN { exit !(is > 0 && is < 2.5) }' || fail "systemd rates its exposure at $exposure"
say "passed; systemd rates its exposure at $exposure"
