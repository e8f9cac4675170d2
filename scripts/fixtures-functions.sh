#!/usr/bin/env bash
# Makes the images of the functions that the tests invoke, as one OCI layout
# each:
#
#   FOLDER/shell-function   a bootstrap in shell, with curl from Debian packages
#   FOLDER/small-function   the same on busybox, with this machine's curl
#   FOLDER/python-function  Python from Debian packages with awslambdaric
#   FOLDER/rust-function    a static program on lambda_runtime and nothing else
#
# Prints FOLDER. What is slow to make is kept by the hash of its recipe in the
# user's cache folder.
set -euo pipefail
cd "$(dirname "$0")/.."

cache=${SKIFF_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/skiff}
suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-bookworm}")
ric=awslambdaric==4.2.2
testfunction=target/static/x86_64-unknown-linux-gnu/release/skiff-testfunction
say() { echo "fixtures: $*" >&2; }

RUSTFLAGS="-C target-feature=+crt-static" cargo build --quiet --release -p skiff-testfunction \
  --target x86_64-unknown-linux-gnu --target-dir target/static >&2

key=$(cat scripts/fixtures-functions.sh examples/functions/bootstrap examples/functions/app.py /bin/busybox "$testfunction" <(echo "$suite") \
  | sha256sum | cut -c1-16)
out=$cache/functions-$key
if [ -e "$out/done" ]; then
  echo "$out"
  exit 0
fi

mkdir -p "$cache"
# One maker at a time: who comes later finds it done.
exec 9>"$cache/functions.lock"
flock 9
if [ -e "$out/done" ]; then
  echo "$out"
  exit 0
fi
rm -rf "$out"
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

layer() { tar --create --file "$1" --directory "$2" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@1 .; }
userland() { # NAME PACKAGES
  local tar=$cache/$1-$suite.tar
  if [ ! -e "$tar" ]; then
    say "making a userland with $2 from Debian packages (half a minute, once)"
    mmdebstrap --quiet --variant=apt --include="$2" "$suite" "$tar.tmp.tar" >&2
    mv "$tar.tmp.tar" "$tar"
  fi
  echo "$tar"
}
image() { # NAME TAR...
  local name=$1 tar
  shift
  umoci init --layout "$out/$name"
  umoci new --image "$out/$name:1"
  for tar in "$@"; do umoci raw add-layer --image "$out/$name:1" "$tar"; done
  umoci config --image "$out/$name:1" --config.workingdir /var/task \
    --config.env PATH=/usr/local/bin:/usr/bin:/bin
}

shell=$(userland shell curl)
python=$(userland python python3)

mkdir -p "$work/shell/var/task" "$work/python/var/task" "$work/small"/{bin,tmp}
install -m 755 examples/functions/bootstrap "$work/shell/var/task/bootstrap"
layer "$work/shell.tar" "$work/shell"
chmod 1777 "$work/small/tmp"
cp /bin/busybox "$work/small/bin/busybox"
for command in $(/bin/busybox --list); do
  [ "$command" = busybox ] || ln -s busybox "$work/small/bin/$command"
done
for file in $(command -v curl) $(ldd "$(command -v curl)" | grep -o '/[^ ]*'); do
  install -D -m 755 "$file" "$work/small$file"
done
layer "$work/small.tar" "$work/small"
cp examples/functions/app.py "$work/python/var/task/app.py"
# The one that the image's Python can load, whatever this machine's is.
version=$(tar --list --file "$python" | sed -n 's|^\./usr/lib/python\(3\.[0-9]*\)/$|\1|p' | head -1)
/usr/bin/python3 -m venv "$work/pip"
"$work/pip/bin/pip" download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version "$version" \
  --platform manylinux2014_x86_64 --dest "$work/wheels" "$ric" simplejson snapshot-restore-py >&2
for wheel in "$work"/wheels/*.whl; do
  python3 -m zipfile --extract "$wheel" "$work/python/var/task" >&2
done
install -D -m 755 "$testfunction" "$work/rust/var/task/bootstrap"
chmod -R a+rX "$work/python" "$work/rust"
layer "$work/rust.tar" "$work/rust"
layer "$work/python.tar" "$work/python"

say "making images of functions"
image shell-function "$shell" "$work/shell.tar" >&2
umoci config --image "$out/shell-function:1" --config.entrypoint /var/task/bootstrap
image small-function "$work/small.tar" "$work/shell.tar" >&2
umoci config --image "$out/small-function:1" --config.entrypoint /var/task/bootstrap
image python-function "$python" "$work/python.tar" >&2
umoci config --image "$out/python-function:1" --config.entrypoint /usr/bin/python3 \
  --config.entrypoint -m --config.entrypoint awslambdaric --config.cmd app.handler
image rust-function "$work/rust.tar" >&2
umoci config --image "$out/rust-function:1" --config.entrypoint /var/task/bootstrap
touch "$out/done"
echo "$out"
