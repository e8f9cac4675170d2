#!/usr/bin/env bash
# The container class's tests in a machine with Debian's stock kernel and pure
# cgroup v2. QEMU emulates the processor: no /dev/kvm is needed.
#
#   test-v2.sh [PROGRAM...]  all, or these (limits, life, commands...)
#
# SKIFF_SLOWNESS=N stretches every deadline N times.
set -euo pipefail
cd "$(dirname "$0")/.."

say_as=test-v2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
. scripts/machine/machine.sh

build
mapfile -t tests < <(built '.profile.test and (.package_id | test("/crates/(jail|net)#"))')
[ "${#tests[@]}" -gt 0 ] || { say "cargo has built no tests"; exit 1; }
mapfile -t names < <(names_of "${tests[@]}")
choose "$*" "${names[@]}" commands

kernel=$(scripts/machine/kernel.sh)
fixtures=${SKIFF_FIXTURES:-$(scripts/fixtures.sh)}
scripts/v2/disk.sh "$work/disk" "$kernel" "$fixtures/busybox" \
  "$(program skiff)" "$(program skiff-jail-launcher)" "${tests[@]}"
run_machine "$kernel" "$work/disk" -cpu max
