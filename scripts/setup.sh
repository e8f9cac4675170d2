#!/usr/bin/env bash
# Installs what building, testing and the benches need and this machine lacks.
set -euo pipefail

packages=(
  attr binutils busybox-static curl docker-registry erofs-utils iproute2 jq kmod mmdebstrap
  nftables openssl procps python3 python3-venv qemu-system-x86 runc skopeo umoci e2fsprogs xz-utils
)
if [ "${1:-}" = bench ]; then
  packages+=(containerd haproxy nginx-light wrk)
fi

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if [ "${#missing[@]}" -gt 0 ]; then
  echo "set-up: installing ${missing[*]}"
  if [ "$(id -u)" -ne 0 ]; then
    echo "set-up: run it as root, or install them yourself: apt-get install ${missing[*]}" >&2
    exit 1
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
command -v cargo >/dev/null || {
  echo "set-up: Rust is missing; install it with rustup, then try again" >&2
  exit 1
}
