# Sourced by the tests that run in a machine: builds, starts it, and judges.
# $say_as is who speaks, $work a folder of its own, $kernel_arguments what else
# the machine's kernel is told, $pulse whether the machine has a pulse.
# SKIFF_BUILT=FILE has what `build` would ask cargo, which others may keep busy.

say() { echo "$say_as: $*"; }

slowness=${SKIFF_SLOWNESS:-1}
test_deadline=$((600 * slowness))
machine_deadline=$((1800 * slowness))

# What cargo says of what it has built: in $SKIFF_BUILT already, or told now.
build() {
  if [ -n "${SKIFF_BUILT:-}" ]; then
    cp "$SKIFF_BUILT" "$work/built.json"
    return
  fi
  say "building"
  # The whole workspace, as `make test` builds it: nothing is built twice.
  cargo test --quiet --workspace --no-run --message-format=json >"$work/built.json"
}
built() { # FILTER: paths of what was built
  jq -r "select(.executable != null) | select($1) | .executable" "$work/built.json"
}
program() { built ".target.name == \"$1\" and (.profile.test | not)"; }
names_of() { printf '%s\n' "${@##*/}" | sed 's/-[0-9a-f]*$//'; }

# Sets $only to what is to run: all of the names, or those that were asked for.
choose() { # "ASKED..." NAME...
  only=$1
  shift
  [ -n "$only" ] || only=$*
  local name
  for name in $only; do
    [[ " $* " == *" $name "* ]] || { say "$name is none of: $*"; exit 1; }
  done
}

# Runs the machine until it is off, and tells whether all passed.
run_machine() { # KERNEL DISK QEMU-OPTION...
  local started=$SECONDS
  start_machine "$@"
  judge "$ended" "$started"
}

# Ends a machine whose pulse, a line a second in its report, has stopped.
watch_pulse() {
  local last="" still=0 size
  while sleep 5; do
    size=$(stat -c %s "$work/report" 2>/dev/null || echo 0)
    [ "$size" = "$last" ] && still=$((still + 5)) || still=0
    last=$size
    if [ "$still" -ge $((90 * slowness)) ]; then
      touch "$work/stopped"
      kill "$(cat "$work/pid")"
      return
    fi
  done
}

# Runs the machine until it is off. Leaves what it reported in $work/results,
# what was on its console in $work/console, and QEMU's exit code in $ended.
start_machine() { # KERNEL DISK QEMU-OPTION...
  local kernel=$1 disk=$2 watcher="" qemu
  shift 2
  qemu=$(scripts/machine/qemu.sh)
  ended=0
  rm -f "$work/stopped" "$work/report" "$work/pid"
  if [ -n "${pulse:-}" ]; then
    watch_pulse &
    watcher=$!
  fi
  say "starting the machine; deadline ${machine_deadline} s"
  local options=(
    -M q35 -accel "tcg,thread=multi" -smp 2 -m 2048
    -nodefaults -no-user-config -display none -no-reboot
    -kernel "$kernel/vmlinuz" -initrd "$kernel/initrd"
    -append "console=ttyS0 loglevel=3 panic=-1 reboot=t ${kernel_arguments:-} test.deadline=$test_deadline test.slowness=$slowness test.only=${only// /,}"
    -drive "file=$disk,format=raw,if=virtio,cache=unsafe"
    -chardev stdio,id=console,signal=off -serial chardev:console
    -chardev "file,id=report,path=$work/report" -serial chardev:report
    -pidfile "$work/pid"
    "$@"
  )
  timeout --foreground --kill-after=10 "$machine_deadline" "$qemu" "${options[@]}" </dev/null \
    2> >(grep -v "TCG doesn't support requested feature" >&2) \
    | sed -u 's/\r//g' | tee "$work/console" || ended=${PIPESTATUS[0]}
  [ -z "$watcher" ] || kill "$watcher" 2>/dev/null || :
  tr -d '\r' <"$work/report" >"$work/results" || : >"$work/results"
}

judge() { # QEMU'S-EXIT-CODE STARTED
  local programs passed failed expected verdict=PASS
  problem() { say "$*"; verdict=FAIL; }
  read -r programs passed failed < <(awk '$1 == "result" { n++; p += $3; f += $4 } END { print n + 0, p + 0, f + 0 }' "$work/results")
  expected=$(wc -w <<<"$only")
  [ "$1" -ne 124 ] || problem "the machine did not end within its deadline"
  [ "$1" -eq 0 ] || [ "$1" -eq 124 ] || problem "QEMU ended with $1"
  grep -qx end "$work/results" || problem "the machine died before its tests were through"
  [ "$programs" -eq "$expected" ] || problem "$programs of $expected test programs told a result"
  [ "$passed" -gt 0 ] || problem "no test passed"
  [ "$failed" -eq 0 ] || problem "failed in: $(awk '$1 == "result" && $4 > 0 { print $2 }' "$work/results" | tr '\n' ' ')"
  say "$verdict: $passed passed, $failed failed, in $((SECONDS - $2)) s"
  [ "$verdict" = PASS ]
}
