#!/usr/bin/env bash
# Takes the monitor's and the virtual machines' figures of
# docs/specification.md into target/bench-kvm.json: those of flat guests on this
# machine's own KVM, and the others, beside QEMU's microvm and beside
# containers, in a machine whose processor QEMU emulates. Its times compare, and
# mean nothing alone.
#
#   bench-kvm.sh [PART...]  all, or these: monitors (each starts the same
#                           guest), cold (starts from zero), idle (ten
#                           instances), full (one that takes all it may)
#
#   FIRECRACKER=/path   measures that one as well
#   BENCH_ROUNDS=5      how often each is started
set -euo pipefail
cd "$(dirname "$0")/.."

say_as=bench-kvm
rounds=${BENCH_ROUNDS:-5}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
. scripts/machine/machine.sh
. scripts/kvm/bench/machine.sh
machine_deadline=$((3600 * slowness))
choose "$*" monitors cold idle full

build_programs
make_machine "${FIRECRACKER:-}"
# In a network of its own. Without KVM or root its figures are missing.
BENCH_ROUNDS=$rounds unshare --net target/release/skiff-bench native target/release/skiff-vmm >"$work/native" \
  || say "nothing, or not all, is measured on this machine's own KVM"
run_parts || say "what is missing is null"
cat "$work/native" >>"$work/samples"
exec target/release/skiff-bench kvm "$work/samples"
