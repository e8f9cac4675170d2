#!/usr/bin/env bash
# Makes the disk of the machine in which monitors are measured.
#
#   disk.sh DISK KERNEL GUEST-KERNEL MONITOR [FIRECRACKER]
set -euo pipefail
disk=$1 kernel=$2 guest=$3 monitor=$4 firecracker=${5:-}
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
. "$here/../../machine/modules.sh"
. "$here/../../machine/root.sh"

root=$work/root
mkdir "$root"
start_root "$kernel" "$here/guest.sh"
add_program "$monitor" /usr/bin/skiff-vmm
add_program "$(command -v qemu-system-x86_64)" /usr/bin/qemu
[ -z "$firecracker" ] || add_program "$firecracker" /usr/bin/firecracker
mkdir -p "$root/usr/share/qemu" "$root/guest" "$work/initrd" "$work/layer"
cp -L /usr/share/qemu/{bios-microvm.bin,qboot.rom} "$root/usr/share/qemu/"

cp "$guest/vmlinuz" "$root/guest/"
# Of archives that follow each other the last one's files stay.
install -m 0755 "$here/init.sh" "$work/initrd/init"
cat "$guest/initrd" <(pack_initramfs "$work/initrd") >"$root/guest/initrd"
cp /bin/busybox "$work/layer/"
mkfs.erofs --quiet "$root/guest/layer" "$work/layer" >/dev/null
make_disk "$disk" 1G
