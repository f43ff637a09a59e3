#!/usr/bin/env bash
# Builds docker/Dockerfile and runs the image and docker/docker-compose.yml with a real Docker engine.
#
#   scripts/test-docker.sh                    builds the exporter in the container, as a user does (20 minutes on two cores)
#   scripts/test-docker.sh --exporter FILE    puts this program, built on Debian 12, into the image instead (3 minutes)
#
# The engine is Debian's (docker.io), started for this in mount, network and process namespaces of its own and removed after; one
# that runs here already is left alone. No registry is asked: debian:bookworm-slim, rust:1-bookworm and the image of Prometheus are made
# by mmdebstrap, the latter of Debian's prometheus; that of Grafana is a stand-in that only answers at /api/health.
#
# Then: the image has nothing but what the exporter needs; the exporter's container, with the command in docs/docker.md and no
# more privileges, counts the blocks of a program on the host and of one in another container exactly, and so after both were
# started anew; `docker-compose config` takes the file, `docker-compose up` ends in healthy services; Prometheus scrapes over TLS with
# the password, and a second exporter as soon as docker/prometheus/nodes/ names it; `down` leaves nothing. With podman installed, the
# image and the command run with it, too.
#
# Needs root, docker.io, docker-compose, mmdebstrap, make, gcc, openssl, curl, Debian's mirror (or MIRROR) and 6 GB in /var/tmp (or TMPDIR).
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."

# shellcheck source=scripts/test-lib.sh
source scripts/test-lib.sh

patience=1200
# Debian's programs, and the engine's own socket, whatever else there is.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
unset DOCKER_HOST DOCKER_CONTEXT
demo=target/demo/fibre-demo
work=

# The packages that the $1th stage of the Dockerfile installs.
packages_of_stage() {
	grep -o 'apt-get install -y --no-install-recommends [^\\]*' docker/Dockerfile | sed -n "${1}s/.*recommends //p"
}

