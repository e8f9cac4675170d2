#!/bin/sh
# What an operator does, with the real programs on this machine: a server, and
# applications as containers and as virtual machines. Says of each test what
# `cargo test` would say, and shows what was said when one fails.
#
#   deploy.sh deploy    the life of a service, in each class
#   deploy.sh services  one service calls another, in each class
#   deploy.sh functions events for a runtime in a virtual machine
#   deploy.sh extensions  one beside a runtime, in a virtual machine
#   deploy.sh images    Python, and twenty layers, in virtual machines
#   deploy.sh runtimes  AWS's runtimes and functions from zip files, in virtual machines
#   deploy.sh ten       ten virtual machines at once, and three that callers start at once
part=$1
passed=0 failed=0
deadline=$((180 * SKIFF_SLOWNESS))
work=/run/deploy
. /usr/lib/extensions.sh
out=$work/out err=$work/err
mkdir -p $work

check() { # NAME CONDITION...
  name=$1
  shift
  if "$@"; then
    passed=$((passed + 1))
    echo "test $part::$name ... ok"
  else
    failed=$((failed + 1))
    echo "test $part::$name ... FAILED"
    echo "-- the last command ended with $status and said:"
    tail -c 4096 $out $err
    echo "-- the server:"
    tail -n 30 $work/server
    echo "-- the launcher:"
    tail -n 10 /run/skiff/launcher.log
  fi
}
say() { # COMMAND...: keeps its status and its output
  "$@" >$out 2>$err </dev/null
  status=$?
}
soon() { # CONDITION...: whether it comes to hold
  ends=$(($(cut -d. -f1 /proc/uptime) + deadline))
  until "$@"; do
    [ "$(cut -d. -f1 /proc/uptime)" -lt $ends ] || return
    usleep 100000
  done
}
ended() { [ "$status" -eq "$1" ]; }
succeeds() { say "$@" && ended 0; }

# A made-up internet beyond this machine, whose addresses nobody announces, and
# a private network and metadata there; and a server there and here.
make_internet() (
  set -e
  # Not the shell's own.
  ip=/usr/sbin/ip
  $ip netns add internet
  $ip link add up0 type veth peer name down0 netns internet
  # Neither end asks for link addresses: both have the same.
  link='address 02:00:00:00:00:01 arp off up'
  $ip -n internet link set lo up
  # shellcheck disable=SC2086
  $ip -n internet link set down0 $link
  for address in 11.22.33.44 10.9.9.9 169.254.169.254; do $ip -n internet address add $address dev lo; done
  $ip -n internet route add 11.0.0.1 dev down0
  # shellcheck disable=SC2086
  $ip link set up0 $link
  $ip address add 11.0.0.1 dev up0
  $ip route add default dev up0
  nsenter -n/run/netns/internet httpd -p 8000 -h /guest
  httpd -p 7001 -h /guest
)
connects() { # SERVICE ADDRESS/PORT
  ask "$1" "/connect/$2"
  ended 0 && grep -qx connected $out
}
reaches_nothing_else() { # SERVICE
  for place in 10.9.9.9/8000 169.254.169.254/8000 11.0.0.1/7001 127.0.0.1/7001; do
    connects "$1" $place && return 1
    ended 0 || return 1
  done
}

start() { # FLAG...
  skiff server --set worker.prepared_networks=1 --set microvm.boot_timeout_s=$((60 * SKIFF_SLOWNESS)) "$@" >>$work/server 2>&1 </dev/null &
  server=$!
  soon succeeds skiff ls
}
get() { # SERVICE PATH
  curl --silent --show-error --fail --max-time "$deadline" "http://$1.skiff.localhost:8080$2"
}
ask() { # SERVICE PATH
  say get "$@"
}
answers() { # SERVICE PATH TEXT
  ask "$1" "$2"
  ended 0 && grep -q "$3" $out
}
instances() { # SERVICE FIELD
  skiff describe "$1" --output json | jq -r ".instances[].$2"
}
# What an instance is to this machine: processes, or a monitor's folder, since
# monitors wait for their machines, too.
processes() { # CLASS
  case $1 in
    container) pgrep -f '^/testapp' ;;
    microvm) ls /run/skiff/launcher/vms 2>/dev/null ;;
  esac
}
runs() { [ -n "$(processes "$1")" ]; }
is_gone() { ! runs "$1"; }
idle() { [ -z "$(instances "$1" id)" ] && is_gone "$1"; }
in_output() { grep -q -- "$1" $out; }

