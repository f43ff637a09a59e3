#!/usr/bin/env bash
# Runs the exporter as a service under a systemd of its own: a minimal Debian 12, booted in a container.
#
#   scripts/test-service.sh [EXPORTER]        without it: target/release/exporter, else target/debug/exporter
#
# The exporter, as a Debian package with the shipped unit, and the demo program are installed there, and then: a start without
# configuration fails and the journal says why; a start returns when metrics are served; blocks are counted exactly; a reload loses
# none of them; the traced program is upgraded by dpkg and goes on being counted; the exporter is upgraded by dpkg while a Prometheus
# scrapes it, which sees no gap; it comes back after SIGKILL and, by the watchdog, after SIGSTOP; its log is rotated, and finds a full disk;
# with pinned state it is upgraded and killed while blocks go on, and counts all of them, so that their rate has no dent; an address comes
# late; and it stops. Needs root, mmdebstrap, systemd-container, make, gcc, curl, prometheus and Debian's mirror (or MIRROR); the tree is
# made in /var/tmp (or TMPDIR) and removed at the end. It takes four minutes.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."
# shellcheck source=scripts/service-lib.sh
source scripts/service-lib.sh

demo=target/demo/fibre-demo

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

check_needs make gcc
make --silent -C demo
say "making a Debian tree in $work"
make_tree "$tree" logrotate >"$work/tree.log" 2>&1 || fail "no tree could be made: $(tail -n 5 "$work/tree.log")"
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
	$(sed -n 's/^# log_file:/log_file:/p' config.example.yaml)
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
[[ ! $(journal info) =~ [0-9]{4}-[0-9]{2}-[0-9]{2}[T\ ][0-9]{2}: ]] || fail "lines have a time stamp beside the journal's"

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

say "a full disk costs lines of the file, not counts, and is told"
within_unit() {
	nsenter --mount --pid --target "$(inside_pid)" "$@"
}
failed_lines() {
	curl --silent "$metrics" | awk '/^fibre_exporter_errors_total.*log_write_failed/ { print $2 }'
}
lines_failed() {
	inside systemctl reload fibre-exporter
	(($(failed_lines) > 0))
}
owner=$(stat --format=%u "$logs")
within_unit mount -t tmpfs -o "size=64k,mode=700,uid=$owner" tmpfs /var/log/private/fibre-exporter
within_unit dd if=/dev/zero of=/var/log/private/fibre-exporter/filler status=none 2>/dev/null || true
wait_for "lines that find no room to be counted" lines_failed
before=$(counted)
play 50
[[ $(counted) == $((before + 50)) ]] || fail "$(counted) of $((before + 50)) blocks were counted with a full disk"
within_unit rm /var/log/private/fibre-exporter/filler
written_again() {
	inside systemctl reload fibre-exporter
	within_unit grep -q 'Configuration reloaded' /var/log/private/fibre-exporter/exporter.log
}
wait_for "lines in the file when there is room again" written_again
within_unit umount --lazy /var/log/private/fibre-exporter

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
began=$(date +%s)
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
ended=$(date +%s)
[[ $(counted) == $((first + 1200)) ]] || fail "$(counted) of $((first + 1200)) blocks were counted over an upgrade and a SIGKILL"
pinned_scraped_all() {
	[[ $(asked 'bitcoin_blocks_connected_total') == $((first + 1200)) ]]
}
wait_for "Prometheus's scrape of all blocks" pinned_scraped_all
range=$(($(date +%s) - since))s
[[ $(asked "resets(bitcoin_blocks_connected_total[$range])") == 0 ]] || fail "a counter went down"
[[ $(asked "min_over_time(up[$range])") == 1 ]] || fail "a gap in up"
# Of windows that lie within the time in which blocks came.
range="$((ended - began - 40))s:5s"
least=$(asked "min_over_time(rate(bitcoin_blocks_connected_total[20s])[$range] @ $((ended - 10)))")
awk -v least="$least" -v mean=$((1200 / (ended - began))) 'BEGIN { exit !(least > mean / 2) }' ||
	fail "the rate fell to $least blocks a second"
inside systemctl stop fibre-exporter
inside exporter unpin /sys/fs/bpf/exporter-19439 >/dev/null || fail "it cannot be unpinned"
sed -i '/^state/d' "$config"
inside rm /etc/systemd/system/fibre-exporter.service.d/pinned.conf
inside systemctl daemon-reload
inside systemctl start fibre-exporter || fail "it does not start after unpinning"

say "an address that comes later is served from then on"
late=192.0.2.$(($$ % 250 + 2))
echo "bind: $late" >>"$config"
inside systemctl restart fibre-exporter || fail "it does not start without its address"
told_of_address() {
	[[ $(journal warning) == *"no interface has the address $late yet"* ]]
}
wait_for "the warning of the address" told_of_address
ip address add "$late/32" dev lo
curl --silent --fail "http://$late:19439/metrics" >/dev/null || fail "nothing is served at $late"

say "it stops"
inside systemctl stop fibre-exporter
[[ $(inside systemctl is-failed fibre-exporter || true) == inactive ]] || fail "it did not stop cleanly"

exposure=$(systemd-analyze security --offline=true ./fibre-exporter.service | grep -o '[0-9]\+\.[0-9]\+ ' | tail -n 1)
awk -v is="$exposure" 'BEGIN { exit !(is > 0 && is < 2.5) }' || fail "systemd rates its exposure at $exposure"
say "passed; systemd rates its exposure at $exposure"
