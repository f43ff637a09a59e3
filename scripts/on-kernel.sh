#!/usr/bin/env bash
# Runs commands on another kernel of Debian's, in an emulated machine: no KVM is needed.
#
#   scripts/on-kernel.sh KERNEL COMMANDS FILE...
#   scripts/on-kernel.sh --fetch KERNEL [cached]    only fetches it; with `cached`, says whether one is there
#
# KERNEL is a version of Debian's cloud kernel (6.1, 6.12: the newest of these is taken) or a package's name. COMMANDS
# is a script for busybox's shell, run as root. Each FILE lies at the same place there; its shared libraries are added.
# Nothing else of this machine is there, and of the kernel's modules only those that ON_KERNEL_MODULES names, with what they
# depend on; they are loaded before the commands run. What the commands print comes out here, and their exit status is this one's; it
# is 126 if the kernel complained of a fault of its own, and 125 if the machine did not do its work.
#
# Needs qemu-system-x86 and busybox-static. The kernel is kept in ~/.cache/exporter/kernels.
set -euo pipefail

packages=(qemu-system-x86 busybox-static)
seconds=${ON_KERNEL_SECONDS:-600} # until the machine is given up
read -ra modules <<<"${ON_KERNEL_MODULES:-}"

fail() {
	echo "on-kernel: $*" >&2
	exit 125
}

(($# >= 2)) || {
	sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"
	exit 125
}
for name in qemu-system-x86_64 busybox; do
	command -v "$name" >/dev/null || fail "there is no $name: apt-get install --no-install-recommends ${packages[*]}"
done

# The newest package of a version, for the packages' names sort by age.
newest() {
	local version=${1//./\\.}
	apt-cache pkgnames "linux-image-$1" |
		grep -E "^linux-image-$version\.[0-9]+([-+][a-z0-9]+)?-cloud-amd64$" | sort -V | tail -n 1 || true
}

# Prints the path of the kernel's image.
get_kernel() {
	local package=$1 cache=${XDG_CACHE_HOME:-$HOME/.cache}/exporter/kernels made
	[[ $package == linux-image-* ]] || package=$(newest "$package")
	[[ -n $package ]] || fail "apt knows no linux-image-$1.*-cloud-amd64: run apt-get update, with Debian's security updates among its sources"
	# A directory of an earlier version of this script has no modules.
	if [[ ! -e $cache/$package || ! -e $cache/modules-$package ]]; then
		mkdir -p "$cache"
		made=$(mktemp -d "$cache/part.XXXXXX")
		(
			cd "$made"
			apt-get -qq -o Acquire::Retries=5 download "$package" >&2
			dpkg-deb --fsys-tarfile ./*.deb |
				tar -x --wildcards './boot/vmlinuz-*' './lib/modules/*/kernel/net/*' './lib/modules/*/kernel/drivers/net/*' \
					'./lib/modules/*/kernel/lib/*' './lib/modules/*/kernel/arch/*' './lib/modules/*/kernel/crypto/*'
			mkdir modules
			find lib -name '*.ko*' -exec mv -t modules {} +
			find modules -name '*.xz' -exec xz -d {} +
		) || fail "could not download and unpack $package; the messages are above"
		# Another process may have been faster; both have the same file.
		[[ -e $cache/modules-$package ]] || mv -T "$made/modules" "$cache/modules-$package" 2>/dev/null || true
		mv -f "$made"/boot/vmlinuz-* "$cache/$package"
		rm -rf "$made"
	fi
	echo "$cache/$package"
}

add() {
	[[ -e $work/root$1 ]] || install -D "$(realpath "$1")" "$work/root$1"
}

# Adds a module, those that it depends on before it.
add_module() {
	local file name
	# Names of files and of modules differ in these two characters.
	file=$(find "$directory" -name "${1//[-_]/[-_]}.ko")
	[[ -n $file ]] || return 0 # built in
	[[ -e $work/root/modules/$1.ko ]] && return
	for name in $(grep -aoPm1 '(?<=\0depends=)[^\0]*' "$file" | tr -d '\0' | tr , ' '); do
		add_module "$name"
	done
	mkdir -p "$work/root/modules"
	cp "$file" "$work/root/modules/$1.ko"
	echo "insmod /modules/$1.ko" >>"$work/root/modules/load"
}

if [[ $1 == --fetch ]]; then
	if [[ ${3-} == cached ]]; then
		compgen -G "${XDG_CACHE_HOME:-$HOME/.cache}/exporter/kernels/modules-linux-image-$2.*" >/dev/null
	else
		get_kernel "$2" >/dev/null
	fi
	exit
fi
kernel=$1 commands=$2
shift 2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
image=$(get_kernel "$kernel")
mkdir -p "$work"/root/{bin,dev,proc,sys,tmp,run,etc}
cp "$(command -v busybox)" "$work/root/bin/busybox"
echo 'root:x:0:0::/:/bin/sh' >"$work/root/etc/passwd"
for file; do
	[[ $file == /* && -f $file ]] || fail "$file is not the absolute path of a file"
	add "$file"
	while read -r library; do
		add "$library"
	done < <(ldd "$file" 2>/dev/null | grep -oE '/[^ ]+' | sort -u)
done
directory=$(dirname "$image")/modules-$(basename "$image")
for name in "${modules[@]}"; do
	add_module "$name"
done
printf '%s\n' "$commands" >"$work/root/commands"
cat >"$work/root/init" <<-'END'
	#!/bin/busybox sh
	export PATH=/bin:/usr/bin HOME=/
	/bin/busybox --install -s /bin
	mount -t devtmpfs dev /dev
	mount -t proc proc /proc
	mount -t sysfs sys /sys
	mount -t tracefs trace /sys/kernel/tracing
	ip link set lo up
	stty -F /dev/ttyS1 raw
	[ ! -e /modules/load ] || sh -e /modules/load >/dev/ttyS1 2>&1 || echo 'a module was refused' >/dev/ttyS1
	sh /commands >/dev/ttyS1 2>&1 </dev/null
	status=$?
	# An emulated CPU may well be slow; anything else that the kernel complains of is a failure.
	dmesg | grep -E 'BUG:|WARNING:|Oops' | grep -v 'soft lockup' >/dev/ttyS1 && status=126
	echo "
	exit status $status" >/dev/ttyS1
	# It waits until what was written has left the machine.
	stty -F /dev/ttyS1 raw
	poweroff -f
END
chmod 755 "$work/root/init"
(cd "$work/root" && find . | busybox cpio -o -H newc -R 0:0 2>/dev/null) >"$work/init.cpio"

timeout "$seconds" qemu-system-x86_64 -accel tcg,thread=multi -cpu max -machine q35 -smp 2 -m 1536 -nodefaults \
	-no-user-config -display none -no-reboot -serial "file:$work/console" -serial "file:$work/output" \
	-kernel "$image" -initrd "$work/init.cpio" \
	-append "console=ttyS0 quiet panic=-1 no_timer_check" </dev/null >&2 || fail "qemu ended with status $? (124: after $seconds s):
$(tail -n 50 "$work/output" "$work/console")"
status=$(tail -n 1 "$work/output" | sed -nE 's/^exit status ([0-9]+)$/\1/p')
[[ -n $status ]] || fail "the machine ended before its commands did; the last of what they and its kernel printed:
$(tail -n 20 "$work/output")
$(tail -n 80 "$work/console")"
head -n -2 "$work/output"
exit "$status"