# The life of a service of the name of its class. A request that goes on holds
# its instance until the server is killed.
life() { # CLASS STEP...: the steps of making its sandbox
  class=$1
  shift
  begun=$(cut -d. -f1 /proc/uptime)
  say skiff deploy "$class" --image testapp:1 --isolation "$class" --memory 64 --disk 16 --egress \
    --keep-alive $((10 * SKIFF_SLOWNESS)) --start-timeout "$deadline"
  check "${class}_is_deployed" ended 0
  check "${class}_answers" soon answers "$class" / '^hello'
  check "${class}_reaches_the_internet" soon connects "$class" 11.22.33.44/8000
  check "${class}_reaches_nothing_else" reaches_nothing_else "$class"
  get "$class" /sleep/100000000 >$work/held 2>&1 &
  request=$!
  held() { say instances "$class" in_flight && [ "$(cat $out)" = 1 ]; }
  check "${class}_has_a_request" soon held
  check "${class}_runs_as_processes_of_its_class" runs "$class"
  say instances "$class" class_reason
  check "${class}_is_told_with_its_reason" in_output "^$class: asked for"
  say skiff describe "$class"
  check "${class}_is_described" in_output "$class ($class: asked for)"
  ask "$class" /log/noted
  logged() { say skiff logs "$class" && grep -q 'stdout noted' $out && grep -q 'stderr noted' $out; }
  check "${class}_has_its_output_in_the_logs" soon logged

  ask "$class" /requests
  served=$(cat $out)
  before=$(instances "$class" id)
  kill -KILL $server
  wait $server $request
  start
  same() { say instances "$class" id && [ "$(cat $out)" = "$before" ] && [ -n "$before" ]; }
  check "${class}_outlives_the_server" same
  goes_on() { ask "$class" /requests && ended 0 && [ "$(cat $out)" = $((served + 1)) ]; }
  check "${class}_is_the_same_process_as_before" goes_on
  check "${class}_reaches_the_internet_as_before" soon connects "$class" 11.22.33.44/8000

  check "${class}_scales_to_zero" soon idle "$class"
  check "${class}_starts_when_it_is_asked" soon answers "$class" / '^hello'
  say skiff trace "$class" -n 1
  cat $out
  explained() {
    grep -q "($class)" $out || return
    for phase in queue "$@" sandbox app first_byte; do grep -q "^ *$phase  *[0-9.]* ms" $out || return; done
  }
  check "${class}s_cold_start_is_explained" explained "$@"
  say skiff rm "$class"
  check "${class}_is_removed" ended 0
  check "${class}_leaves_no_process" soon is_gone "$class"
  echo "$class: $(($(cut -d. -f1 /proc/uptime) - begun)) s"
}

# Who asks for no class has a machine where they come up.
unasked() {
  say skiff deploy unasked --image testapp:1 --memory 32 --start-timeout "$deadline"
  check who_asks_for_no_class_is_deployed ended 0
  check who_asks_for_no_class_is_answered soon answers unasked / '^hello'
  say skiff describe unasked
  check who_asks_for_no_class_has_a_machine in_output 'microvm: virtual machines come up on this host'
  billed() {
    say skiff usage unasked --output json
    jq -e '.rows | length == 1 and .[0].class == "microvm" and .[0].fell_back == []' $out >/dev/null
  }
  check who_asks_for_no_class_is_billed_a_machine soon billed
  say skiff doctor
  check the_doctor_says_that_machines_are_what_one_gets in_output 'isolation: microvm, or container'
  say skiff rm unasked
  check who_asks_for_no_class_leaves_no_process soon is_gone microvm
}

