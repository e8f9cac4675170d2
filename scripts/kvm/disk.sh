#!/usr/bin/env bash
# Makes the disk of the machine that has KVM: a small userland, a server's
# programs and an image, a guest's kernel and disks, the tests.
#
#   disk.sh DISK KERNEL GUEST-KERNEL IMAGES FUNCTIONS SKIFF MONITOR PEER AGENT TEST...
set -euo pipefail
disk=$1 kernel=$2 guest=$3 images=$4 functions=$5 skiff=$6 monitor=$7 peer=$8 agent=$9
shift 9
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
# The server's account has to pass through.
chmod 711 "$work"
trap 'rm -rf "$work"' EXIT
. "$here/../machine/modules.sh"
. "$here/../machine/root.sh"

# What the guest's initramfs has beside the kernel's modules.
root=$work/initrd
add_stripped "$peer" /bin/peer
root=$work/agent
add_stripped "$agent" /init

root=$work/root
layer=$work/layer
mkdir "$root" "$layer"

start_root "$kernel" "$here/guest.sh"
install -m 0755 "$here/boots.sh" "$root/usr/sbin/boots"
install -m 0755 "$here/deploy.sh" "$root/usr/sbin/deploy"
install -m 0644 "$here/extensions.sh" "$root/usr/lib/extensions.sh"
# busybox's cannot look for bytes.
add_program "$(command -v grep)" /usr/sbin/grep-bytes
add_stripped "$skiff" /usr/bin/skiff
add_stripped "$monitor" /usr/bin/skiff-vmm
add_stripped "$agent" /usr/bin/skiff-agent
# The tests know it by this path.
add_stripped "$monitor" "$monitor"
add_stripped "$peer" /usr/bin/peer
add_tests "$@"
add_named curl ip jq mke2fs mkfs.erofs nft pgrep setpriv
mkdir "$root/images"
cp -a "$images"/{testapp,hello-python,layered} "$root/images/"
# Of some there is only what their maker lacked.
for name in small python node java go rust; do cp -a "$functions/$name-function"* "$root/images/"; done
mkdir "$work/zips"
printf 'of a layer' >"$work/zips/said"
cat >"$work/zips/mine.py" <<'PYTHON'
import os


def handler(event, context):
    if event == "fail":
        raise KeyError(event)
    return {"event": event, "said": open("/opt/said").read(), "handler": os.environ["_HANDLER"]}
PYTHON
rustc --edition 2024 -C target-feature=+crt-static -C strip=symbols -o "$work/zips/bootstrap" \
  "$here/../../crates/e2e/tests/aws/bootstrap.rs"
mkdir "$root/zips"
zipped() { (cd "$work/zips" && python3 -m zipfile -c "$root/zips/$1.zip" "$2"); }
zipped layer said
zipped own bootstrap
zipped mine mine.py
# The small one with an extension, and with one that cannot be executed.
extended() { # NAME EXTENSION MODE
  cp -a "$functions/small-function" "$root/images/$1-function"
  install -D -m "$3" "$here/watcher" "$work/$1/opt/extensions/$2"
  tar --create --owner=0 --group=0 --file "$work/$1.tar" --directory "$work/$1" opt
  umoci raw add-layer --image "$root/images/$1-function:1" "$work/$1.tar" >&2
}
extended watched watcher 0755
extended plain plain 0644
# Here rather than on an emulated processor.
read -r package _ < <("$here/../machine/package.sh" linux-image-cloud-amd64)
"$skiff" kernel install --data-dir "$root/var/lib/skiff" --agent "$root/usr/bin/skiff-agent" \
  "$package/package.deb" >&2

mkdir "$root/guest"
cp "$guest"/{vmlinuz,version} "$root/guest/"
# This machine's own kernel, out of an image that the monitor does not unpack.
number() { od -An "-tu$2" "-j$1" "-N$2" "$kernel/vmlinuz"; }
# Where it is is in Linux's boot protocol: setup_sects, payload_offset,
# payload_length, the last of which counts the four bytes of a length behind it.
start=$((($(number 0x1f1 1) + 1) * 512 + $(number 0x248 4)))
dd if="$kernel/vmlinuz" iflag=skip_bytes,count_bytes skip=$start count=$(($(number 0x24c 4) - 4)) \
  bs=1M status=none | xz -dc >"$root/guest/vmlinux"
# Archives that follow each other are one.
cat "$guest/initrd" <(pack_initramfs "$work/initrd") >"$root/guest/initrd"
cat "$guest/modules" <(pack_initramfs "$work/agent") >"$root/guest/agent"
# A layer of what is here anyway, with its sums.
cp /bin/busybox "$here"/*.sh "$layer/"
(cd "$layer" && sha256sum -- * >.sums && mv .sums sums)
mkfs.erofs --quiet "$root/guest/layer" "$layer" >/dev/null
cp "$root/guest/layer" "$root/guest/layer.copy"
truncate -s 8M "$root/guest/scratch"
make_disk "$disk" 3G
