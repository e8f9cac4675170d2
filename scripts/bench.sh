#!/usr/bin/env bash
# Takes the figures of docs/specification.md into target/bench.json; with the
# argument lambda, those of functions into target/bench-lambda.json.
#
#   BENCH=gateway,cold   only these groups: gateway cold burst placements
#                        scale pull overload restart; of functions: warm rate
#                        cold burst events crashes replay
#   BENCH_ROUNDS=0.2     a fifth of the rounds; 1 is what the figures ask
#
# The machine should do nothing else meanwhile.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "$(id -u)" -ne 0 ]; then
  echo "bench: run it as root" >&2
  exit 1
fi
cargo build --release -p skiff -p skiff-bench
SKIFF_FIXTURES=$(scripts/fixtures.sh)
export SKIFF_FIXTURES SKIFF_BINARY=$PWD/target/release/skiff
exec target/release/skiff-bench "${1:-run}"