deploy() { # CLASS NAME IMAGE OPTION...
  class=$1 name=$2 image=$3
  shift 3
  skiff deploy "$name" --image "$image" --isolation "$class" --start-timeout "$deadline" "$@"
}
asleep() { [ -z "$(instances "$1" id)" ]; }

# One service calls another by its name, whoever is the server.
calls() { # CLASS
  class=$1
  say deploy "$class" called testapp:1 --memory 32 --keep-alive 1 --env WHO=somebody
  check "${class}_to_be_called_is_deployed" ended 0
  say deploy "$class" caller testapp:1 --memory 32 --keep-alive $((600 * SKIFF_SLOWNESS))
  check "${class}_that_calls_is_deployed" ended 0
  check "${class}_to_be_called_is_at_zero" soon asleep called
  calling() { answers caller /get/called.skiff.internal/80/env,WHO somebody; }
  check "${class}_calls_another_from_zero" soon calling
  check "${class}_has_names_of_services" answers caller /resolve/called.skiff.internal '^198\.18\.0\.1$'
  ask caller /resolve/somewhere.example
  check "${class}_has_no_names_of_the_world_without_egress" in_output failed
  before=$(instances caller id)
  kill -KILL $server
  wait $server
  start
  check "${class}_calls_another_by_the_next_server" soon calling
  former=$server
  start --replace
  wait $former
  check "${class}_calls_another_after_a_handover" soon calling
  same() { say instances caller id && [ "$(cat $out)" = "$before" ] && [ -n "$before" ]; }
  check "${class}_that_calls_is_still_the_same" same
  say skiff rm called
  say skiff rm caller
  check "${class}_services_leave_no_process" soon is_gone "$class"
}

at_most() { # MOST NUMBER
  [ "$2" -lt "$1" ] && echo "$2" || echo "$1"
}
# A function's own flags; a machine takes long to come up here.
event_s=5
deploy_function() { # NAME IMAGE MIB OPTION...
  name=$1 image=$2 memory=$3
  shift 3
  say skiff deploy "$name" --function --image "$image" --isolation microvm --memory "$memory" \
    --init-timeout "$(at_most 900 "$deadline")" --timeout "$(at_most 900 $((event_s * SKIFF_SLOWNESS)))" \
    --keep-alive $((600 * SKIFF_SLOWNESS)) --max 1 "$@"
}
# What an event gets: its answer's body to $out, the head to $work/head.
invoke() { # NAME EVENT HEADER...
  to=$1 event=$2
  shift 2
  headers=
  for header in "$@"; do headers="$headers -H $header"; done
  # shellcheck disable=SC2086
  say curl --silent --show-error --max-time $((3 * deadline)) -D $work/head --data-binary "$event" $headers \
    "http://$to.skiff.localhost:8080/"
}
gets() { # NAME EVENT ANSWER
  invoke "$1" "$2"
  ended 0 && [ "$(cat $out)" = "$3" ] && ! grep -qi '^x-amz-function-error' $work/head
}
fails() { # NAME EVENT KIND WORDS
  invoke "$1" "$2"
  ended 0 && grep -qi '^x-amz-function-error: Unhandled' $work/head && in_output "\"$3\"" && in_output "$4"
}
is_paused() { [ "$(instances "$1" state)" = paused ]; }
another() { [ -n "$(instances "$1" id)" ] && [ "$(instances "$1" id)" != "$2" ]; }

