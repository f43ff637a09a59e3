#!/usr/bin/env bash
# Installs what is missing to build the exporter on Debian 12 or 13, and says what. Silent when all is there.
#
#   scripts/install-deps.sh            to build and run it
#   scripts/install-deps.sh --tests    and to test it
#   scripts/install-deps.sh --lint     and to check its style
#   scripts/install-deps.sh --bench    and to compare it with others
#
# Debian's packages need root or sudo. Rust is Debian's business only if new enough (Debian 13 has 1.85); otherwise it
# comes from rustup, for the user who runs this.
set -euo pipefail

# clang compiles the BPF programs; libelf and zlib are libbpf's; sys/sdt.h (systemtap-sdt-dev) and gcc make the
# programs to trace; openssl makes certificates. A|B: what is installed of them, else the first that this Debian has.
packages=('clang-14|clang' gcc make libc6-dev libelf-dev zlib1g-dev pkg-config systemtap-sdt-dev openssl curl
	ca-certificates procps)
# prometheus scrapes the exporter and brings promtool, alertmanager sends its alerts on; qemu and busybox run it on other kernels; the second line has what
# sends packets and looks at interfaces; the third builds bitcoind and other programs; the last ones are programs to
# trace, with what they need to be run, what reads or translates them, and file systems to run them from. nginx serves lists
# that minisign signs, and fail2ban bans.
test_packages=(prometheus prometheus-alertmanager qemu-system-x86 busybox-static xz-utils lld
	iproute2 iputils-ping netcat-openbsd nftables bpftool openssh-server openssh-client nmap hping3
	python3 python3-jsonschema python3-prometheus-client g++ gdb dwz cmake libboost-dev libevent-dev libsqlite3-dev binutils libpam0g-dev util-linux libfaketime golang-go
	mariadb-server mariadb-client redis-tools
	'postgresql-15|postgresql-17' 'openjdk-17-jdk-headless|openjdk-21-jdk-headless'
	'python3.11-minimal|python3.13-minimal' 'libpython3.11|libpython3.13' 'php8.2-cli|php8.4-cli'
	ruby 'libruby3.1|libruby3.3' libvirt0 libpam-modules 'libssl3|libssl3t64' libstdc++6
	nginx-light minisign fail2ban
	git valgrind qemu-user xfsprogs btrfs-progs squashfs-tools erofs-utils bindfs musl-tools)
lint_packages=('clang-format-14|clang-format' shellcheck git)
bench_packages=(bpftrace ethtool ipset iptables nftables xdp-tools prometheus-node-exporter)
rust=1.88 # rust-version in Cargo.toml
# What rustup installs here by itself anyway.
toolchain=$(sed -n 's/^channel = "\(.*\)"$/\1/p' "$(dirname "${BASH_SOURCE[0]}")/../rust-toolchain.toml")

say() {
	echo "install-deps: $*" >&2
}

fail() {
	say "$*"
	exit 1
}

as_root() {
	if ((EUID == 0)); then
		"$@"
	else
		command -v sudo >/dev/null || fail "neither root nor sudo: as root, run: $*"
		sudo "$@"
	fi
}

# Another installation may be under way, and a download may fail once: neither is a reason to give up.
apt_options=(-o DPkg::Lock::Timeout=600 -o Acquire::Retries=5)

# At most once; lists that are there are better than none.
apt_update() {
	[[ -z ${updated-} ]] || return 0
	updated=yes
	as_root apt-get "${apt_options[@]}" update -qq >&2 </dev/null ||
		say "apt-get update failed; trying with the lists that are there"
}

is_installed() {
	[[ $(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null) == installed ]]
}

is_available() {
	[[ -n $(apt-cache show --no-all-versions "$1" 2>/dev/null) ]]
}

# One line each, alternatives (A|B) still as they are: apt may know of none yet.
missing_packages() {
	local choice name names
	for choice in "${packages[@]}"; do
		IFS='|' read -ra names <<<"$choice"
		for name in "${names[@]}"; do
			is_installed "$name" && continue 2
		done
		echo "$choice"
	done
}

# The first of the alternatives that apt knows; the first of all where it knows none, for apt to complain of.
choose() {
	local name names
	IFS='|' read -ra names <<<"$1"
	for name in "${names[@]}"; do
		is_available "$name" && break
	done
	is_available "$name" || name=${names[0]}
	echo "$name"
}

