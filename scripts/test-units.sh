#!/usr/bin/env bash
# Traces nginx and Redis as Debian ships and runs them: units of a systemd of its own, in a container, beside the exporter as a service.
#
#   scripts/test-units.sh [EXPORTER]        without it: target/release/exporter, else target/debug/exporter
#
# Targets are given by `unit:`. Requests and commands are counted as nginx's log and Redis itself count them: as they are, after a
# reload and the death of a worker (nginx), after SIGKILL of the whole unit, over an upgrade of the package by dpkg, with the old
# program still running and after its restart (Redis), and in an instance of a template in a slice of its own; while Prometheus scrapes.
# Needs root, mmdebstrap, systemd-container, curl, prometheus, apt and Debian's mirror (or MIRROR). It takes four minutes.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."
# shellcheck source=scripts/service-lib.sh
source scripts/service-lib.sh

nginx=19442
redis=19443
second=19444

# The value of a counter, all of its series with these labels together; 0 if there is none.
value() {
	curl --silent --show-error "$metrics" | awk -v name="$1" -v labels="$2" \
		'index($0, name "{") == 1 && index($0, labels) { sum += $NF } END { print sum + 0 }'
}

# $1 requests, one after the other.
request() {
	curl --silent --fail --output /dev/null "http://127.0.0.1:$nginx/?[1-$1]" || fail "nginx does not answer"
}

# As many as its log has; both are written at the end of a request.
is_counted() {
	(($(value nginx_requests_total 'unit="nginx.service"') - first == $1 && $(wc -l <"$access") - lines == $1))
}

info() {
	inside redis-cli -p "$1" info stats | tr -d '\r' | awk -F: '/^total_commands_processed/ { print $2 }'
}

# Commands of a Redis (port $1, unit $2) are counted as it counts them itself.
command_some() {
	local port=$1 labels="unit=\"$2\"" itself counted
	itself=$(info "$port")
	counted=$(value redis_commands_total "$labels")
	inside redis-benchmark -p "$port" -n 3000 -c 10 -t set,get,lpush -q >/dev/null || fail "Redis does not answer"
	counted=$(($(value redis_commands_total "$labels") - counted))
	# What it said first it counted afterwards.
	itself=$(($(info "$port") - itself - 1))
	((itself >= 9000 && counted == itself)) || fail "$2: $counted of $itself commands were counted"
}

# The package of a program that is another file for the kernel: what follows the end of an ELF file is in no segment.
make_next_version() {
	local package=$1 file=$2 root=$work/next
	(cd "$work" && apt-get download --quiet "$package" >/dev/null 2>&1) || fail "$package cannot be downloaded"
	rm -rf "$root"
	dpkg-deb --raw-extract "$work/$package"_*.deb "$root"
	printf 'next' >>"$root/$file"
	sed -i 's/^Version: .*/&.1/' "$root/DEBIAN/control"
	rm -f "$root/DEBIAN/md5sums"
	dpkg-deb -Zgzip -z1 --build --root-owner-group "$root" "$tree/root/$package.deb" >/dev/null
}

is_serving() {
	(exec 3<>"/dev/tcp/127.0.0.1/$nginx")
}

answers() {
	[[ $(inside redis-cli -p "$1" ping) == PONG ]]
}

# Once it is traced, no command goes uncounted.
is_attached() {
	curl --silent --fail http://127.0.0.1:19440/ready
}

check_needs apt-get
say "making a Debian tree with nginx and Redis in $work"
make_tree "$tree" nginx,redis-server >"$work/tree.log" 2>&1 || fail "no tree could be made: $(tail -n 5 "$work/tree.log")"
sed -i "s/^port .*/port $redis/; s/^bind .*/bind 127.0.0.1/" "$tree/etc/redis/redis.conf"
# A link, which would lead out of the tree.
rm "$tree/etc/nginx/sites-enabled/default"
printf 'server { listen 127.0.0.1:%s; root /var/www/html; }\n' "$nginx" >"$tree/etc/nginx/sites-enabled/default"
echo ok >"$tree/var/www/html/index.html"
# An instance of a template of one's own.
sed "s/^port .*/port $second/; s|^dir .*|dir /run|; s/^daemonize .*/daemonize no/; s/^supervised .*/supervised no/; s|^logfile .*|logfile \"\"|; s|^pidfile .*||" \
	"$tree/etc/redis/redis.conf" >"$tree/etc/redis/second.conf"
