# Sourced after machine/machine.sh: the machine with KVM in which parts are
# measured. $rounds is how often.

# As in test-kvm.sh.
kernel_arguments="nohz=off highres=off softlockup_panic=1 watchdog_thresh=20 test.rounds=$rounds"
pulse=1

build_programs() {
  cargo build --release -p skiff -p skiff-vmm -p skiff-bench
  agent=$(scripts/agent.sh)
  images=${SKIFF_FIXTURES:-$(scripts/fixtures.sh)}
}

make_machine() { # [FIRECRACKER]
  kernel=$(scripts/machine/kernel.sh)
  guest=$(scripts/kvm/kernel.sh)
  scripts/kvm/bench/disk.sh "$work/made" "$kernel" "$guest" "$images" target/release "$agent" "$@"
}

# Runs the parts of $only in machines, until each is through or has failed, and
# leaves what they reported in $work/samples. A machine whose own kernel has
# stopped, which nothing in it can make it, is started again for what it has not
# come to.
run_parts() {
  local failed="" left through
  : >"$work/samples"
  for _ in 1 2 3 4 5; do
    cp --sparse=always "$work/made" "$work/disk"
    start_machine "$kernel" "$work/disk" -cpu EPYC,+svm,+npt -m 4096
    # Only of a part that is through: another run of it gives all again.
    awk '$1 == "sample" { kept = kept $0 "\n" } $1 == "done" { printf "%s", kept } $1 == "done" || $1 == "failed" { kept = "" }' \
      "$work/results" >>"$work/samples"
    through=$(awk '$1 == "done" || $1 == "failed" { print $2 }' "$work/results")
    failed="$failed$(awk '$1 == "failed" { printf " %s", $2 }' "$work/results")"
    left=$(tr ' ' '\n' <<<"$only" | { grep -vxF "${through:-none}" || :; } | tr '\n' ' ' | sed 's/ $//')
    only=$left
    [ -n "$left" ] && [ "$ended" -ne 124 ] || break
    say "the machine's own kernel has stopped; left: $left"
  done
  [ -z "$failed" ] || say "failed:$failed"
  [ -z "$only" ] || say "not taken: $only"
  [ -z "$failed$only" ]
}
