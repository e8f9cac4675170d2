#!/usr/bin/env bash
# Unpacks Debian's stock kernel, with the modules that a container needs and
# an initramfs that finds the disk. Nothing is installed. Prints the folder:
#
#   vmlinuz, initrd      for QEMU
#   lib/modules/VERSION  for the disk
#
# Kept by the hash of this recipe in the user's cache folder.
set -euo pipefail
cd "$(dirname "$0")"

# What the guest's disk lies on.
boot_modules=(virtio_pci virtio_blk ext4)
# What a container is made of. The guest loads them when they are first
# needed, as users' machines do.
container_modules=(
  overlay erofs loop tun veth
  nf_tables nft_chain_nat nft_connlimit nft_ct nft_fib_inet nft_limit nft_masq
  nft_nat nft_redir nft_reject_inet nft_reject_ipv4 nft_socket nft_tproxy
)
say() { echo "test-v2: $*" >&2; }

cache=${SKIFF_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/skiff}
key=$(cat kernel.sh boot.sh /bin/busybox | sha256sum | cut -c1-16)
out=$cache/kernel-$key
mkdir -p "$cache"
# One maker at a time: who comes later finds it done.
exec 9>"$cache/kernel.lock"
flock 9
if [ -e "$out/done" ]; then
  echo "$out"
  exit 0
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
package=$(apt-cache depends linux-image-amd64 | awk '$1 == "Depends:" && $2 ~ /^linux-image-/ { print $2; exit }')
if [ -z "$package" ]; then
  say "apt knows no linux-image-amd64: this test needs Debian's package sources"
  exit 1
fi
say "unpacking $package (once)"
# apt's sandbox user may not write into a private folder.
(cd "$work" && apt-get -qq -o APT::Sandbox::User=root download "$package" >&2)
dpkg -x "$work/$package"_*.deb "$work/kernel"
version=${package#linux-image-}
modules=$work/kernel/lib/modules/$version
[ -d "$modules" ] || modules=$work/kernel/usr/lib/modules/$version
base=${modules%/lib/modules/*}
depmod -b "$base" "$version"

files_of() { # MODULE...: their files and those that they need, in order
  modprobe -d "$base" -S "$version" --ignore-install -a --show-depends "$@" \
    | awk '$1 == "insmod" && !seen[$2]++ { print $2 }'
}

rm -rf "$out"
mkdir -p "$out/lib/modules/$version" "$work/initrd/bin" "$work/initrd/modules"
cp "$work/kernel/boot/vmlinuz-$version" "$out/vmlinuz"
cp "$modules"/modules.{builtin,builtin.modinfo,order} "$out/lib/modules/$version/"
files=$(files_of "${boot_modules[@]}" "${container_modules[@]}")
for file in $files; do
  install -D -m 0644 "$file" "$out/lib/modules/$version/${file#"$modules"/}"
done
depmod -b "$out" "$version"

cp /bin/busybox "$work/initrd/bin/"
install -m 0755 boot.sh "$work/initrd/init"
number=100
for file in $(files_of "${boot_modules[@]}"); do
  cp "$file" "$work/initrd/modules/$number-${file##*/}"
  number=$((number + 1))
done
(cd "$work/initrd" && find . | busybox cpio -o -H newc 2>/dev/null) | gzip -1 >"$out/initrd"
touch "$out/done"
echo "$out"
