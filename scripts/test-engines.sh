#!/usr/bin/env bash
# Traces programs in containers of real engines, found by name, id and image, and compares each count with what was called.
#
#   scripts/test-engines.sh [--exporter FILE] [--install] [ENGINE...]
#
# Engines: docker, containerd (ctr), podman, lxc, nspawn, and kubernetes: no engine, but control groups of the names that the kubelet
# gives them (cgroupfs and systemd drivers), with the files by which pods are known. Without any, all are tested. What is not installed or
# cannot run on this machine is told as such and is no failure; the last lines tell what was tested. --install installs what is missing
# from Debian's archive.
#
# Of each engine that knows names: a container that starts after the exporter, a second one of the same image, exec into it, stop and start,
# recreated under the same name with another id, an exporter that starts afterwards and knows it by its id, and the labels of the series.
# Docker and Podman are tested twice where version 1 of control groups is mounted as well: as it is, and with version 2 alone.
#
# All of it in mount, network and process namespaces of its own; a daemon that runs here already is left alone. Control groups that engines
# make are removed.
#
# Needs root, gcc, curl, busybox-static and some 200 MB in /var/tmp (or TMPDIR); two minutes.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."

# shellcheck source=scripts/test-lib.sh
source scripts/test-lib.sh

# Debian's programs, whatever else there is.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
unset DOCKER_HOST DOCKER_CONTEXT
known=(docker containerd podman lxc nspawn kubernetes)
declare -A packages=([docker]=docker.io [containerd]=containerd [podman]='podman crun' [lxc]=lxc [nspawn]=systemd-container [kubernetes]="")
declare -A program_of=([docker]=dockerd [containerd]=ctr [podman]=podman [lxc]=lxc-start [nspawn]=systemd-nspawn [kubernetes]=true)
# Tenths of a second that are waited.
patience=200
work=
exporter=
running=
port=19470
# Where version 2 of control groups is mounted.
unified=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts)
outcomes=()

# --- The traced program: calls as often as it is told to, then waits if that is asked for.

make_image() {
	cat >"$work/calls.c" <<-'END'
		#include <stdlib.h>
		#include <unistd.h>
		__attribute__((noinline)) void called(int n) { __asm__ volatile("" : : "r"(n)); }
		int main(int argc, char **argv)
		{
			for (int n = atoi(argv[1]); n > 0; n--)
				called(n);
			while (argc > 2)
				pause();
		}
	END
	install -d "$work"/image/{bin,proc,sys,dev,tmp,etc,run,var,usr,root,sbin}
	gcc -static -O1 -o "$work/image/bin/calls" "$work/calls.c"
	install "$(command -v busybox)" "$work/image/bin/busybox"
	ln -s busybox "$work/image/bin/sh"
	# A shell first, as most images have it: it is in the container, and not what is looked for.
	install -m 755 /dev/stdin "$work/image/bin/main" <<-'END'
		#!/bin/sh
		trap 'exit 0' TERM
		/bin/calls "$1" wait &
		wait
	END
	tar --create --directory="$work/image" --numeric-owner --file="$work/image.tar" .
}

# --- The exporter

# Traces what the lines of stdin mean, each "NAME KEY: VALUE".
start_exporter() {
	{
		printf 'bind: 127.0.0.1\nmetrics_port: %s\nhealth_port: %s\ntargets:\n' $port $((port + 1))
		while read -r name selector; do
			cat <<-END
				  - name: $name
				    $selector
				    probes:
				      - on: function:called
				        metrics:
				          - counter: calls_total
				            labels: { container: container, id: container_id, image: image, unit: unit, pod: pod, namespace: namespace, cgroup: cgroup }
			END
		done
	} >"$work/config.yaml"
	"$exporter" --config "$work/config.yaml" >"$work/exporter.log" 2>&1 &
	running=$!
	wait_for "the exporter (see below)" serves || true
}

serves() {
	curl --silent --fail "http://127.0.0.1:$((port + 1))/health" || {
		kill -0 "$running" || fail "the exporter ended: $(tail -n 5 "$work/exporter.log")"
		return 1
	}
}

stop_exporter() {
	[[ -z $running ]] || {
		kill "$running" 2>/dev/null || true
		wait "$running" 2>/dev/null || true
	}
	running=
}

scraped() {
	curl --silent --show-error --fail "http://127.0.0.1:$port/metrics"
}

