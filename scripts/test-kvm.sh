#!/usr/bin/env bash
# The monitor's tests on real KVM, in a machine whose processor QEMU emulates
# with AMD's virtualisation: no /dev/kvm is needed. In it Debian's stock kernel
# runs the monitor, and that Debian's stock cloud kernel, with the agent in it;
# and a server deploys to it.
#
#   test-kvm.sh [PROGRAM...]  all, or these (vcpu, machine, command, confined,
#                             guest, microvm, boots, deploy, services, functions,
#                             extensions, images, runtimes, ten)
#
# SKIFF_SLOWNESS=N stretches every deadline N times.
set -euo pipefail
cd "$(dirname "$0")/.."

say_as=test-kvm
# With a periodic tick: without, a nested guest's interrupts came late, for
# minutes now and then.
kernel_arguments="nohz=off highres=off softlockup_panic=1 watchdog_thresh=20"
pulse=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
. scripts/machine/machine.sh
machine_deadline=$((2700 * slowness))

build
mapfile -t tests < <(built '(.target.kind == ["test"]) and ((.package_id | test("/crates/(kvm|vmm)#")) or .target.name == "guest" or .target.name == "microvm")')
[ "${#tests[@]}" -gt 0 ] || { say "cargo has built no tests"; exit 1; }
mapfile -t names < <(names_of "${tests[@]}")
choose "$*" "${names[@]}" boots deploy services functions extensions images runtimes ten

kernel=$(scripts/machine/kernel.sh)
guest=$(scripts/kvm/kernel.sh)
agent=$(scripts/agent.sh)
images=${SKIFF_FIXTURES:-$(scripts/fixtures.sh)}
functions=${SKIFF_FUNCTION_FIXTURES:-$(scripts/fixtures-functions.sh)}
once() {
  scripts/kvm/disk.sh "$work/disk" "$kernel" "$guest" "$images" "$functions" \
    "$(program skiff)" "$(program skiff-vmm)" "$(program skiff-vsock-peer)" "$agent" "${tests[@]}" \
    "$(program skiff-vmm-launcher)" "$(program skiff-vmm-taken)" || return
  run_machine "$kernel" "$work/disk" -cpu EPYC,+svm,+npt
}

# QEMU's emulation of nested processors mixes up, rarely, what is a guest's and
# what is the kernel's below it. The machine's own kernel then panics in its own
# entry, which no program in it can make it do; or a guest's kernel dies of a
# triple fault. So a machine whose own kernel has stopped is started again for
# what it has not come to, and a program whose guest has died like that is run
# once more, and once only: what the monitor does to a guest it does again. No
# other failure is tried again.
tried_again=
died_in_a_guest() { # PROGRAM
  # `command` has guests that are made to die so.
  [ "$1" != command ] \
    && awk -v name="$1" '$1 == "==" { here = $2 == name } here && /\[triple-fault\]/ { found = 1 } END { exit !found }' "$work/console"
}
for _ in 1 2 3 4 5; do
  once && exit
  [ "$ended" -ne 124 ] || exit 1
  mapfile -t failed < <(awk '$1 == "result" && $4 > 0 { print $2 }' "$work/results")
  for name in "${failed[@]}"; do
    died_in_a_guest "$name" && [[ " $tried_again " != *" $name "* ]] || exit 1
    tried_again+=" $name"
    say "a guest of $name's died of a triple fault: it is run once more"
  done
  if ! grep -qx end "$work/results"; then
    say "the machine's own kernel has stopped"
  elif [ "${#failed[@]}" -eq 0 ]; then
    exit 1
  fi
  passed=$(awk '$1 == "result" && $4 == 0 { print $2 }' "$work/results")
  only=$(tr ' ' '\n' <<<"$only" | { grep -vxF "${passed:-none}" || :; } | tr '\n' ' ' | sed 's/ $//')
  say "left: ${only:-nothing}"
  [ -n "$only" ] || exit 0
done
exit 1
