#!/usr/bin/env bash
# SOAK_KVM_ROUNDS (50) deployments and removals of virtual machines, every
# other one with egress, in a machine whose processor QEMU emulates; what is
# there of the server before and after has to be the same count.
set -euo pipefail
cd "$(dirname "$0")/.."

say_as=soak-kvm
rounds=${SOAK_KVM_ROUNDS:-50}
only=soak
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
. scripts/machine/machine.sh
. scripts/kvm/bench/machine.sh
machine_deadline=$(((1800 + 30 * rounds) * slowness))

build_programs
make_machine
run_parts
say PASS
