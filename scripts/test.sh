#!/usr/bin/env bash
# Every test. Progress goes to the terminal; the first failure ends it.
#
# SKIFF_BESIDE="COMMAND..." is run beside the last tests, too, whose emulated
# processors leave a part of this machine's idle.
set -euo pipefail
cd "$(dirname "$0")/.."

# What runs beside something else is a process group, which ends with this.
set -m
beside=
SKIFF_BUILT=$(mktemp)
export SKIFF_BUILT
trap '[ -z "$beside" ] || kill -- "-$beside" 2>/dev/null || :; rm -f "$SKIFF_BUILT"' EXIT
join() { wait "$beside" && beside=; }

step() { printf '\n== %s (%s)\n' "$1" "$(date +%T)"; }

# Images, AWS's clients, kernels: what waits for the network most of the time.
fetch() {
  local script
  for script in fixtures fixtures-functions aws machine/kernel kvm/kernel machine/qemu; do
    "scripts/$script.sh" >/dev/null
  done
}

step "building, and fetching what the tests need"
fetch &
beside=$!
cargo test --workspace --no-run --message-format=json-render-diagnostics >"$SKIFF_BUILT"
step "fetching what is left"
join
SKIFF_FIXTURES=$(scripts/fixtures.sh)
export SKIFF_FIXTURES

step "tests"
CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER=$PWD/scripts/runner.sh \
  cargo test --workspace --lib --bins --tests

step "the container class on a stock kernel with pure cgroup v2"
scripts/test-v2.sh

# Lines that stand between those of another.
aside() { sed -u 's/^/    | /'; }

step "the monitor on a stock kernel's KVM${SKIFF_BESIDE:+, and beside it $SKIFF_BESIDE}"
{ nice -n 19 ${SKIFF_BESIDE:-true} 2>&1 | aside; } &
beside=$!
scripts/test-kvm.sh
join
