#!/usr/bin/env bash
# The main job, shown: sample images, a server, two services, a cold and a
# warm request with their phases, and the bill. Stays until Ctrl-C, which
# leaves nothing behind; ONESHOT=1 ends by itself.
set -euo pipefail
cd "$(dirname "$0")/.."

PATH=$PWD/target/release:$PATH
home=$(mktemp -d /tmp/skiff-up.XXXXXX)
# The server gives up root: its account has to pass through.
chmod 711 "$home"
port=${PORT:-8080}
export SKIFF_HOST=unix://$home/run/skiff.sock
server=

finish() {
  trap - EXIT INT TERM
  if [ -n "$server" ] && kill -0 "$server" 2>/dev/null; then
    kill -TERM "$server"
    wait "$server" || true
  fi
  rm -rf "$home"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

images=$(scripts/fixtures.sh)

skiff server --stop-all \
  --set data_dir="$home/data" --set run_dir="$home/run" --set secrets.key_file="$home/keys/secrets.key" \
  --set gateway.listen="127.0.0.1:$port" --set log.level="${LOG:-warn}" &
server=$!
for _ in $(seq 300); do
  [ -S "$home/run/skiff.sock" ] && skiff ls >/dev/null 2>&1 && break
  kill -0 "$server" 2>/dev/null || { echo "up: the server ended" >&2; exit 1; }
  sleep 0.1
done

show() { printf '\n$ %s\n' "$*"; "$@"; }
ask() {
  printf '\n$ curl %s\n' "$1"
  curl --silent --show-error --dump-header "$home/head" --write-out 'first byte after %{time_starttransfer} s\n' "$1"
  grep -i '^server-timing' "$home/head" || true
}
idle() { # waits until a service has no instance
  for _ in $(seq 300); do
    [ "$(skiff describe "$1" --output json | jq '.instances | length')" = 0 ] && return
    sleep 0.1
  done
}

for name in hello-python testapp; do
  show skiff image import "$images/$name" --name "$name:1"
done
show skiff deploy hello --image hello-python:1 --keep-alive 1
show skiff deploy static --image testapp:1 --memory 64
url=http://hello.skiff.localhost:$port/

idle hello
echo
echo "# a cold request: nothing of hello runs"
ask "$url"
echo
echo "# a warm one"
ask "$url"
show skiff trace hello -n 1
show skiff ls
idle hello
show skiff usage
show skiff usage --check

echo
echo "READY $url"
if [ -z "${ONESHOT:-}" ]; then
  echo "(Ctrl-C ends it; SKIFF_HOST=$SKIFF_HOST reaches it)"
  wait "$server"
fi
