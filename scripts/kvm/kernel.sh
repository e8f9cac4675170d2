#!/usr/bin/env bash
# Debian's stock cloud kernel as a guest's, with an initramfs of busybox and
# the modules of its devices. Prints the folder:
#
#   vmlinuz, initrd, version
#   modules   an initramfs of what the agent needs, without a first process
#
# Kept by the hash of this recipe in the user's cache folder.
set -euo pipefail
cd "$(dirname "$0")"
. ../machine/modules.sh

modules=(virtio_mmio virtio_blk virtio_net virtio-rng vmw_vsock_virtio_transport erofs)
# Containers, writable layers on disk, and the way to the host's services.
agent_modules=("${modules[@]}" overlay ext4 nf_tables)

read -r package version < <(../machine/package.sh linux-image-cloud-amd64)
cache=${SKIFF_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/skiff}
key=$(cat kernel.sh init.sh ../machine/modules.sh ../machine/load.sh /bin/busybox <(echo "$package") | sha256sum | cut -c1-16)
out=$cache/guest-$key
# One maker at a time: who comes later finds it done.
exec 9>"$cache/guest.lock"
flock 9
if [ ! -e "$out/done" ]; then
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  rm -rf "$out"
  mkdir -p "$out"
  initramfs_root "$work/initrd" init.sh "$package" "$version" "${modules[@]}"
  cp ../machine/load.sh "$work/initrd/"
  pack_initramfs "$work/initrd" >"$out/initrd"
  modules_root "$work/agent" "$package" "$version" "${agent_modules[@]}"
  # The agent loads them as they are.
  find "$work/agent" -name '*.xz' -exec xz -d {} +
  pack_initramfs "$work/agent" >"$out/modules"
  cp "$package/boot/vmlinuz-$version" "$out/vmlinuz"
  echo "$version" >"$out/version"
  touch "$out/done"
fi
echo "$out"