# A Debian tree with the packages $3 as the image $1, with the instructions $4... In it `apt-get update` asks nobody.
make_image() {
	local name=$1 tree=$2 include=$3 change arguments=()
	shift 3
	for change in "$@"; do
		arguments+=(--change "$change")
	done
	rm -f "$tree/etc/apt/sources.list" "$tree"/etc/apt/sources.list.d/*
	tar --create --directory="$tree" --numeric-owner --exclude=./dev/* . | docker import "${arguments[@]}" - "$name" >/dev/null ||
		fail "no image $name could be made of $tree with $include"
}

make_tree() {
	mmdebstrap --quiet --variant=apt --include="$2" bookworm "$1" "$mirror" >>"$work/trees.log" 2>&1 ||
		fail "no tree could be made: $(tail -n 5 "$work/trees.log")"
	find "$1/var/cache/apt" "$1/var/lib/apt/lists" -type f -delete
}

# What rust:1-bookworm is to the Dockerfile: Rust's minimal profile, gcc, and here the crates that cargo has fetched before.
add_rust() {
	local tree=$1 toolchain cargo=${CARGO_HOME:-$HOME/.cargo}
	install -d "$tree/usr/local/cargo" "$tree/usr/local/bin"
	if [[ -n $exporter ]]; then
		install -m 755 "$exporter" "$tree/usr/local/bin/exporter.built"
		install -m 755 /dev/stdin "$tree/usr/local/bin/cargo" <<-'END'
			#!/bin/sh
			# Stands in for the compiler: what it would build is there.
			install -D -m 755 /usr/local/bin/exporter.built target/release/exporter
		END
		return
	fi
	toolchain=$(PATH=$cargo/bin:$PATH rustc --print sysroot)
	"$cargo/bin/cargo" fetch --locked --quiet
	cp -a "$toolchain/bin/cargo" "$toolchain/bin/rustc" "$tree/usr/local/bin/"
	cp -a "$toolchain/lib" "$tree/usr/local/"
	cp -a "$cargo/registry" "$tree/usr/local/cargo/"
}

make_trees() {
	make_tree "$work/slim" "ca-certificates,$(packages_of_stage 2 | tr ' ' ,)"
	make_tree "$work/rust" "ca-certificates,gcc,libc6-dev,$(packages_of_stage 1 | tr ' ' ,)"
	make_tree "$work/stack" "prometheus,wget,busybox"
	install -d -o nobody -g nogroup "$work/stack/prometheus"
	add_rust "$work/rust"
}

make_images() {
	make_image debian:bookworm-slim "$work/slim" libelf1 'CMD ["bash"]'
	make_image rust:1-bookworm "$work/rust" clang 'ENV CARGO_HOME=/usr/local/cargo' 'ENV CARGO_NET_OFFLINE=true'
	# As the compose file names them.
	make_image "$(sed -n 's/^ *image: \(.*prometheus.*\)/\1/p' docker/docker-compose.yml)" "$work/stack" prometheus \
		'USER nobody' 'EXPOSE 9090' 'VOLUME /prometheus' 'WORKDIR /prometheus' 'ENTRYPOINT ["/usr/bin/prometheus"]'
	install -D -m 644 /dev/stdin "$work/stack/www/api/health" <<<ok
	make_image "$(sed -n 's/^ *image: \(.*grafana.*\)/\1/p' docker/docker-compose.yml)" "$work/stack" busybox \
		'USER nobody' 'EXPOSE 3000' 'ENTRYPOINT ["/bin/busybox", "httpd", "-f", "-p", "3000", "-h", "/www"]'
	rm -rf --one-file-system "$work/slim" "$work/rust" "$work/stack"
}

# The command in docs/docker.md by which $1 runs the exporter, for a container of the name $2 with the configuration in $3. The program's
# directory is this test's.
documented_run() {
	local other=
	# As the table there says.
	[[ $1 != podman || $(podman --version) != *' 4.'[0-3].* ]] || other='s/--cap-add=BPF /&--cap-add=SYS_ADMIN /'
	[[ $1 == podman || $(docker version --format '{{.Server.Version}}') == 2[3-9]* ]] ||
		other='s/--cap-add=BPF --cap-add=PERFMON --cap-add=CHECKPOINT_RESTORE/--cap-add=SYS_ADMIN/'
	sed -n "/^$1 run .*--name fibre-exporter/,/fibre-exporter\$/p" docs/docker.md | sed 's/\\$//' | tr '\n' ' ' |
		sed "s|--name fibre-exporter|--name $2|; s|-v /etc/fibre-exporter:|-v $3:|; $other"
}

run_exporter() {
	local words
	read -ra words <<<"$(documented_run "$1" "$2" "$3")"
	((${#words[@]} > 10)) || fail "docs/docker.md shows no command of $1"
	if [[ $1 == podman ]]; then
		# Where version 1 has the controllers, version 2 has none to limit processes with.
		podman "${podman[@]}" run --pids-limit 0 "${words[@]:2}" >/dev/null
	else
		docker "${words[@]:1}" >/dev/null || fail "docker run"
	fi
}

asked_metrics() {
	curl --silent --show-error --fail --cacert "$source/certs/ca.crt" --user "prometheus:$password" \
		--connect-to "localhost:$1:$address:$1" "https://localhost:$1/metrics"
}

# Blocks that the exporter with this port counted for this target.
counted() {
	asked_metrics "$1" | awk -v label="target=\"$2\"" '/^bitcoin_blocks_connected_total/ && index($0, label) { print $2 }'
}

is_serving() {
	curl --silent --fail --cacert "$source/certs/ca.crt" --connect-to "localhost:$1:$address:$1" "https://localhost:$1/health"
}

# All probes of the target $2 are attached.
attached() {
	local states
	states=$(asked_metrics "$1" | grep "^fibre_exporter_probe_attached{target=\"$2\"")
	[[ -n $states && $states != *" 0"* ]]
}

health_of() {
	docker inspect --format '{{.State.Health.Status}}' "$1"
}

is_healthy() {
	[[ $(health_of "$1") == healthy ]]
}

# The value of a query, or nothing.
queried() {
	curl --silent --fail --get --data-urlencode "query=$1" http://127.0.0.1:9090/api/v1/query |
		grep -o '"value":\[[^]]*\]' | grep -o '"[0-9.]*"\]' | tr -d '"]'
}

comes_to() {
	[[ $(queried "$1") == "$2" ]]
}

# Plays $1 blocks on the host, each of which is to be counted; waits until they are.
play_here() {
	/usr/local/bin/bitcoind --wait-attached --rate 0 --blocks "$1" >/dev/null
}

# The same in a container that is called `traced`.
play_there() {
	docker start --attach traced >/dev/null
}

exact() {
	local is
	is=$(counted "$1" "$2")
	[[ $is == "$3" ]] || fail "$is of $3 blocks of the target $2 were counted"
}

configure() {
	local directory=$1 name=$2 port=$3
	install -d -m 700 "$directory"
	install -m 600 "$source/certs/localhost/node.key" "$source/certs/localhost/node.crt" "$directory"
	install -m 600 /dev/stdin "$directory/password" <<<"$password"
	install -m 600 /dev/stdin "$directory/config.yaml" <<-END
		node_name: $name
		bind: $address
		metrics_port: $port
		health_port: $((port + 1))
		metrics_auth_username: prometheus
		metrics_auth_password_file: /etc/fibre-exporter/password
		tls_cert: /etc/fibre-exporter/node.crt
		tls_key: /etc/fibre-exporter/node.key
		targets:
		  - { name: host, binary: /usr/local/bin/host/bitcoind, profile: fibre }
		  - { name: other, container: traced, profile: fibre }
	END
}

start_engine() {
	mount -t tmpfs tmpfs /run
	# As on today's systems: version 2 of control groups alone, with which each container has a cgroup namespace of its own.
	umount --recursive --lazy /sys/fs/cgroup
	mount -t cgroup2 cgroup2 /sys/fs/cgroup
	install -d "$work/docker" "$work/lower" /var/lib/docker
	mount --bind "$work/docker" /var/lib/docker
	ip link set lo up
	# Containers reach the host and each other by bridges; nothing leaves this network namespace.
	dockerd --iptables=false --ip6tables=false --cgroup-parent="$cgroup" --log-level=warn >"$work/dockerd.log" 2>&1 &
	wait_for "the Docker engine (see $work/dockerd.log)" docker info
	address=$(ip -4 -o address show docker0 | grep -o 'inet [0-9.]*' | cut -d' ' -f2)
	say "Docker $(docker version --format '{{.Server.Version}}') with $(docker info --format '{{.Driver}}') and control groups of version $(docker info --format '{{.CgroupVersion}}')"
}

# Of the host that the containers see: the private mounts below are gone with this process.
lay_out_host() {
	install -d /etc/fibre-exporter
	mount -t tmpfs tmpfs /etc/fibre-exporter
	install -d "$work/upper" "$work/overlay"
	mount -t overlay overlay -o "lowerdir=/usr/local/bin,upperdir=$work/upper,workdir=$work/overlay" /usr/local/bin
	install -m 755 "$source/$demo" /usr/local/bin/bitcoind
}

test_image() {
	say "docker build, with the Dockerfile as it is"
	(cd "$source" && DOCKER_BUILDKIT=${BUILDKIT-1} docker build --network none -f docker/Dockerfile -t fibre-exporter .) >"$work/build.log" 2>&1 ||
		fail "docker build: $(tail -n 20 "$work/build.log")"
	docker run --rm --entrypoint sh fibre-exporter -c '
		exporter --version && ! ls /build /root/.cargo /var/lib/apt/lists/*_Packages 2>/dev/null && ! ldd /usr/local/bin/exporter | grep "not found"
	' || fail "the image is not what it should be"
	local added
	added=$(docker history --format '{{.Size}} {{.CreatedBy}}' fibre-exporter | grep -v '^0B' | head -n 2)
	say "the image adds to Debian's: ${added//$'\n'/; }"
}

test_tracing() {
	say "the exporter's container, with the documented privileges, traces a program on the host and one in another container"
	configure /etc/fibre-exporter london 9435
	docker create --name traced -v "$source/$demo:/usr/bin/bitcoind:ro" debian:bookworm-slim \
		/usr/bin/bitcoind --wait-attached --rate 0 --blocks 300 >/dev/null
	run_exporter docker fibre-exporter /etc/fibre-exporter
	wait_for_container fibre-exporter 9436
	wait_for "the probes on the host" attached 9435 host
	play_here 500
	exact 9435 host 500
	play_there
	exact 9435 other 300
	exact 9435 host 500
	say "and counts on when both are started again, and when its own container is"
	play_here 200
	play_there
	exact 9435 host 700
	exact 9435 other 600
	docker restart fibre-exporter >/dev/null
	wait_for "the restarted exporter" is_serving 9436
	play_here 100
	play_there
	exact 9435 host 100
	exact 9435 other 300
	grep -E '^(CapEff|CapBnd|Seccomp|NoNewPrivs)' "/proc/$(docker inspect --format '{{.State.Pid}}' fibre-exporter)/status" >"$work/status"
}

# It serves, or has ended, and then it is said why.
wait_for_container() {
	wait_for "the container $1" serving_or_restarted "$1" "$2"
	is_serving "$2" >/dev/null || fail "the container $1: $(docker logs "$1" 2>&1 | tail -n 5)"
}

serving_or_restarted() {
	is_serving "$2" || (($(docker inspect --format '{{.RestartCount}}' "$1") > 0))
}

test_compose() {
	say "docker-compose: the stack comes up healthy and scrapes over TLS"
	install -D -m 644 /dev/stdin "$source/docker/secrets/metrics_password" <<<"$password"
	! compose config >/dev/null 2>&1 || fail "docker-compose takes the file without a password for Grafana"
	sed 's/^GRAFANA_ADMIN_PASSWORD=$/&secret/' "$source/docker/.env.example" >"$source/docker/.env"
	# docker-compose 1 (Debian 12) knows neither of these.
	[[ $(docker-compose version --short) != 1.* ]] ||
		sed -i -e '/^name: /d' -e '/^        bind:$/,/create_host_path/d' "$source/docker/docker-compose.yml"
	compose config >"$work/compose.yml" || fail "docker-compose config"
	compose up -d >"$work/compose.log" 2>&1 || fail "docker-compose up: $(tail -n 20 "$work/compose.log")"
	wait_for "a healthy Prometheus" is_healthy fibre-prometheus
	wait_for "a healthy stand-in for Grafana" is_healthy fibre-grafana
	wait_for "Prometheus's scrape" comes_to 'up{job="fibre"}' 1
	wait_for "the blocks in Prometheus" comes_to 'sum(bitcoin_blocks_connected_total)' 400
	docker exec fibre-grafana sh -c 'cat /etc/fibre/dashboards/fibre.json /etc/grafana/provisioning/*/*.yml' >/dev/null ||
		fail "Grafana's container does not see its files"
	curl --silent --fail http://127.0.0.1:9090/api/v1/rules | grep -q FibreExporterDown || fail "Prometheus has no rules"

	say "a second exporter is scraped as soon as a file names it"
	configure /etc/second tokyo 9445
	run_exporter docker second /etc/second
	wait_for_container second 9446
	printf -- '- targets: [host.docker.internal:9445]\n  labels: { node: tokyo }\n' >"$source/docker/prometheus/nodes/tokyo.yml"
	wait_for "the second exporter in Prometheus" comes_to 'count(up{job="fibre"} == 1)' 2
	play_here 50
	wait_for "the blocks of both" comes_to 'count(bitcoin_blocks_connected_total{target="host"} == 150 or bitcoin_blocks_connected_total{target="host"} == 50)' 2
	docker kill --signal=TERM second >/dev/null
	wait_for "the second exporter's end in Prometheus" comes_to 'up{node="tokyo"}' 0
	compose down --volumes >>"$work/compose.log" 2>&1 || fail "docker-compose down"
}