# A shell that asks for events over and over, in a machine. What ends its
# machine is followed by another machine, and its caller notices nothing but
# the time.
functions() {
  say skiff image import /images/small-function --name small:1
  check a_function_is_imported ended 0
  deploy_function small small:1 48
  check a_function_is_deployed ended 0
  check a_function_answers soon gets small '{"a":[1,2]}' '{"a":[1,2]}'
  say instances small class_reason
  check a_function_is_in_a_machine in_output '^microvm: asked for'
  before=$(instances small id)
  check a_function_writes_to_tmp_alone gets small '"write"' 'root read-only, tmp writable'
  invoke small '"context"' 'x-amz-request-id:2f2b9c4e-52e3-4a0f-8f6a-1f0e7c1d2b3a'
  check a_function_is_told_its_event in_output \
    ':function:small  2f2b9c4e-52e3-4a0f-8f6a-1f0e7c1d2b3a 993 '
  check a_function_s_error_is_told fails small '"error"' Own.Error 'as asked'
  check a_first_answer_is_in_time gets small '"late"' '"fresh none"'
  check a_late_answer_is_refused gets small '"late"' '"fresh 403"'
  invoke small '"speak"' 'x-amz-log-type:Tail'
  tailed() {
    sed -n 's/^x-amz-log-result: *//Ip' $work/head | tr -d '\r' | base64 -d >$work/tail
    grep -q 'it says something' $work/tail && grep -q 'and complains' $work/tail && grep -q '^REPORT ' $work/tail
  }
  check a_function_s_log_comes_along tailed
  check an_answer_that_is_too_large_is_told fails small '"large 7000000"' Function.ResponseSizeTooLarge 7000000
  check a_function_is_paused_between_events soon is_paused small
  check a_function_goes_on gets small 7 7
  check all_events_had_the_same_machine [ "$(instances small id)" = "$before" ]

  check a_function_runs_out_of_time fails small '"sleep"' Sandbox.Timedout 'Task timed out after'
  check a_function_answers_after_a_timeout soon gets small 8 8
  check another_machine_follows_a_timeout another small "$before"
  check a_function_that_exits_is_told fails small '"exit 1"' Runtime.ExitError 'exit status 1'
  check a_function_answers_after_an_exit soon gets small 9 9
  check a_function_that_crashes_is_told fails small '"crash"' Runtime.ExitError 'segmentation fault'
  check a_function_answers_after_a_crash soon gets small 10 10
  invoke small '"stream and crash"' TE:trailers
  broken_off() {
    [ "$(cat $out)" = first ] && grep -qi '^x-amz-function-error: Runtime.ExitError' $work/head
  }
  check a_function_that_crashes_in_its_answer_is_told broken_off
  check a_function_answers_after_a_broken_answer soon gets small 10 10
  kill -KILL $server
  wait $server
  start
  check a_function_answers_by_the_next_server soon gets small 11 11

  check a_function_is_paused_again soon is_paused small
  before=$(instances small id)
  # shellcheck disable=SC2046
  kill -KILL $(pgrep -f -- --no-api)
  twice() { gets "$@" || gets "$@"; }
  check a_dead_warm_machine_costs_its_caller_one_retry_at_most twice small 12 12
  check another_machine_follows_a_dead_one another small "$before"
  say skiff rm small
  check a_function_is_removed ended 0

  deploy_function extended small:1 48 --handler extension
  check a_function_with_an_extension_is_deployed ended 0
  check a_function_with_an_extension_answers soon gets extended 1 1
  logged() { say skiff logs extended && in_output "$1"; }
  check an_extension_works_on_after_the_answer soon logged 'the extension has seen'
  say skiff scale extended --max 2
  check a_function_with_an_extension_is_replaced ended 0
  check an_extension_is_told_of_the_end soon logged 'the extension ends'
  say skiff rm extended
  check functions_leave_no_process soon is_gone microvm
}

# An interpreter out of a distribution's packages, and an image of many layers.
images() {
  say skiff image import /images/hello-python --name hello-python:1
  check a_python_image_is_imported ended 0
  say deploy microvm python hello-python:1 --memory 96
  check a_python_application_is_deployed ended 0
  check a_python_application_answers soon answers python / '^hello from python-00001 on Python 3'
  say skiff rm python
  say skiff image import /images/layered --name layered:1
  check an_image_of_twenty_layers_is_imported ended 0
  say deploy microvm layered layered:1 --memory 32
  check twenty_layers_are_deployed ended 0
  all_layers() {
    for number in $(seq 2 20); do answers layered "/$number" "^layer $number$" || return; done
  }
  check each_layer_is_there all_layers
  check the_uppermost_layer_counts answers layered /last '^layer 20$'
  say skiff rm layered
  check images_leave_no_process soon is_gone microvm
}

