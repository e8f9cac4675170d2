#!/usr/bin/env bash
# Takes the monitor's figures of docs/specification.md into
# target/bench-kvm.json: those of flat guests on this machine's own KVM, and
# the others, beside QEMU's microvm, in one run of a machine whose processor
# QEMU emulates. Its times compare, and mean nothing alone.
#
#   FIRECRACKER=/path   measures that one as well
#   BENCH_ROUNDS=5      how often each is started
set -euo pipefail
cd "$(dirname "$0")/.."

say_as=bench-kvm
export BENCH_ROUNDS=${BENCH_ROUNDS:-5}
kernel_arguments="nohz=off highres=off test.rounds=$BENCH_ROUNDS"
only=none
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
. scripts/machine/machine.sh

cargo build --release -p skiff-vmm -p skiff-bench
kernel=$(scripts/machine/kernel.sh)
guest=$(scripts/kvm/kernel.sh)
scripts/kvm/bench/disk.sh "$work/disk" "$kernel" "$guest" target/release/skiff-vmm "${FIRECRACKER:-}"
# In a network of its own. Without KVM or root its figures are missing.
unshare --net target/release/skiff-bench native target/release/skiff-vmm >"$work/native" \
  || say "nothing, or not all, is measured on this machine's own KVM"
start_machine "$kernel" "$work/disk" -cpu EPYC,+svm,+npt
grep -qx end "$work/results" || say "the machine died before it was through"
cat "$work/native" >>"$work/results"
exec target/release/skiff-bench kvm "$work/results"
