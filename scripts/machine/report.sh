# Sourced by a machine's first process: runs test programs and reports. What
# is for people goes to the console; what is counted goes to the second serial
# port, one line each:
#
#   result NAME PASSED FAILED
#   end
report=/dev/ttyS1

# A word of the kernel's command line, which begins with "test.".
word() { tr ' ' '\n' </proc/cmdline | sed -n "s/^test\.$1=//p"; }

# Runs a test program and reports the sums of its summaries. One that says
# nothing, or ends badly without a failed test, counts as a failed test.
run() { # NAME COMMAND...
  name=$1
  shift
  echo "== $name (at $(cut -d. -f1 /proc/uptime) s)"
  { timeout -s KILL "${program_deadline:-$(word deadline)}" "$@" 2>&1; echo $? >/run/status; } | tee /run/log
  status=$(cat /run/status)
  passed=$(sed -n 's/^test result: .* \([0-9]*\) passed.*/\1/p' /run/log | awk '{ n += $1 } END { print n + 0 }')
  failed=$(sed -n 's/^test result: .* \([0-9]*\) failed.*/\1/p' /run/log | awk '{ n += $1 } END { print n + 0 }')
  if [ "$status" -ne 0 ] && [ "$failed" -eq 0 ] || [ "$((passed + failed))" -eq 0 ]; then
    echo "$name ended with $status after $passed tests passed"
    failed=$((failed + 1))
  fi
  echo "result $name $passed $failed" >$report
}

# Every name that was asked for, by the function `one`.
run_all() {
  for name in $(word only | tr , ' '); do
    one "$name"
  done
  echo end >$report
  sync
  poweroff -f
}