# Each of AWS's runtimes that this machine's maker could make, with the words of
# its own in its errors. Those that run out of time do so together.
runtimes() {
  # A JVM's first event takes some seconds.
  event_s=10
  : >$work/made
  runtime python 96 --env WATCH=1
  told_all() {
    invoke python '"seen"'
    jq -e '[.[].type] as $told | ["platform.initStart", "platform.initReport", "platform.start", "platform.runtimeDone"]
      - $told == [] and any(.[]; .type == "platform.report" and .record.metrics.maxMemoryUsedMB > 0)' $out >/dev/null
  }
  check telemetry_comes_into_a_machine soon told_all
  runtime node 192
  runtime java 256
  runtime go 48
  runtime rust 48
  for kind in $(cat $work/made); do
    # Of its own, so that it is this that is waited for.
    curl --silent --show-error --max-time $((3 * deadline)) -D $work/head-$kind --data-binary '{"sleep":100000}' \
      "http://$kind.skiff.localhost:8080/" >$work/answer-$kind 2>&1 &
    eval "caller_$kind=\$!"
  done
  for kind in $(cat $work/made); do
    eval "wait \$caller_$kind"
    status=$?
    cp $work/answer-$kind $out
    timed_out() { in_output '"Sandbox.Timedout"' && in_output 'Task timed out after'; }
    check "a_function_on_${kind}_runs_out_of_time" timed_out
    say skiff rm "$kind"
  done
  zips
  check runtimes_leave_no_process soon is_gone microvm
}
runtime() { # KIND MIB OPTION...
  kind=$1 memory=$2
  shift 2
  if [ -e "/images/$kind-function.lacks" ]; then
    echo "runtimes: $kind has NOT RUN: its maker lacked $(cat "/images/$kind-function.lacks")"
    return
  fi
  begun=$(cut -d. -f1 /proc/uptime)
  echo "$kind" >>$work/made
  say skiff image import "/images/$kind-function" --name "$kind-function:1"
  check "${kind}s_image_is_imported" ended 0
  deploy_function "$kind" "$kind-function:1" "$memory" --env EQUALS=a=b=c "$@"
  check "a_function_on_${kind}_is_deployed" ended 0
  answers_alike() { gets_json "$kind" '{"a":[1,"b"],"c":{"d":true}}' '{"a":[1,"b"],"c":{"d":true}}'; }
  check "a_function_on_${kind}_answers" soon answers_alike
  check "a_function_on_${kind}_has_its_environment" gets_json "$kind" '{"env":"EQUALS"}' '"a=b=c"'
  check "a_function_on_${kind}_has_its_name" gets_json "$kind" '{"env":"AWS_LAMBDA_FUNCTION_NAME"}' "\"$kind\""
  check "a_function_on_${kind}_tells_its_error" fails "$kind" '{"raise":"on purpose"}' Broken 'on purpose'
  check "a_function_on_${kind}_goes_on" gets_json "$kind" 6 6
  say instances "$kind" class_reason
  check "a_function_on_${kind}_is_in_a_machine" in_output '^microvm: asked for'
  echo "$kind: $(($(cut -d. -f1 /proc/uptime) - begun)) s"
}
gets_json() { # NAME EVENT ANSWER: the same values, however they are written
  invoke "$1" "$2"
  ended 0 && [ "$(jq -cS . <$out)" = "$3" ] && ! grep -qi '^x-amz-function-error' $work/head
}

