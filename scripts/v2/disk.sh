#!/usr/bin/env bash
# Makes the machine's disk: a small Debian userland, an image to run, the tests.
#
#   disk.sh DISK KERNEL IMAGE SKIFF LAUNCHER TEST...
set -euo pipefail
disk=$1 kernel=$2 image=$3 skiff=$4 launcher=$5
shift 5
here=$(cd "$(dirname "$0")" && pwd)
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
. "$here/../machine/root.sh"

start_root "$kernel" "$here/guest.sh"
rm -f "$root"/usr/bin/{unshare,ldd}
add_named ip nft mkfs.erofs mke2fs pgrep runc unshare
# Debian's is a bash script around the same call.
printf '#!/bin/sh\nexec /lib64/ld-linux-x86-64.so.2 --list "$1"\n' >"$root/usr/bin/ldd"
chmod 0755 "$root/usr/bin/ldd"
printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n' >"$root/etc/passwd"
printf 'root:x:0:\nnogroup:x:65534:\n' >"$root/etc/group"
printf '127.0.0.1 localhost\n' >"$root/etc/hosts"
: >"$root/etc/resolv.conf"
[ ! -e /etc/mke2fs.conf ] || cp /etc/mke2fs.conf "$root/etc/"

cp -a "$image" "$root/image"
install -m 0755 "$here/commands.sh" "$root/usr/sbin/commands"
add_stripped "$skiff" /usr/bin/skiff
# The tests know it by this path.
add_stripped "$launcher" "$launcher"
add_tests "$@"
make_disk "$disk" 3G
