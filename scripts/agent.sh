#!/usr/bin/env bash
# Builds the agent, which is one static file: it runs where there is nothing
# else. Prints its path. A release lies beside `skiff`, too, which looks there.
#
# SKIFF_PROFILE=dev builds it quicker.
set -euo pipefail
cd "$(dirname "$0")/.."

profile=${SKIFF_PROFILE:-release}
target=x86_64-unknown-linux-gnu
RUSTFLAGS="-C target-feature=+crt-static" cargo build --quiet --profile "$profile" \
  -p skiff-agent --bin skiff-agent --target "$target" --target-dir target/static >&2
folder=$profile
[ "$profile" = dev ] && folder=debug
built=target/static/$target/$folder/skiff-agent
# Debug builds of the workspace put one of their own there, which is not static.
[ "$profile" != release ] || install -D -m 0755 "$built" target/release/skiff-agent
echo "$built"