# Zip files over a runtime's image and over nothing, above the same layer, by
# AWS's API. Who asks for no class has machines.
zips() {
  say skiff key create zips --output json
  check a_key_is_made ended 0
  key=$(jq -r '.id + ":" + .secret' $out)
  zipped() { base64 -w0 "/zips/$1.zip" >$work/zip; }
  zipped layer
  jq -n --rawfile zip $work/zip '{Content: {ZipFile: $zip}}' >$work/body
  signed POST /2018-10-31/layers/words/versions
  check a_layer_is_published in_output '"Version":1'
  layer=$(jq -r .LayerVersionArn $out)
  zip_function own provided.al2023 any
  said() { invoked own '{"a":[1]}' && jq -e '.event == {a: [1]} and .said == "of a layer" and .root == "/var/task"' $out >/dev/null; }
  check a_zip_over_nothing_answers soon said
  check a_zip_over_nothing_is_in_a_machine soon in_a_machine own
  zip_function mine python3.12 mine.handler
  said() { invoked mine '{"a":[1]}' && jq -e '. == {event: {a: [1]}, said: "of a layer", handler: "mine.handler"}' $out >/dev/null; }
  check a_zip_over_a_runtime_answers soon said
  check a_zip_over_a_runtime_is_in_a_machine soon in_a_machine mine
  signed POST /2015-03-31/functions/mine/invocations '"fail"'
  check a_zips_error_is_told in_output '"errorType": *"KeyError"'
  for zip in own mine; do
    signed DELETE /2015-03-31/functions/$zip
    check "the_zip_${zip}_is_deleted" ended 0
  done
}
# Its instance may be gone by the time that one asks.
in_a_machine() { # NAME
  invoked "$1" 1 && say skiff describe "$1" && in_output 'microvm: virtual machines come up on this host'
}
zip_function() { # NAME RUNTIME HANDLER
  zip=$1
  zipped "$zip"
  jq -n --rawfile zip $work/zip --arg name "$zip" --arg runtime "$2" --arg handler "$3" --arg layer "$layer" \
    --argjson timeout "$(at_most 900 $((60 * SKIFF_SLOWNESS)))" '{
    FunctionName: $name, Role: "arn:aws:iam::000000000001:role/any", Runtime: $runtime, Handler: $handler,
    MemorySize: 128, Timeout: $timeout, Layers: [$layer], Code: {ZipFile: $zip}}' >$work/body
  signed POST /2015-03-31/functions
  check "the_zip_${zip}_is_taken" in_output '"State":"Pending"'
  is_active() { signed GET "/2015-03-31/functions/$zip/configuration" && in_output '"State":"Active"'; }
  check "the_zip_${zip}_is_active" soon is_active
}
invoked() { # NAME EVENT
  signed POST "/2015-03-31/functions/$1/invocations" "$2" && ended 0
}
# As AWS's clients sign it: $work/body or what is given.
signed() { # METHOD PATH [BODY]
  [ "$1" != POST ] || [ $# -lt 3 ] || printf %s "$3" >$work/body
  data=
  [ "$1" != POST ] || data="--data-binary @$work/body"
  # shellcheck disable=SC2086
  say curl --silent --show-error --fail-with-body --max-time $((3 * deadline)) --user "$key" \
    --aws-sigv4 aws:amz:us-east-1:lambda -X "$1" $data "http://127.0.0.1:9090$2"
}

# Each has one of the requests; none of these ends before all have come.
ten() {
  burst
  say deploy microvm ten testapp:1 --memory 32 --concurrency 1 --min 10 --max 10
  check ten_machines_are_deployed ended 0
  all_run() { [ "$(instances ten state | grep -cE "ready|paused")" -eq 10 ]; }
  check ten_machines_come_up soon all_run
  requests=
  for number in 1 2 3 4 5 6 7 8 9 10; do
    # Of its own, so that it is this that is killed.
    curl --silent --max-time 100000 http://ten.skiff.localhost:8080/sleep/100000000 >/dev/null 2>&1 &
    requests="$requests $!"
  done
  busy() { [ "$(instances ten in_flight | grep -cx 1)" -eq 10 ]; }
  check ten_machines_have_a_request_each soon busy
  # shellcheck disable=SC2086
  kill $requests
  # shellcheck disable=SC2086
  wait $requests
  free() { [ "$(instances ten in_flight | grep -cx 0)" -eq 10 ]; }
  check ten_machines_are_free_again soon free
  requests=
  for number in 1 2 3 4 5 6 7 8 9 10; do
    get ten / >$work/answer-$number 2>&1 &
    requests="$requests $!"
  done
  # shellcheck disable=SC2086
  wait $requests
  all_answer() { [ "$(cat $work/answer-* | grep -c '^hello')" -eq 10 ]; }
  check ten_machines_answer all_answer
  say skiff rm ten
  check ten_machines_leave_no_process soon is_gone microvm
  no_folder() { [ -z "$(ls /run/skiff/launcher/vms)" ]; }
  check ten_machines_leave_no_folder soon no_folder
}

# Three callers of a service that is at zero start a machine each, and none of
# these waits for another.
burst() {
  say deploy microvm burst testapp:1 --memory 32 --concurrency 1 --max 3 --keep-alive 1
  check what_is_called_at_once_is_deployed ended 0
  check what_is_called_at_once_is_at_zero soon asleep burst
  requests=
  for number in 1 2 3; do
    # Longer than one machine may come up behind another.
    get burst /sleep/$((20000 * SKIFF_SLOWNESS)) >$work/answer-$number 2>&1 &
    requests="$requests $!"
  done
  # shellcheck disable=SC2086
  wait $requests
  all_answer() { [ "$(cat $work/answer-[123] | grep -c '^slept')" -eq 3 ]; }
  check three_callers_at_once_are_answered all_answer
  say skiff trace burst -n 3 --output json
  overlap() {
    jq -e 'map((.unix_ms * 1000) as $came | (.phases_us | map(.[1]) | add) as $all
        | (.phases_us | map({(.[0]): .[1]}) | add) as $phase
        | {begun: ($came + $phase.queue), up: ($came + $all - $phase.first_byte)})
      | length == 3 and (map(.begun) | max) < (map(.up) | min)' $out
  }
  check their_machines_start_beside_each_other overlap
  say skiff rm burst
  check what_was_called_at_once_leaves_no_process soon is_gone microvm
}