# Calls that were counted of this target.
counted() {
	scraped | awk -v of="target=\"$1\"" '/^calls_total/ && index($0, of) { sum += $2 } END { print sum + 0 }'
}

counts() {
	[[ $(counted "$1") == "$2" ]]
}

# The target counts this at last. A wrong number is a failure of the engine's test and not of the script.
expect() {
	local tries=0
	until counts "$1" "$2"; do
		((++tries < 100)) || {
			outcome "WRONG: $3: $(counted "$1") of $2 calls were counted for the target $1"
			return 0
		}
		sleep 0.1
	done
}

# A series of the target has this label.
expect_label() {
	# Names that come from the engine's files are looked up within a second.
	local tries=0
	until scraped | grep '^calls_total' | grep -F "target=\"$1\"" | grep -qF "$2"; do
		((++tries < 50)) || {
			outcome "WRONG: no series of $1 has $2: $(scraped | grep '^calls_total' | grep -F "target=\"$1\"" | head -n 3)"
			return 0
		}
		sleep 0.1
	done
}

outcome() {
	say "$engine: $*"
	outcomes+=("$engine: $*")
}

# --- What is the same for all engines that know names. Each defines run NAME CALLS, again NAME (stop and start, with the same calls),
# execute NAME CALLS, remove NAME, id_of NAME, and `image`: what it calls the image, or nothing.

test_named() {
	local first together="process: calls"
	[[ -z $image ]] || together="image: calls"
	start_exporter <<-END
		named container: web
		imaged $together
	END
	run web 100
	expect named 100 "a container that starts after the exporter"
	expect_label named 'container="web"'
	run other 50
	expect named 100 "a second container of the image"
	expect imaged 150 "two containers of an image"
	execute web 20
	expect named 120 "exec"
	first=$(id_of web)
	expect_label named "id=\"$first\""
	[[ -z $image ]] || expect_label imaged "image=\"$image\""
	again web
	expect named 220 "stop and start"
	remove web
	run web 30
	expect named 250 "recreated under the same name"
	[[ $(id_of web) == "$first" ]] || expect_label named "id=\"$(id_of web)\""
	expect imaged 300 "all of the image"
	stop_exporter
	start_exporter <<-END
		byid container: $(id_of web)
		short container: ${short:-$(id_of web | cut -c 1-12)}
		named container: web
	END
	wait_for "the exporter that started afterwards" probes_are_attached
	execute web 40
	expect byid 40 "by the whole id, running before the exporter"
	expect short 40 "by the beginning of the id"
	expect named 40 "by name, running before the exporter"
	stop_exporter
	remove web
	remove other
}

probes_are_attached() {
	local states
	states=$(scraped | grep '^fibre_exporter_probe_attached{')
	[[ -n $states && $states != *' 0'* ]]
}

# --- Docker

test_docker() {
	mount -t tmpfs tmpfs /run
	install -d "$work/docker" /var/lib/docker
	mount --bind "$work/docker" /var/lib/docker
	dockerd --iptables=false --ip6tables=false --bridge=none --cgroup-parent="$group" --log-level=warn >"$work/dockerd.log" 2>&1 &
	daemon=$!
	wait_while $daemon docker info || {
		outcome "could not run: $(tail -n 1 "$work/dockerd.log")"
		return 0
	}
	docker import --change 'ENTRYPOINT ["/bin/main"]' "$work/image.tar" calls:1 >/dev/null
	image=calls:1
	run() { docker run --detach --network none --name "$1" calls:1 "$2" >/dev/null; }
	again() { docker restart --time 5 "$1" >/dev/null; }
	execute() { docker exec "$1" /bin/calls "$2"; }
	remove() { docker rm --force "$1" >/dev/null; }
	id_of() { docker inspect --format '{{.Id}}' "$1"; }
	test_named
	# A name may change while the container runs.
	start_exporter <<<"named container: renamed"
	run web 0
	docker rename web renamed
	outcome "tested: Docker $(docker version --format '{{.Server.Version}}'), $(docker info --format '{{.Driver}}, {{.CgroupDriver}}, version {{.CgroupVersion}} of control groups')"
}

# Waits for the command while the process lives.
wait_while() {
	local tries=0 process=$1
	shift
	until "$@" >/dev/null 2>&1; do
		kill -0 "$process" 2>/dev/null && ((++tries < 300)) || return 1
		sleep 0.1
	done
}