install -m 644 /dev/stdin "$tree/etc/systemd/system/cache@.service" <<-'END'
	[Service]
	Slice=batch.slice
	ExecStart=/usr/bin/redis-server /etc/redis/%i.conf
	[Install]
	WantedBy=multi-user.target
END
make_exporter_package "$tree" 1
make_next_version redis-tools usr/bin/redis-check-rdb
install -D -m 600 /dev/stdin "$tree/etc/fibre-exporter/config.yaml" <<-'END'
	metrics_port: 19439
	health_port: 19440
	targets:
	  - name: web
	    unit: nginx.service
	    probes:
	      - function: ngx_http_free_request
	        metrics: [{ counter: nginx_requests_total, labels: { unit: unit } }]
	  - name: cache
	    unit: redis-server.service
	    probes:
	      - function: processCommand
	        metrics: [{ counter: redis_commands_total, labels: { unit: unit } }]
	  - name: instances
	    unit: cache@*.service
	    probes:
	      - function: processCommand
	        metrics: [{ counter: redis_commands_total, labels: { unit: unit } }]
END
boot "$tree"
inside systemctl enable --now --quiet cache@second.service
inside dpkg --install /root/exporter_1.deb >/dev/null
inside systemctl enable --now --quiet fibre-exporter || fail "the exporter does not start"
wait_for "nginx" is_serving
wait_for "Redis" answers "$redis"
wait_for "the second Redis" answers "$second"
wait_for "all to be attached" is_attached
start_prometheus
scraped_once() {
	[[ $(asked up) == 1 ]]
}
wait_for "Prometheus's first scrape" scraped_once
access=$tree/var/log/nginx/access.log
first=$(value nginx_requests_total 'unit="nginx.service"')
lines=$(wc -l <"$access")

say "requests of nginx and commands of Redis are counted as they count themselves"
request 300
wait_for "300 requests" is_counted 300
command_some "$redis" redis-server.service
command_some "$second" cache@second.service

say "nginx is reloaded, one of its workers is killed, and then all of it"
inside systemctl reload nginx
request 300
wait_for "600 requests" is_counted 600
main=$(inside systemctl show --property=MainPID --value nginx)
# There is no end of line.
inside sh -c "read worker others </proc/$main/task/$main/children; kill -KILL \$worker"
request 300
wait_for "900 requests" is_counted 900
inside systemctl kill --signal=KILL nginx
inside systemctl reset-failed nginx
inside systemctl restart nginx
wait_for "nginx" is_serving
request 300
wait_for "1200 requests" is_counted 1200

say "Redis is killed and comes back"
inside systemctl kill --signal=KILL redis-server
wait_for "Redis" answers "$redis"
command_some "$redis" redis-server.service

say "dpkg upgrades Redis while it runs, and then it is restarted"
before=$(value redis_commands_total 'unit="redis-server.service"')
inside dpkg --install /root/redis-tools.deb >/dev/null
command_some "$redis" redis-server.service
inside systemctl restart redis-server
wait_for "Redis" answers "$redis"
[[ $(tail -c 4 "/proc/$(pgrep --full "redis-server 127.0.0.1:$redis")/exe") == next ]] || fail "the old Redis runs"
command_some "$redis" redis-server.service
command_some "$second" cache@second.service
(($(value redis_commands_total 'unit="redis-server.service"') >= before + 18000)) || fail "its series did not go on"
(($(value fibre_exporter_reattach_total 'target="cache"') >= 1)) || fail "no file was attached to anew"

[[ $(asked 'min_over_time(up[10m])') == 1 ]] || fail "a gap in up"
[[ $(asked 'sum(resets(redis_commands_total[10m]))') == 0 ]] || fail "a counter went down"
for what in lost_total read_faults_total; do
	(($(value "fibre_exporter_probe_$what" '') == 0)) || fail "$what is not 0"
done
say "passed"
