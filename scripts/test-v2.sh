#!/usr/bin/env bash
# The container class's tests in a machine with Debian's stock kernel and pure
# cgroup v2. QEMU emulates the processor: no /dev/kvm is needed.
#
#   test-v2.sh [PROGRAM...]  all, or these (limits, life, commands...)
#
# SKIFF_SLOWNESS=N stretches every deadline N times.
set -euo pipefail
cd "$(dirname "$0")/.."

slowness=${SKIFF_SLOWNESS:-1}
test_deadline=$((600 * slowness))
machine_deadline=$((1200 * slowness))
say() { echo "test-v2: $*"; }
only=$*
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

say "building"
# The whole workspace, as `make test` builds it: nothing is built twice.
cargo test --quiet --workspace --no-run --message-format=json >"$work/built.json"
built() { # FILTER: paths of what was built
  jq -r "select(.executable != null) | select($1) | .executable" "$work/built.json"
}
program() { built ".target.name == \"$1\" and (.profile.test | not)"; }
mapfile -t tests < <(built '.profile.test and (.package_id | test("/crates/(jail|net)#"))')
launcher=$(program skiff-jail-launcher)
skiff=$(program skiff)
[ "${#tests[@]}" -gt 0 ] || { say "cargo has built no tests"; exit 1; }

kernel=$(scripts/v2/kernel.sh)
mapfile -t names < <(printf '%s\n' "${tests[@]##*/}" | sed 's/-[0-9a-f]*$//' && echo commands)
[ -n "$only" ] || only=${names[*]}
for name in $only; do
  [[ " ${names[*]} " == *" $name "* ]] || { say "$name is none of: ${names[*]}"; exit 1; }
done

fixtures=${SKIFF_FIXTURES:-$(scripts/fixtures.sh)}
scripts/v2/disk.sh "$work/disk" "$kernel" "$fixtures/busybox" "$skiff" "$launcher" "${tests[@]}"

say "starting the machine; deadline ${machine_deadline} s"
started=$SECONDS
options=(
  -M q35 -accel "tcg,thread=multi" -cpu max -smp 2 -m 2048
  -nodefaults -no-user-config -display none -no-reboot
  -kernel "$kernel/vmlinuz" -initrd "$kernel/initrd"
  -append "console=ttyS0 loglevel=3 panic=-1 reboot=t v2.deadline=$test_deadline v2.slowness=$slowness v2.only=${only// /,}"
  -drive "file=$work/disk,format=raw,if=virtio,cache=unsafe"
  -chardev stdio,id=console,signal=off -serial chardev:console
  -chardev "file,id=report,path=$work/report" -serial chardev:report
)
ended=0
timeout --foreground --kill-after=10 "$machine_deadline" qemu-system-x86_64 "${options[@]}" </dev/null \
  | tr -d '\r' || ended=${PIPESTATUS[0]}
tr -d '\r' <"$work/report" >"$work/results" || : >"$work/results"

read -r programs passed failed < <(awk '$1 == "result" { n++; p += $3; f += $4 } END { print n + 0, p + 0, f + 0 }' "$work/results")
expected=$(wc -w <<<"$only")
verdict=PASS
problem() { say "$*"; verdict=FAIL; }
[ "$ended" -ne 124 ] || problem "the machine did not end within its deadline"
[ "$ended" -eq 0 ] || [ "$ended" -eq 124 ] || problem "QEMU ended with $ended"
grep -qx end "$work/results" || problem "the machine died before its tests were through"
[ "$programs" -eq "$expected" ] || problem "$programs of $expected test programs told a result"
[ "$passed" -gt 0 ] || problem "no test passed"
[ "$failed" -eq 0 ] || problem "failed in: $(awk '$1 == "result" && $4 > 0 { print $2 }' "$work/results" | tr '\n' ' ')"
say "$verdict: $passed passed, $failed failed, in $((SECONDS - started)) s"
[ "$verdict" = PASS ]
