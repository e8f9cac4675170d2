#!/usr/bin/env bash
# Makes the guest's disk: a small Debian userland of copies of this machine's
# programs, the kernel's modules, an image to run, the tests.
#
#   disk.sh DISK KERNEL IMAGE SKIFF LAUNCHER TEST...
set -euo pipefail
disk=$1 kernel=$2 image=$3 skiff=$4 launcher=$5
shift 5
here=$(cd "$(dirname "$0")" && pwd)
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT

add_program() { # FILE [PLACE]: with its libraries where the loader looks
  local library
  install -D -m 0755 "$1" "$root/${2:-$1}"
  for library in $(ldd "$1" 2>/dev/null | grep -o '/[^ ]*' || true); do
    [ -e "$root$library" ] || install -D -m 0755 "$library" "$root$library"
  done
}
add_stripped() { # FILE PLACE
  add_program "$1" "$2"
  strip --strip-debug "$root/$2"
}

# Debian's merged /usr, so that each program has both of its names.
mkdir -p "$root"/{dev,proc,sys,run,root,tmp,etc,var/tmp,var/lib,usr/bin,usr/sbin,usr/lib,usr/lib64}
for name in bin sbin lib lib64; do ln -s "usr/$name" "$root/$name"; done
chmod 1777 "$root/tmp" "$root/var/tmp"
add_program /bin/busybox /usr/bin/busybox
for name in $(/bin/busybox --list); do
  [ -e "$root/usr/bin/$name" ] || ln -s busybox "$root/usr/bin/$name"
done
rm -f "$root"/usr/bin/{modprobe,unshare,ldd}
for name in modprobe nft mkfs.erofs mke2fs runc unshare; do
  program=$(PATH=$PATH:/usr/sbin:/sbin command -v "$name") || { echo "test-v2: $name is missing" >&2; exit 1; }
  add_program "$(readlink -f "$program")" "/usr/sbin/$name"
done
# Debian's is a bash script around the same call.
printf '#!/bin/sh\nexec /lib64/ld-linux-x86-64.so.2 --list "$1"\n' >"$root/usr/bin/ldd"
chmod 0755 "$root/usr/bin/ldd"
printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n' >"$root/etc/passwd"
printf 'root:x:0:\nnogroup:x:65534:\n' >"$root/etc/group"
printf '127.0.0.1 localhost\n' >"$root/etc/hosts"
: >"$root/etc/resolv.conf"
[ ! -e /etc/mke2fs.conf ] || cp /etc/mke2fs.conf "$root/etc/"

cp -a "$kernel/lib/modules" "$root/usr/lib/"
cp -a "$image" "$root/image"
install -m 0755 "$here/guest.sh" "$root/usr/sbin/guest"
install -m 0755 "$here/commands.sh" "$root/usr/sbin/commands"
add_stripped "$skiff" /usr/bin/skiff
# The tests know it by this path.
add_stripped "$launcher" "$launcher"
mkdir "$root/tests"
for test in "$@"; do
  name=$(basename "$test")
  add_stripped "$test" "/tests/${name%-*}"
done

rm -f "$disk"
truncate -s 3G "$disk"
PATH=$PATH:/usr/sbin:/sbin mke2fs -q -F -t ext4 -O ^has_journal -d "$root" "$disk"
