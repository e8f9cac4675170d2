#!/usr/bin/env bash
# A QEMU that emulates nested processors and keeps their interrupts: before 10.2
# it changed a processor's word of pending ones without a lock, so that one was
# lost now and then, or a guest's was given to the kernel below it. Prints the
# program: the installed one when it is new enough, or else one that is unpacked
# from Debian's packages, with the libraries that it wants. Nothing is installed.
#
# Kept by the hash of this recipe in the user's cache folder.
set -euo pipefail
cd "$(dirname "$0")"

say() { echo "qemu: $*" >&2; }
least=10.2
suite=trixie
installed=$(qemu-system-x86_64 --version | sed -n 's/^QEMU emulator version \([0-9.]*\).*/\1/p')
if [ "$(printf '%s\n' "$least" "$installed" | sort -V | head -n 1)" = "$least" ]; then
  command -v qemu-system-x86_64
  exit
fi

cache=${SKIFF_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/skiff}
key=$(sha256sum <qemu.sh | cut -c1-16)
out=$cache/qemu-$key
mkdir -p "$cache"
# One maker at a time: who comes later finds it done.
exec 9>"$cache/qemu.lock"
flock 9
if [ ! -e "$out/done" ]; then
  say "$installed is installed, which loses interrupts; fetching $suite's newest (a quarter of a minute, once)"
  rm -rf "$out"
  mkdir -p "$out"
  # shellcheck disable=SC2016 # The hook's own $1.
  mmdebstrap --quiet --variant=extract --include=qemu-system-x86 \
    --aptopt='APT::Install-Recommends "false"' \
    --aptopt="APT::Default-Release \"$suite-backports\"" \
    --setup-hook='sed -n "s/ '"$suite"' / '"$suite"'-backports /p" "$1/etc/apt/sources.list" >"$1/etc/apt/sources.list.d/backports.list"' \
    "$suite" "$out/root" >&2
  root=$out/root/usr
  cat >"$out/qemu" <<SCRIPT
#!/bin/sh
exec $root/lib64/ld-linux-x86-64.so.2 --library-path $root/lib/x86_64-linux-gnu \\
  $root/bin/qemu-system-x86_64 -L $root/share/qemu -L $root/share/seabios "\$@"
SCRIPT
  chmod +x "$out/qemu"
  "$out/qemu" --version >&2
  touch "$out/done"
fi
echo "$out/qemu"