if [ "$part" = deploy ]; then
  say make_internet
  check there_is_an_internet ended 0
fi
served=
[ "$part" != runtimes ] || served="--set lambda.listen=127.0.0.1:9090 --set lambda.runtimes={\"python3.12\"=\"python-function:1\"}"
# shellcheck disable=SC2086
check a_server_starts start $served
say skiff image import /images/testapp --name testapp:1
check an_image_is_imported ended 0
# It is found out while the server serves, once in the life of a machine.
tried() { jq -e .booted /run/skiff/microvm.json >/dev/null 2>&1; }
case $part in
  deploy)
    life container
    check virtual_machines_are_tried soon tried
    life microvm monitor kernel layers agent
    unasked
    ;;
  services)
    calls container
    check virtual_machines_are_tried soon tried
    calls microvm
    ;;
  *)
    check virtual_machines_are_tried soon tried
    $part
    ;;
esac

kill -TERM $server
wait $server
start --stop-all
id=$(cat /var/lib/skiff/server-id)
kill -TERM $server
wait $server
status=$?
check a_server_ends_with_all_it_has ended 0
left() {
  find /sys/fs/cgroup -mindepth 1 -type d -name "*$id*"
  grep /skiff /proc/self/mountinfo
  cat /sys/block/loop*/loop/backing_file 2>/dev/null | grep /skiff
  ls /run/skiff/launcher/vms 2>/dev/null
  ls /sys/class/net | grep ^sk
  nft list tables | grep skiff
  pgrep -fl "$id|--no-api|^skiff|^/testapp"
}
nothing() { say left && [ ! -s $out ]; }
check nothing_is_left soon nothing

word=ok
[ $failed -eq 0 ] || word=FAILED
echo "test result: $word. $passed passed; $failed failed"
[ $failed -eq 0 ]