# --- containerd, by ctr: containers have the ids that they are given, and no name.

test_containerd() {
	mount -t tmpfs tmpfs /run
	containerd --root "$work/containerd" --state /run/containerd --log-level warn >"$work/containerd.log" 2>&1 &
	daemon=$!
	wait_while $daemon ctr version || {
		outcome "could not run: $(tail -n 1 "$work/containerd.log")"
		return 0
	}
	# An OCI image of one layer; ctr cannot import a tree.
	local whole
	whole=$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')
	image=
	create() { ctr run --detach --rootfs --cgroup "$group/$1" "$work/image" "$1" /bin/main "$2" >"$work/ctr.log" 2>&1; }
	start_exporter <<-END
		byid container: $whole
		named unit: "web*"
	END
	create "$whole" 100 || {
		outcome "could not run a container: $(tail -n 1 "$work/ctr.log")"
		stop_exporter
		return 0
	}
	expect byid 100 "by an id of 64 digits"
	create web 50
	expect named 50 "by the control group's name, as the id is of the user's choice"
	ctr task exec --exec-id more web /bin/calls 20
	expect named 70 "exec"
	expect byid 100 "the other one"
	stop_exporter
	start_exporter <<-END
		byid container: ${whole:0:12}
		named unit: "web*"
	END
	wait_for "the exporter that started afterwards" probes_are_attached
	ctr task exec --exec-id later web /bin/calls 30
	ctr task exec --exec-id later "$whole" /bin/calls 40
	expect named 30 "running before the exporter"
	expect byid 40 "by the beginning of the id, running before the exporter"
	stop_exporter
	for name in "$whole" web; do
		ctr task kill --signal SIGKILL --all "$name" >/dev/null
		wait_while $daemon ctr task delete "$name" || true
		ctr container delete "$name" >/dev/null
	done
	outcome "tested: $(containerd --version | cut -d' ' -f3)"
}

# --- Podman

