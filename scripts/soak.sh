#!/usr/bin/env bash
# SOAK_ROUNDS (1,000) deployments and removals with a real instance each; what
# is there of the server before and after has to be the same count. Then
# SOAK_KVM_ROUNDS (50) of virtual machines, in an emulated machine.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "$(id -u)" -ne 0 ]; then
  echo "soak: run it as root" >&2
  exit 1
fi
cargo build --release -p skiff -p skiff-bench
SKIFF_FIXTURES=$(scripts/fixtures.sh)
export SKIFF_FIXTURES
failed=0
SKIFF_BINARY=$PWD/target/release/skiff target/release/skiff-bench soak || failed=1
scripts/soak-kvm.sh || failed=1
exit $failed
