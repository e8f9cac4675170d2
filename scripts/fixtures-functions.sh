#!/usr/bin/env bash
# Makes the images of the functions that the tests invoke, as one OCI layout
# each:
#
#   FOLDER/shell-function   a bootstrap in shell, with curl from Debian packages
#   FOLDER/small-function   the same on busybox, with this machine's curl
#   FOLDER/python-function  Python from Debian packages with awslambdaric
#   FOLDER/rust-function    a static program on lambda_runtime and nothing else
#   FOLDER/go-function      a static program on aws-lambda-go and nothing else
#   FOLDER/node-function    Node with aws-lambda-ric
#   FOLDER/java-function    a small JVM with AWS's runtime interface client
#
# Of the last three, those whose tools this machine has; where it lacks some,
# FOLDER/NAME.lacks names them. Prints FOLDER. What is slow to make is kept by the hash of its recipe in the
# user's cache folder.
set -euo pipefail
cd "$(dirname "$0")/.."

cache=${SKIFF_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/skiff}
suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-bookworm}")
ric=awslambdaric==4.2.2
testfunction=target/static/x86_64-unknown-linux-gnu/release/skiff-testfunction
say() { echo "fixtures: $*" >&2; }

# Beside the other: it waits for registries.
listed=$(mktemp)
scripts/fixtures-runtimes.sh >"$listed" &
runtimes=$!
RUSTFLAGS="-C target-feature=+crt-static" cargo build --quiet --release -p skiff-testfunction \
  --target x86_64-unknown-linux-gnu --target-dir target/static >&2
wait "$runtimes"
declare -A made
while read -r name tar lacks; do
  made[$name]="$tar $lacks"
done <"$listed"
rm "$listed"

key=$({
  cat scripts/fixtures-functions.sh examples/functions/bootstrap examples/functions/app.py /bin/busybox "$testfunction"
  echo "$suite" "${made[node]}" "${made[go]}" "${made[java]}"
} | sha256sum | cut -c1-16)
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
# What Node and a JVM are linked with, this machine's as they are: where it has
# not got all of it there is no compiler, and neither of the two.
linked=' libc.so.6 libdl.so.2 libgcc_s.so.1 libm.so.6 libpthread.so.0 librt.so.1 libstdc++.so.6 libz.so.1 '
mkdir -p "$work/linked/tmp"
chmod 1777 "$work/linked/tmp"
for file in /lib64/ld-linux-x86-64.so.2 $(PATH=$PATH:/sbin:/usr/sbin ldconfig -p |
  awk -v linked="$linked" 'index(linked, " " $1 " ") && /x86-64/ && !seen[$1]++ { print $NF }'); do
  install -D -m 755 "$file" "$work/linked$file"
done
layer "$work/linked.tar" "$work/linked"
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
starts() { # NAME WORD...
  local name=$1 words=() word
  shift
  for word in "$@"; do words+=(--config.entrypoint "$word"); done
  umoci config --image "$out/$name:1" "${words[@]}"
}
image shell-function "$shell" "$work/shell.tar" >&2
starts shell-function /var/task/bootstrap
image small-function "$work/small.tar" "$work/shell.tar" >&2
starts small-function /var/task/bootstrap
image python-function "$python" "$work/python.tar" >&2
starts python-function /usr/bin/python3 -m awslambdaric
umoci config --image "$out/python-function:1" --config.cmd app.handler
image rust-function "$work/rust.tar" >&2
starts rust-function /var/task/bootstrap
for name in go node java; do
  read -r tar lacks <<<"${made[$name]}"
  if [ "$tar" = - ]; then
    say "there is no $name-function: this machine lacks $lacks"
    echo "$lacks" >"$out/$name-function.lacks"
    continue
  fi
  case $name in
    go)
      image go-function "$tar" >&2
      starts go-function /var/task/bootstrap
      ;;
    node)
      image node-function "$work/linked.tar" "$tar" >&2
      starts node-function /usr/local/bin/node /var/task/node_modules/aws-lambda-ric/index.mjs
      umoci config --image "$out/node-function:1" --config.cmd app.handler
      ;;
    java)
      image java-function "$work/linked.tar" "$tar" >&2
      # As AWS's own images start it.
      starts java-function /opt/java/bin/java -XX:+UseSerialGC -XX:TieredStopAtLevel=1 \
        -cp '/var/task:/var/task/lib/*' com.amazonaws.services.lambda.runtime.api.client.AWSLambda
      umoci config --image "$out/java-function:1" --config.cmd App::handleRequest
      ;;
  esac
done
touch "$out/done"
echo "$out"