# A package that brings a service would start it at once. policy-rc.d is Debian's way to say no; one that is
# there already belongs to somebody else and stays.
apt_install() {
	local policy=/usr/sbin/policy-rc.d made=
	if [[ ! -e $policy ]]; then
		printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
		made=yes
		as_root chmod 755 "$policy"
	fi
	local status=0
	as_root env DEBIAN_FRONTEND=noninteractive apt-get "${apt_options[@]}" -o Dpkg::Use-Pty=0 \
		install -y -qq --no-install-recommends "$@" >&2 </dev/null || status=$?
	[[ -z $made ]] || as_root rm -f "$policy"
	return "$status"
}

# sssd changes how a machine logs people in, and crowdsec makes itself known to a service on the Internet. So they are not
# installed: the tests only look at the libraries of the one, and run the programs of the other.
unpack() {
	local package=$1 directory=${XDG_CACHE_HOME:-$HOME/.cache}/exporter/$2 made
	[[ -e $directory ]] && return
	say "unpacking $package, uninstalled, into $directory"
	made=$(mktemp -d)
	apt_update
	(cd "$made" && apt-get "${apt_options[@]}" -qq download "$package" >&2 && dpkg-deb -x "$package"_*.deb unpacked) ||
		fail "could not download and unpack $package; the messages are above"
	mkdir -p "${directory%/*}"
	mv "$made/unpacked" "$directory"
	rm -rf "$made"
}

# Where this machine's packages come from: a mirror may be all that it reaches.
debian_mirror() {
	local uri
	# shellcheck disable=SC2016 # apt's own
	uri=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null | grep -m 1 '/debian/$') || true
	echo "${uri:-http://deb.debian.org/debian/}"
}

# Debian's memcached is stripped of its functions' names. Built from Debian's source it has them.
build_memcached() {
	local directory=${XDG_CACHE_HOME:-$HOME/.cache}/exporter/memcached made options
	[[ -e $directory ]] && return
	say "building memcached into $directory"
	made=$(mktemp -d)
	mkdir -p "$made/lists/partial"
	echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(debian_mirror)" \
		"$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release) main" >"$made/sources.list"
	options=("${apt_options[@]}" -qq -o "Dir::Etc::sourcelist=$made/sources.list" -o Dir::Etc::sourceparts=-
		-o "Dir::State::lists=$made/lists")
	(cd "$made" && apt-get "${options[@]}" update && apt-get "${options[@]}" source --download-only memcached &&
		tar xf memcached_*.orig.tar.* && cd memcached-*/ && ./configure --quiet --disable-docs && make -s memcached) \
		>&2 || fail "could not build memcached; the messages are above"
	mkdir -p "$directory"
	mv "$made"/memcached-*/memcached "$directory/"
	rm -rf "$made"
}

# The emulated machines' kernels: here rather than by the first test that needs one.
fetch_kernels() {
	local kernel
	for kernel in 6.1 6.12; do
		scripts/on-kernel.sh --fetch "$kernel" cached && continue
		apt_update
		# Debian 13 has none of the first version.
		[[ -n $(apt-cache pkgnames "linux-image-$kernel.") ]] || continue
		say "fetching Debian's kernel $kernel for the emulated machines"
		scripts/on-kernel.sh --fetch "$kernel" || fail "could not fetch it; the messages are above"
	done
}

