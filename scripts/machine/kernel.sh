#!/usr/bin/env bash
# Debian's stock kernel, with the modules that a host of ours needs and an
# initramfs that finds the disk. Prints the folder:
#
#   vmlinuz, initrd      for QEMU
#   lib/modules/VERSION  for the disk
#
# Kept by the hash of this recipe in the user's cache folder.
set -euo pipefail
cd "$(dirname "$0")"
. ./modules.sh

# What the machine's disk lies on.
boot_modules=(virtio_pci virtio_blk ext4)
# What a container is made of, and what runs virtual machines. The machine
# loads them when they are first needed, as users' machines do.
host_modules=(
  overlay erofs loop tun veth bridge br_netfilter
  nf_tables nft_chain_nat nft_connlimit nft_ct nft_fib_inet nft_limit nft_masq
  nft_nat nft_redir nft_reject_inet nft_reject_ipv4 nft_socket nft_tproxy
  kvm-amd
)

read -r package version < <(./package.sh linux-image-amd64)
cache=${SKIFF_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/skiff}
key=$(cat kernel.sh modules.sh load.sh boot.sh /bin/busybox <(echo "$package") | sha256sum | cut -c1-16)
out=$cache/kernel-$key
# One maker at a time: who comes later finds it done.
exec 9>"$cache/kernel.lock"
flock 9
if [ -e "$out/done" ]; then
  echo "$out"
  exit 0
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
modules=$package/lib/modules/$version
rm -rf "$out"
mkdir -p "$out/lib/modules/$version"
cp "$package/boot/vmlinuz-$version" "$out/vmlinuz"
cp "$modules"/modules.{builtin,builtin.modinfo,order} "$out/lib/modules/$version/"
for file in $(files_of "$package" "$version" "${boot_modules[@]}" "${host_modules[@]}"); do
  install -D -m 0644 "$file" "$out/lib/modules/$version/${file#*"/lib/modules/$version/"}"
done
depmod -b "$out" "$version"

initramfs_root "$work/initrd" boot.sh "$package" "$version" "${boot_modules[@]}"
cp load.sh "$work/initrd/"
pack_initramfs "$work/initrd" | gzip -1 >"$out/initrd"
touch "$out/done"
echo "$out"
