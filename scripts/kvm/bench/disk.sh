#!/usr/bin/env bash
# Makes the disk of the machine in which monitors and instances are measured.
#
#   disk.sh DISK KERNEL GUEST-KERNEL IMAGES PROGRAMS AGENT [FIRECRACKER]
set -euo pipefail
disk=$1 kernel=$2 guest=$3 images=$4 programs=$5 agent=$6 firecracker=${7:-}
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
# The server's account has to pass through.
chmod 711 "$work"
trap 'rm -rf "$work"' EXIT
. "$here/../../machine/modules.sh"
. "$here/../../machine/root.sh"

root=$work/root
mkdir "$root"
start_root "$kernel" "$here/guest.sh"
for program in skiff skiff-vmm skiff-bench; do add_program "$programs/$program" "/usr/bin/$program"; done
add_program "$agent" /usr/bin/skiff-agent
add_named curl mke2fs nft
mkdir "$root/images"
cp -a "$images"/{testapp,hello-python} "$root/images/"
# Here rather than on an emulated processor.
read -r package _ < <("$here/../../machine/package.sh" linux-image-cloud-amd64)
"$programs/skiff" kernel install --data-dir "$root/var/lib/skiff" --agent "$agent" "$package/package.deb" >&2
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
make_disk "$disk" 4G
