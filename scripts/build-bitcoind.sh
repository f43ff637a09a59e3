#!/usr/bin/env bash
# Builds bitcoind and bitcoin-cli with USDT probes, for the tests that trace the real program.
#
# Prints the directory that holds both on stdout; everything else goes to stderr. The directory lies outside the
# tree and is named after what went into it (version, flags, compiler), so a second run returns at once and
# a change of any of them builds anew. An interrupted build goes on where it stopped.
#
# Installs from Debian, if missing: the packages listed below. Needs cargo, and root or sudo to install.
# EXPORTER_CACHE: the parent directory of the result (default: ~/.cache/exporter).
set -euo pipefail

# The package carries the whole Bitcoin Core source; cargo fetches it from the registry it is set up for
# and verifies its checksum.
package=libbitcoinkernel-sys
version=0.4.1
debian=(g++ make cmake pkgconf libboost-dev libevent-dev systemtap-sdt-dev)
flags=(
  -DCMAKE_BUILD_TYPE=Release -DWITH_USDT=ON -DENABLE_WALLET=OFF
  -DENABLE_IPC=OFF -DWITH_ZMQ=OFF -DBUILD_GUI=OFF -DBUILD_TESTS=OFF -DBUILD_BENCH=OFF -DBUILD_TX=OFF
  -DBUILD_UTIL=OFF -DBUILD_BITCOIN_BIN=OFF -DBUILD_DAEMON=ON -DBUILD_CLI=ON
  -DENABLE_EXTERNAL_SIGNER=OFF -DWITH_EMBEDDED_ASMAP=OFF -DINSTALL_MAN=OFF -DWITH_CCACHE=OFF
)

log() { echo "build-bitcoind: $*" >&2; }
fail() {
  log "$*"
  exit 1
}

install_missing() {
  local missing=() name root=()
  for name in "${debian[@]}"; do
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null) == installed ]] || missing+=("$name")
  done
  ((${#missing[@]})) || return 0
  ((EUID == 0)) || root=(sudo)
  log "installing ${missing[*]}"
  # Another installation may be under way: wait for it rather than fail.
  local wait=(-o DPkg::Lock::Timeout=600 -o Acquire::Retries=5)
  "${root[@]}" apt-get "${wait[@]}" update -q >&2 || log "apt-get update failed; trying with the old lists"
  "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get "${wait[@]}" install -y -q --no-install-recommends "${missing[@]}" >&2 ||
    fail "cannot install ${missing[*]}: install them by hand and run this again"
}

# A throw-away manifest makes cargo resolve, fetch and verify the one package.
fetch_source() {
  local destination=$1 work=$1.part
  rm -rf "$work"
  mkdir -p "$work/src"
  : >"$work/src/lib.rs"
  cat >"$work/Cargo.toml" <<MANIFEST
[package]
name = "bitcoin-source"
version = "0.0.0"
edition = "2021"
[dependencies]
$package = "=$version"
MANIFEST
  log "fetching $package $version"
  (cd "$work" && CARGO_NET_RETRY=10 cargo vendor --quiet --versioned-dirs vendor >/dev/null) ||
    fail "cargo cannot fetch $package $version: check its registry and the network"
  [[ -f $work/vendor/$package-$version/bitcoin/CMakeLists.txt ]] ||
    fail "$package $version has no bitcoin/CMakeLists.txt: the package has changed its shape"
  mv "$work/vendor/$package-$version/bitcoin" "$destination"
  rm -rf "$work"
}

command -v cargo >/dev/null || fail "cargo is not in PATH: install Rust first"
install_missing
# They would change the binary without changing its key.
unset CFLAGS CXXFLAGS CPPFLAGS LDFLAGS CC CXX

key=$(printf '%s\n' "$package $version" "${flags[@]}" "$(c++ --version | head -n 1)" "$(uname -m)" |
  sha256sum | cut -c 1-16)
cache=${EXPORTER_CACHE:-$HOME/.cache/exporter}
mkdir -p "$cache"
result=$(realpath "$cache")/bitcoind-$key
work=$result.build

if [[ ! -d $result ]]; then
  exec 9>"$result.lock"
  flock -n 9 || { log "another build of $result is under way; waiting" && flock 9; }
fi
if [[ ! -d $result ]]; then # The build that was waited for may have made it.
  mkdir -p "$work"
  [[ -d $work/bitcoin ]] || fetch_source "$work/bitcoin"
  log "building $result (about 12 CPU minutes; output in $work/log)"
  # The lock must not outlive this script in a child that stays behind: hence 9>&-.
  {
    cmake -S "$work/bitcoin" -B "$work/build" "${flags[@]}" &&
      nice cmake --build "$work/build" -j "$(nproc)" --target bitcoind bitcoin-cli
  } >"$work/log" 2>&1 9>&- || {
    tail -n 30 "$work/log" >&2
    fail "the build failed: see $work/log"
  }
  probes=$(readelf -n "$work/build/bin/bitcoind" 2>/dev/null | grep -c '^ *Provider:' || true)
  ((probes > 0)) || fail "the bitcoind just built has no USDT probes: see USDT in $work/log"
  rm -rf "$result.part"
  mkdir "$result.part"
  cp "$work/build/bin/bitcoind" "$work/build/bin/bitcoin-cli" "$result.part/"
  mv "$result.part" "$result"
  rm -rf "$work"
  log "built $result with $probes probe sites"
fi
echo "$result"
