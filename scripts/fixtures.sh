#!/usr/bin/env bash
# Makes the images that the samples and the tests run, from Debian packages
# and from crates/testapp, as one OCI layout each:
#
#   FOLDER/hello-python  Python and an HTTP application, two layers
#   FOLDER/testapp       one static binary
#   FOLDER/h2app         another, which speaks HTTP/2
#   FOLDER/busybox       busybox with its commands
#   FOLDER/layered       busybox that serves files, twenty layers
#
# Prints FOLDER. What is slow to make is kept by the hash of its recipe in the
# user's cache folder.
set -euo pipefail
cd "$(dirname "$0")/.."

cache=${SKIFF_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/skiff}
suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-bookworm}")
testapp=target/static/x86_64-unknown-linux-gnu/release/skiff-testapp
h2app=target/static/x86_64-unknown-linux-gnu/release/skiff-h2app
say() { echo "fixtures: $*" >&2; }

RUSTFLAGS="-C target-feature=+crt-static" cargo build --quiet --release -p skiff-testapp \
  --target x86_64-unknown-linux-gnu --target-dir target/static >&2

key=$(cat scripts/fixtures.sh examples/hello-python/app.py "$testapp" "$h2app" /bin/busybox <(echo "$suite") \
  | sha256sum | cut -c1-16)
out=$cache/images-$key
if [ -e "$out/done" ]; then
  echo "$out"
  exit 0
fi

mkdir -p "$cache"
# One maker at a time: who comes later finds it done.
exec 9>"$cache/lock"
flock 9
if [ -e "$out/done" ]; then
  echo "$out"
  exit 0
fi
rm -rf "$out"
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Reproducible layers: the same names, owners and times whenever they are made.
layer() { tar --create --file "$1" --directory "$2" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@1 .; }
image() { # NAME ENTRYPOINT TAR...
  local name=$1 entrypoint=$2 tar
  shift 2
  umoci init --layout "$out/$name"
  umoci new --image "$out/$name:1"
  for tar in "$@"; do umoci raw add-layer --image "$out/$name:1" "$tar"; done
  umoci config --image "$out/$name:1" --config.entrypoint "$entrypoint" \
    --config.env PATH=/usr/local/bin:/usr/bin:/bin --config.workingdir /
}

userland=$cache/python-$suite.tar
if [ ! -e "$userland" ]; then
  say "making a userland with Python from Debian packages (half a minute, once)"
  mmdebstrap --quiet --variant=apt --include=python3 "$suite" "$userland.tmp.tar" >&2
  mv "$userland.tmp.tar" "$userland"
fi

mkdir -p "$work/python/app" "$work/testapp" "$work/h2app" "$work/busybox/bin" "$work/busybox/etc" "$work/busybox/tmp"
cp examples/hello-python/app.py "$work/python/app/"
layer "$work/python.tar" "$work/python"
cp "$testapp" "$work/testapp/testapp"
layer "$work/testapp.tar" "$work/testapp"
cp "$h2app" "$work/h2app/h2app"
layer "$work/h2app.tar" "$work/h2app"
cp /bin/busybox "$work/busybox/bin/busybox"
for command in $(/bin/busybox --list); do
  [ "$command" = busybox ] || ln -s busybox "$work/busybox/bin/$command"
done
printf 'root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n' >"$work/busybox/etc/passwd"
printf 'root:x:0:\napp:x:1000:\nextra:x:1001:app\n' >"$work/busybox/etc/group"
chmod 1777 "$work/busybox/tmp"
layer "$work/busybox.tar" "$work/busybox"

# Each of the others has a file of its own and replaces one of the layer below.
layered=("$work/busybox.tar")
for number in $(seq 2 20); do
  mkdir -p "$work/layer-$number/www"
  echo "layer $number" | tee "$work/layer-$number/www/$number" >"$work/layer-$number/www/last"
  layer "$work/layer-$number.tar" "$work/layer-$number"
  layered+=("$work/layer-$number.tar")
done

say "making images"
image hello-python python3 "$userland" "$work/python.tar" >&2
umoci config --image "$out/hello-python:1" --config.cmd /app/app.py --config.env PYTHONUNBUFFERED=1
image testapp /testapp "$work/testapp.tar" >&2
image h2app /h2app "$work/h2app.tar" >&2
image busybox /bin/sh "$work/busybox.tar" >&2
image layered /bin/httpd "${layered[@]}" >&2
umoci config --image "$out/layered:1" --config.cmd -f --config.cmd -p --config.cmd 8080 \
  --config.cmd -h --config.cmd /www
touch "$out/done"
echo "$out"
