#!/usr/bin/env bash
# Every test. Progress goes to the terminal; the first failure ends it.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n== %s (%s)\n' "$1" "$(date +%T)"; }

step "images for the tests"
SKIFF_FIXTURES=$(scripts/fixtures.sh)
export SKIFF_FIXTURES

step "building"
cargo test --workspace --no-run

step "tests"
CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER=$PWD/scripts/runner.sh \
  cargo test --workspace --lib --bins --tests

step "the container class on a stock kernel with pure cgroup v2"
scripts/test-v2.sh

step "the monitor on a stock kernel's KVM"
scripts/test-kvm.sh
