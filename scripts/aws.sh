#!/usr/bin/env bash
# Makes a Python environment with AWS's own clients, for tests: boto3, the AWS
# CLI, and moto for queues and an S3-compatible store, from the package index.
# Prints its folder, which is kept in the user's cache folder by the hash of
# this recipe.
set -euo pipefail
cd "$(dirname "$0")/.."

cache=${SKIFF_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/skiff}
key=$(cat scripts/aws.sh <(/usr/bin/python3 --version) | sha256sum | cut -c1-16)
out=$cache/aws-$key
if [ ! -e "$out/done" ]; then
  mkdir -p "$cache"
  # One maker at a time: who comes later finds it done.
  exec 9>"$cache/aws.lock"
  flock 9
fi
if [ ! -e "$out/done" ]; then
  echo "aws: fetching boto3, the AWS CLI and moto (half a minute, once)" >&2
  rm -rf "$out"
  /usr/bin/python3 -m venv "$out"
  "$out/bin/pip" install --quiet --disable-pip-version-check 'boto3>=1.43,<2' 'awscli>=1.43,<2' \
    'moto[s3]>=5.1,<6' 'flask>=3,<4' 'flask-cors>=6,<7' >&2
  touch "$out/done"
fi
echo "$out"
