# Sourced by deploy.sh: a function whose image has an external extension, in a
# virtual machine.
extensions() {
  say skiff image import /images/watched-function --name watched:1
  check an_image_with_an_extension_is_imported ended 0
  deploy_function watched watched:1 64
  check a_watched_function_is_deployed ended 0
  logged() { say skiff logs watched && in_output "$1"; }
  check an_extension_starts_without_what_is_the_runtime_s soon logged \
    'the watcher is there, without a handler, in /$'
  check a_watched_function_answers soon gets watched 1 1
  say instances watched class_reason
  check a_watched_function_is_in_a_machine in_output '^microvm: asked for'
  check an_extension_sees_events soon logged 'the watcher has seen'
  check a_watched_function_is_paused_between_events soon is_paused watched
  before=$(instances watched id)
  check a_watched_function_goes_on gets watched 2 2
  check both_events_had_the_same_machine [ "$(instances watched id)" = "$before" ]

  kill -KILL $server
  wait $server
  start
  check a_watched_function_answers_by_the_next_server soon gets watched 3 3
  check another_machine_follows_a_lost_server another watched "$before"
  check a_watched_function_runs_out_of_time fails watched '"sleep"' Sandbox.Timedout 'Task timed out after'
  # It has two seconds, whatever the machine's speed.
  told() { logged 'the watcher ends: .*timeout' || { fails watched '"sleep"' Sandbox.Timedout 'timed out' && false; }; }
  check an_extension_is_told_of_a_timeout soon told
  check a_watched_function_ends fails watched '"exit 3"' Runtime.ExitError 'exit status 3'
  check an_extension_is_told_of_a_failure soon logged 'the watcher ends: .*failure'
  say skiff rm watched
  check a_watched_function_is_removed ended 0

  deploy_function left watched:1 64 --env LEAVE=1
  check a_function_whose_extension_leaves_is_deployed ended 0
  check an_extension_that_ends_is_told fails left '"sleep"' Extension.Crash 'exit status 3'
  say skiff rm left

  say skiff image import /images/plain-function --name plain:1
  check an_image_with_a_plain_file_as_extension_is_imported ended 0
  deploy_function plain plain:1 64
  check an_extension_that_cannot_start_ends_the_start ended 1
  check an_extension_that_cannot_start_is_told_of grep -q 'Extension.LaunchError.*/opt/extensions/plain' $err
  check watched_functions_leave_no_process soon is_gone microvm
}