compose() {
	docker-compose --project-name fibre -f "$source/docker/docker-compose.yml" "$@"
}

test_podman() {
	command -v podman >/dev/null || {
		say "there is no podman: left out"
		return 0
	}
	say "podman: the same image and command"
	docker rm --force fibre-exporter >/dev/null
	docker save fibre-exporter | podman "${podman[@]}" load --quiet >/dev/null || fail "podman load"
	run_exporter podman fibre-exporter /etc/fibre-exporter || fail "podman run"
	wait_for "the exporter in podman" is_serving 9436
	wait_for "the probes on the host" attached 9435 host
	play_here 250
	exact 9435 host 250
	podman "${podman[@]}" rm --force --time 10 fibre-exporter >/dev/null
}

# In the namespaces, as their first process: when it ends, all others there end, and the mounts go.
inside() {
	work=$1 source=$1/source exporter=$2 cgroup=$3
	password=a-test-password
	podman=(--root "$work/podman" --runroot /run/podman --storage-driver vfs --cgroup-manager cgroupfs --events-backend file --runtime runc)
	start_engine
	lay_out_host
	make_images
	test_image
	(cd "$source" && ./generate-certs.sh localhost >/dev/null)
	test_tracing
	test_compose
	test_podman
	docker ps --quiet --all | xargs --no-run-if-empty docker rm --force >/dev/null
	say "passed; $(tr '\n' ' ' <"$work/status")"
}