test_podman() {
	mount -t tmpfs tmpfs /run
	install -d "$work/podman" /var/lib/containers/storage
	mount --bind "$work/podman" /var/lib/containers/storage
	local runtime tried="" options with=()
	for options in --cgroups=enabled --cgroups=disabled; do
		for runtime in crun runc; do
			command -v $runtime >/dev/null || continue
			podman=(podman --root /var/lib/containers/storage --runroot /run/podman --storage-driver vfs --cgroup-manager cgroupfs
				--events-backend file --runtime "$runtime")
			with=("$options" --network none --pids-limit 0 --ulimit host)
			"${podman[@]}" image exists localhost/calls:1 2>/dev/null ||
				"${podman[@]}" import --change 'ENTRYPOINT ["/bin/main"]' "$work/image.tar" localhost/calls:1 >/dev/null 2>"$work/podman.log" ||
				{ outcome "could not run: $(tail -n 1 "$work/podman.log")" && return 0; }
			if "${podman[@]}" run --rm "${with[@]}" --entrypoint /bin/calls localhost/calls:1 0 2>"$work/podman.log"; then
				break 2
			fi
			tried+="$runtime $options: $(tail -n 1 "$work/podman.log"); "
			with=()
		done
	done
	((${#with[@]})) || {
		outcome "could not run: $tried"
		return 0
	}
	[[ $options != --cgroups=disabled ]] || {
		outcome "only containers without control groups can run, by which nothing tells one from another (docs/limits.md): $tried"
		return 0
	}
	image=localhost/calls:1
	run() { "${podman[@]}" run --detach "${with[@]}" --name "$1" localhost/calls:1 "$2" >/dev/null; }
	again() { "${podman[@]}" restart --time 5 "$1" >/dev/null; }
	execute() { "${podman[@]}" exec "$1" /bin/calls "$2"; }
	remove() { "${podman[@]}" rm --force --time 1 "$1" >/dev/null; }
	id_of() { "${podman[@]}" inspect --format '{{.Id}}' "$1"; }
	test_named
	outcome "tested: Podman $(podman version --format '{{.Client.Version}}') with $runtime${tried:+ (not possible: $tried)}"
}

# --- LXC and systemd-nspawn: system containers, with names and without ids or images.

forget_lxc() {
	find /sys/fs/cgroup -depth -type d -path '*/lxc.*' -exec rmdir {} + 2>/dev/null || true
}

test_lxc() {
	mount -t tmpfs tmpfs /run
	local path=$work/lxc
	# It gives a container whose control group is still there another one, `lxc.payload.web-1`.
	forget_lxc
	image=
	short=web
	run() {
		install -d "$path/$1"
		cat >"$path/$1/config" <<-END
			lxc.uts.name = $1
			lxc.rootfs.path = dir:$work/image
			lxc.init.cmd = /bin/main $2
			lxc.mount.auto = proc:mixed sys:ro
			lxc.net.0.type = none
			lxc.apparmor.profile = unconfined
			lxc.rootfs.mount = $work/lxc-root
		END
		lxc-start --lxcpath "$path" --name "$1" --logfile "$work/lxc.log" --logpriority ERROR
	}
	again() {
		lxc-stop --lxcpath "$path" --name "$1" --timeout 5
		lxc-start --lxcpath "$path" --name "$1"
	}
	execute() { lxc-attach --lxcpath "$path" --name "$1" -- /bin/calls "$2"; }
	remove() {
		lxc-stop --lxcpath "$path" --name "$1" --kill || true
		rm -r "${path:?}/$1"
	}
	id_of() { echo "lxc.payload.$1"; }
	install -d "$work/lxc-root"
	run probe 0 >/dev/null 2>&1 || {
		outcome "could not run: $(tail -n 1 "$work/lxc.log")"
		return 0
	}
	remove probe
	test_named
	forget_lxc
	outcome "tested: LXC $(lxc-start --version)"
}

# Without systemd nobody makes a scope for it, so this does: machine.slice/machine-NAME.scope, as systemd-machined does.
test_nspawn() {
	image=
	short=web
	local nspawn=(systemd-nspawn --quiet --register=no --keep-unit --as-pid2 --console=pipe --private-network)
	run() {
		local scope=$unified/machine.slice/machine-$1.scope
		mkdir -p "$scope"
		sh -c 'echo $$ >"$0/cgroup.procs" && exec "$@"' "$scope" "${nspawn[@]}" --machine="$1" --directory="$work/image" --read-only \
			--tmpfs=/tmp /bin/main "$2" >"$work/nspawn-$1.log" 2>&1 </dev/null &
		echo $! >"$work/nspawn-$1.pid"
		echo "$2" >"$work/nspawn-$1.calls"
		wait_while $! pgrep --parent $! || return 1
	}
	inside_of() { pgrep --parent "$(cat "$work/nspawn-$1.pid")" | head -n 1; }
	execute() {
		local leader
		leader=$(inside_of "$1")
		sh -c 'echo $$ >"$0/cgroup.procs" && exec "$@"' "$unified/machine.slice/machine-$1.scope" \
			nsenter --mount --uts --ipc --pid --target "$leader" --root=/proc/"$leader"/root -- /bin/calls "$2"
	}
	remove() {
		# shellcheck disable=SC2046 # several numbers
		kill -KILL $(inside_of "$1") "$(cat "$work/nspawn-$1.pid")" 2>/dev/null || true
		wait_for "the end of $1" grep -q 'populated 0' "$unified/machine.slice/machine-$1.scope/cgroup.events"
		find "$unified/machine.slice/machine-$1.scope" -depth -type d -exec rmdir {} +
	}
	again() {
		local calls
		calls=$(cat "$work/nspawn-$1.calls")
		remove "$1"
		run "$1" "$calls"
	}
	run probe 0 || {
		outcome "could not run: $(tail -n 1 "$work/nspawn-probe.log")"
		return 0
	}
	remove probe
	id_of() { echo "machine-$1.scope"; }
	test_named
	rmdir "$unified/machine.slice" 2>/dev/null || true
	outcome "tested: $(systemd-nspawn --version | head -n 1)"
}

# --- Kubernetes: control groups and files as the kubelet makes them; what runs in them is a process of this machine.

test_kubernetes() {
	local id uid pods driver
	install -d /var/log/pods /var/log/containers
	mount -t tmpfs tmpfs /var/log
	uid=1b4e28ba-2fa1-11d2-883f-0016d3cca427
	pods=/var/log/pods/shop_front-7d4b_$uid
	install -d "$pods/web" /var/log/containers
	for driver in systemd cgroupfs; do
		id=$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')
		ln -s "$pods/web/0.log" "/var/log/containers/front-7d4b_shop_web-$id.log"
		case $driver in
		systemd) pod=$group/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod${uid//-/_}.slice/cri-containerd-$id.scope ;;
		cgroupfs) pod=$group/kubepods/burstable/pod$uid/$id ;;
		esac
		mkdir -p "$unified/$pod"
		start_exporter <<-END
			pod pod: front-7d4b
			space namespace: shop
			byid container: $id
			named container: web
			elsewhere namespace: other
		END
		sh -c 'echo $$ >"$0/cgroup.procs" && exec "$@"' "$unified/$pod" "$work/image/bin/calls" 10
		for target in pod space byid named; do
			expect $target 10 "$driver driver, $target"
			expect_label $target 'pod="front-7d4b",namespace="shop"'
			expect_label $target "container=\"web\",id=\"$id\""
		done
		expect elsewhere 0 "$driver driver, another namespace"
		# Recreated: the same pod with a new container.
		stop_exporter
		rm "/var/log/containers/front-7d4b_shop_web-$id.log"
		rmdir "$unified/$pod"
	done
	outcome "tested: names of both drivers"
}

# --- In the namespaces, as their first process: when it ends, all others there end, and the mounts go.

if [[ ${1-} == --inside ]]; then
	engine=$2 work=$3 exporter=$4 group=$5
	if [[ $engine == *-2 ]]; then
		umount --recursive --lazy /sys/fs/cgroup
		mount -t cgroup2 cgroup2 /sys/fs/cgroup
		unified=/sys/fs/cgroup
	fi
	ip link set lo up
	trap stop_exporter EXIT
	"test_${engine%-2}"
	printf '%s\n' "${outcomes[@]}" >>"$work/outcomes"
	exit
fi

engines=()
must_install=
while (($#)); do
	case $1 in
	--exporter) exporter=$(realpath "${2:?which file?}") && shift 2 ;;
	--install) must_install=yes && shift ;;
	*)
		[[ " ${known[*]} " == *" $1 "* ]] || fail "unknown engine or option \"$1\"; known: ${known[*]}, --exporter FILE, --install"
		engines+=("$1") && shift
		;;
	esac