install_packages() {
	local missing index
	mapfile -t missing < <(missing_packages)
	((${#missing[@]})) || return 0
	command -v apt-get >/dev/null || fail "not Debian: install the equivalents of ${missing[*]}"
	apt_update
	for index in "${!missing[@]}"; do
		missing[index]=$(choose "${missing[index]}")
	done
	say "installing from Debian: ${missing[*]}"
	local had_clusters=
	[[ ! -e /etc/postgresql ]] || had_clusters=yes
	apt_install "${missing[@]}" ||
		fail "apt-get could not install all of: ${missing[*]}; its message is above"
	local name
	# A package, and its service.
	for name in prometheus:prometheus prometheus-alertmanager:prometheus-alertmanager prometheus-node-exporter:prometheus-node-exporter mariadb-server:mariadb openssh-server:ssh nginx-light:nginx fail2ban:fail2ban; do
		[[ " ${missing[*]} " == *" ${name%:*} "* ]] || continue
		command -v systemctl >/dev/null || continue
		as_root systemctl disable --quiet "${name#*:}" 2>/dev/null || true
		say "the ${name#*:} service stays off; the tests start their own"
	done
	# Debian makes a cluster with the server; apt_install has kept it from starting.
	if [[ -z $had_clusters && -e /etc/postgresql ]] && command -v systemctl >/dev/null; then
		as_root systemctl disable --quiet postgresql 2>/dev/null || true
		say "the postgresql service stays off; the tests make clusters of their own"
	fi
}

rust_is_new_enough() {
	local version
	version=$(cargo --version 2>/dev/null | awk '{print $2}') && [[ -n $version ]] &&
		printf '%s\n%s\n' "$rust" "$version" | sort -V -C
}

# rustup's own installer, as https://sh.rustup.rs fetches it.
rustup_init() {
	local url init status=0
	url=https://static.rust-lang.org/rustup/dist/$(uname -m)-unknown-linux-gnu/rustup-init
	init=$(mktemp -d)
	say "no cargo $rust or newer: installing Rust from ${url%/rustup/*} into ${CARGO_HOME:-$HOME/.cargo}"
	{ curl --proto '=https' --tlsv1.2 --retry 5 --retry-all-errors -sSf "$url" -o "$init/rustup-init" &&
		curl --proto '=https' --tlsv1.2 --retry 5 --retry-all-errors -sSf "$url.sha256" -o "$init/sha256" &&
		awk -v file="$init/rustup-init" '{print $1 "  " file}' "$init/sha256" | sha256sum --check --quiet &&
		chmod 700 "$init/rustup-init" &&
		"$init/rustup-init" -y --no-modify-path --profile minimal --default-toolchain "$toolchain" >&2; } || status=$?
	rm -rf "$init"
	return "$status"
}

install_rust() {
	# Before Debian's cargo, which is why rustup was asked.
	[[ ! -x ${CARGO_HOME:-$HOME/.cargo}/bin/cargo ]] || export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
	rust_is_new_enough && return
	if command -v rustup >/dev/null; then
		say "cargo is older than $rust or missing: installing Rust $toolchain with rustup"
		rustup toolchain install "$toolchain" --profile minimal >&2 ||
			fail "rustup could not install Rust; its message is above"
	else
		# It refuses to stand beside another cargo, unless told that it may.
		RUSTUP_INIT_SKIP_PATH_CHECK=yes rustup_init ||
			fail "rustup could not install Rust. Install Rust $rust or newer by hand and run this again"
		export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
		say "for cargo in your own shell: . ${CARGO_HOME:-$HOME/.cargo}/env"
	fi
	rust_is_new_enough || fail "cargo $rust or newer is still not in PATH; found: $(command -v cargo || echo none)"
}

install_rust_lints() {
	cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1 && return
	say "adding rustfmt and clippy with rustup"
	rustup component add rustfmt clippy >&2 ||
		fail "cannot add rustfmt and clippy; with a Rust that is not from rustup, install them its way"
}

# The tests run by it, and trace it: it has USDT probes of its own.
install_nextest() {
	command -v cargo-nextest >/dev/null && return
	say "building cargo-nextest (some minutes)"
	CARGO_NET_RETRY=10 CARGO_PROFILE_DEV_DEBUG=0 cargo install --quiet --locked --profile dev cargo-nextest >&2 ||
		fail "cargo cannot install cargo-nextest; the lines above say why"
}

lint='' tests=''
for option in "$@"; do
	case $option in
	--tests) packages+=("${test_packages[@]}") tests=yes ;;
	--lint) packages+=("${lint_packages[@]}") lint=yes ;;
	--bench) packages+=("${bench_packages[@]}") ;;
	*) fail "unknown option \"$option\"; known: --tests --lint --bench" ;;
	esac
done
install_packages
[[ -z $tests ]] || unpack sssd-common sssd
[[ -z $tests ]] || unpack crowdsec crowdsec
[[ -z $tests ]] || build_memcached
[[ -z $tests ]] || fetch_kernels
install_rust
[[ -z $tests ]] || install_nextest
[[ -z $lint ]] || install_rust_lints
