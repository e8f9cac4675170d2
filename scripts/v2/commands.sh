#!/bin/sh
# What a user does first, with the real command, on this machine. Says of each
# test what `cargo test` would say.
passed=0 failed=0
options="--data-dir /var/lib/skiff --run-dir /run/skiff"
out=/run/out err=/run/err

check() { # NAME CONDITION...
  name=$1
  shift
  if "$@"; then
    passed=$((passed + 1))
    echo "test commands::$name ... ok"
  else
    failed=$((failed + 1))
    echo "test commands::$name ... FAILED"
    echo "status $status, output:"
    cat $out $err
  fi
}
until_line() { # TEXT: waits until the output has it
  looks=0
  until grep -qx "$1" $out || [ $((looks += 1)) -gt 600 ]; do usleep 100000; done
}
say() { # COMMAND...: keeps its status and its output
  "$@" >$out 2>$err </dev/null
  status=$?
}
run() { # OPTIONS -- COMMAND...
  # shellcheck disable=SC2086
  say skiff run $options "$@"
}
# shellcheck disable=SC2120
ended() { [ "$status" -eq "$1" ]; }
told() { [ "$(cat $out)" = "$1" ]; }
both() { ended "$1" && told "$2"; }

say skiff doctor
doctor() { ended 0 && grep -qi 'cgroups: *v2' $out && ! grep -Eq '^(fail|bad|error)' $out; }
check doctor_is_content_with_pure_v2 doctor

run /image -- sh -c 'echo out; exit 7'
check an_image_runs_to_its_exit_code both 7 out

run --memory 32 /image -- cat /sys/fs/cgroup/memory.max
check memory_is_limited both 0 33554432

run --cpu 0.5 /image -- cat /sys/fs/cgroup/cpu.max
check cpu_is_limited both 0 '50000 100000'

run /image -- cat /sys/fs/cgroup/pids.max
pids() { ended 0 && [ "$(cat $out)" -gt 0 ]; }
check processes_are_limited pids

run --memory 32 /image -- tail /dev/zero
memory() { ended 137 && grep -qi memory $err; }
check too_much_memory_is_said memory

run /image -- sh -c "awk '{ print \$1, \$2 }' /proc/self/uid_map; stat -c %u /bin/busybox; echo >/new; stat -c %u /new"
owners() {
  ended 0 || return
  # shellcheck disable=SC2046
  set -- $(cat $out)
  [ $# -eq 4 ] && [ "$1" -eq 0 ] && [ "$2" -gt 65535 ] && [ "$3$4" = 00 ]
}
check the_images_and_new_files_belong_to_a_shifted_root owners

run /image -- sh -c 'i=0; while [ $i -lt 2000 ]; do sleep 100 & i=$((i+1)); done'
bounded() { [ "$status" -ne 0 ] && grep -qi fork $err; }
check a_fork_bomb_ends_itself bounded

# A signal to the command is one to the process.
term='trap "echo got; exit 9" TERM; echo up; while :; do sleep 1; done'
# shellcheck disable=SC2086
skiff run $options /image -- sh -c "$term" >$out 2>$err </dev/null &
until_line up
kill -TERM $!
wait $!
status=$?
signalled() { ended 9 && [ "$(tail -1 $out)" = got ]; }
check a_signal_reaches_the_process signalled

# Whoever kills the command ends what it runs, and the next one clears up.
# shellcheck disable=SC2086
skiff run $options /image -- sh -c 'echo up; exec sleep 4711' >$out 2>$err </dev/null &
until_line up
kill -KILL $!
wait $!
looks=0
while pgrep -f 'sleep 4711|skiff launcher' >$out && [ $((looks += 1)) -le 600 ]; do usleep 100000; done
status=0
killed() { [ ! -s $out ]; }
check a_killed_command_leaves_no_process killed

run --egress /image -- ifconfig -a
egress() { ended 0 && [ "$(grep -c HWaddr $out)" -eq 1 ] && [ ! -s $err ]; }
check a_network_with_egress_is_made egress

# Inside a container the hierarchy's root is a group like any other: it may
# not hold processes and hand on controllers.
inside() {
  mkdir /sys/fs/cgroup/outer
  # shellcheck disable=SC2086,SC2016
  sh -c 'echo $$ >/sys/fs/cgroup/outer/cgroup.procs; exec "$@"' sh \
    /usr/sbin/unshare --cgroup --mount sh -c 'umount /sys/fs/cgroup
      mount -t cgroup2 cgroup2 /sys/fs/cgroup
      exec "$@"' sh \
    skiff run $options --memory 48 /image -- cat /sys/fs/cgroup/memory.max
}
say inside
check a_container_can_be_the_host both 0 50331648
rmdir /sys/fs/cgroup/outer/skiff-host /sys/fs/cgroup/outer

# Everything above and every test before it is over.
left() {
  find /sys/fs/cgroup -mindepth 1 -type d -name 'skiff*'
  grep -E ' - (erofs|overlay) |skiff' /proc/self/mountinfo
  cat /sys/block/loop*/loop/backing_file 2>/dev/null
  ls /run/skiff
  ls -d /sys/class/net/* | grep -vE '/(lo|tunl0|sit0)$'
  nft list tables
  ls /run/netns 2>/dev/null
  ps -o args | grep -E '^[^ ]*(skiff|sleep|tail)'
}
say left
nothing() { [ ! -s $out ]; }
check nothing_is_left nothing

word=ok
[ $failed -eq 0 ] || word=FAILED
echo "test result: $word. $passed passed; $failed failed"
[ $failed -eq 0 ]
