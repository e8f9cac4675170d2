#!/bin/sh
# Runs one test program as cargo does. An end-to-end test waits for other
# processes most of its time, so that more of them than there are processors run
# at once.
case $PWD in
  */crates/e2e) export RUST_TEST_THREADS=$((2 * $(nproc))) ;;
esac
exec "$@"