done
((${#engines[@]})) || engines=("${known[@]}")
((EUID == 0)) || fail "run this as root"
[[ -n $exporter ]] || for built in target/debug/exporter target/release/exporter; do
	[[ ! -x $built ]] || exporter=$(realpath "$built")
done
[[ -n $exporter ]] || fail "build the exporter first, or name it with --exporter"
[[ -n $unified ]] || fail "control groups of version 2 are not mounted"
for tool in gcc curl busybox pgrep; do
	command -v "$tool" >/dev/null || fail "there is no $tool: apt-get install gcc curl busybox-static procps"
done
work=$(mktemp -d "${TMPDIR:-/var/tmp}/exporter-engines.XXXXXX")
groups=()
clean_up() {
	local group
	rm -rf --one-file-system "$work"
	for group in "${groups[@]}"; do
		find /sys/fs/cgroup -depth -type d -path "*/$group*" -exec rmdir {} + 2>/dev/null || true
	done
}
trap clean_up EXIT
make_image
for engine in "${engines[@]}"; do
	if ! command -v "${program_of[$engine]}" >/dev/null && [[ -n $must_install && -n ${packages[$engine]} ]]; then
		# shellcheck disable=SC2086 # several packages
		apt-get install --yes --no-install-recommends ${packages[$engine]} >"$work/apt.log" 2>&1 || tail -n 3 "$work/apt.log"
	fi
	command -v "${program_of[$engine]}" >/dev/null || {
		echo "$engine: not installed (--install)" >>"$work/outcomes"
		continue
	}
	group=exporter-$engine-$$
	groups+=("$group")
	ways=("$engine")
	[[ $engine != @(docker|podman) || $unified == /sys/fs/cgroup ]] || ways+=("$engine-2")
	for way in "${ways[@]}"; do
		rm -rf --one-file-system "${work:?}/$engine"
		timeout 300 unshare --mount --net --pid --fork --kill-child --mount-proc --propagation private \
			"$0" --inside "$way" "$work" "$exporter" "$group" ||
			echo "$way: WRONG: the test ended early; the exporter's last words: $(tail -n 3 "$work/exporter.log" 2>/dev/null)" >>"$work/outcomes"
	done
done
say "outcomes:"
sed 's/^/  /' "$work/outcomes"
! grep -q WRONG "$work/outcomes"
