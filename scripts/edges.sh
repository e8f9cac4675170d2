#!/usr/bin/env bash
# Holds the crates' edges: who may depend on whom, and what must never be
# linked into the privileged half.
set -euo pipefail
cd "$(dirname "$0")/.."

fail=0
links() { cargo tree --quiet --edges normal --prefix none -p "$1" | awk '{print $1}' | sort -u; }
forbid() { # CRATE REASON NAME...
  local crate=$1 reason=$2 name
  shift 2
  [ -d "crates/${crate#skiff-}" ] || return 0
  for name in "$@"; do
    if links "$crate" | grep -qx "$name"; then
      echo "edges: $crate links $name: $reason" >&2
      fail=1
    fi
  done
}

forbid skiff-jail "the privileged half links no runtime, no HTTP, no TLS, no store" \
  tokio hyper rustls rusqlite reqwest axum
for crate in kvm virtio vmm guest; do
  forbid "skiff-$crate" "the monitor links no runtime, no HTTP, no TLS, no store" \
    tokio hyper rustls rusqlite reqwest axum skiff-store
done
forbid skiff-agent "the first process of a machine links no runtime, no HTTP, no TLS, no store" \
  tokio hyper rustls rusqlite reqwest axum skiff-store
forbid skiff-virtio "device models know no KVM" kvm-ioctls kvm-bindings skiff-kvm
forbid skiff-kvm "vCPUs and memory know no device" virtio-queue skiff-virtio
forbid skiff-types "words do no I/O" tokio rustix libc
forbid skiff-wire "a codec does no I/O" tokio rustix libc
for crate in sched lambda queue; do
  forbid "skiff-$crate" "the pure domain sees no file and no socket" rusqlite hyper axum
done
service="skiff-gateway skiff-control skiff-worker skiff-fleet skiff-runtime"
for crate in types base memory wire config telemetry jail net erofs image store sched meter lambda queue sandbox flat guest kvm virtio vmm agent; do
  # shellcheck disable=SC2086
  forbid "skiff-$crate" "arrows point down only" $service
done
exit "$fail"
