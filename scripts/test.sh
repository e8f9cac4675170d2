#!/usr/bin/env bash
# Every test. Progress goes to the terminal; the first failure ends it.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n== %s (%s)\n' "$1" "$(date +%T)"; }

step "images for the tests"
SKIFF_FIXTURES=$(scripts/fixtures.sh)
export SKIFF_FIXTURES

step "building"
cargo test --workspace --no-run --quiet
cargo build -p skiff --quiet

step "tests"
cargo test --workspace