if [[ ${1-} == --inside ]]; then
	inside "$2" "$3" "$4"
	exit
fi

exporter=
while (($#)); do
	case $1 in
	--exporter) exporter=$(realpath "${2:?which file?}") && shift 2 ;;
	*) fail "unknown option \"$1\"; known: --exporter FILE" ;;
	esac
done
((EUID == 0)) || fail "run this as root"
for tool in dockerd docker docker-compose mmdebstrap openssl curl make gcc; do
	command -v "$tool" >/dev/null || fail "there is no $tool: apt-get install docker.io docker-compose mmdebstrap openssl curl make gcc"
done
make --silent -C demo
work=$(mktemp -d "${TMPDIR:-/var/tmp}/exporter-docker.XXXXXX")
cgroup=exporter-docker-$$
clean_up() {
	rm -rf --one-file-system "$work"
	find /sys/fs/cgroup -depth -type d -path "*/$cgroup*" -exec rmdir {} + 2>/dev/null || true
}
trap clean_up EXIT
# Committed or not, but nothing that git ignores.
mkdir "$work/source"
git ls-files -z --cached --others --exclude-standard | tar --create --null --ignore-failed-read --files-from=- 2>/dev/null | tar --extract --directory="$work/source"
install -D -m 755 "$demo" "$work/source/$demo"
say "making Debian trees in $work"
make_trees
status=0
unshare --mount --net --pid --fork --kill-child --mount-proc --propagation private "$0" --inside "$work" "$exporter" "$cgroup" || status=$?
((status == 0)) || {
	tail -n 5 "$work"/*.log >&2 || true
	exit "$status"
}
