#!/usr/bin/env bash
# Unpacks the kernel that a package of Debian's depends on. Nothing is
# installed. Prints its folder, which has boot/vmlinuz-VERSION,
# lib/modules/VERSION and the package itself as package.deb, and the version.
#
#   package.sh linux-image-amd64
#
# Kept by the package's own hash in the user's cache folder.
set -euo pipefail

say() { echo "kernel: $*" >&2; }
meta=$1
cache=${SKIFF_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/skiff}

find_package() {
  apt-cache depends "$meta" 2>/dev/null | awk '$1 == "Depends:" && $2 ~ /^linux-image-/ { print $2; exit }'
}
package=$(find_package)
if [ -z "$package" ] && [ "$(id -u)" -eq 0 ]; then
  apt-get -qq update >&2
  package=$(find_package)
fi
hash=$(apt-cache show --no-all-versions "$package" 2>/dev/null | awk '$1 == "SHA256:" { print $2; exit }')
if [ -z "$package" ] || [ -z "$hash" ]; then
  say "apt knows no $meta: this test needs Debian's package sources"
  exit 1
fi
version=${package#linux-image-}
out=$cache/package-${hash:0:16}
mkdir -p "$cache"
# One maker at a time: who comes later finds it done.
exec 9>"$cache/package.lock"
flock 9
if [ ! -e "$out/package.deb" ]; then
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  say "fetching $package (once)"
  # apt's sandbox user may not write into a private folder.
  (cd "$work" && apt-get -qq -o APT::Sandbox::User=root download "$package" >&2)
  echo "$hash  $(echo "$work/$package"_*.deb)" | sha256sum --quiet --check >&2
  mkdir -p "$out"
  mv "$work/$package"_*.deb "$out/package.deb"
fi
if [ ! -e "$out/done" ]; then
  say "unpacking $package (once)"
  dpkg -x "$out/package.deb" "$out"
  [ -d "$out/lib/modules/$version" ] || ln -s usr/lib "$out/lib"
  depmod -b "$out" "$version"
  touch "$out/done"
fi
echo "$out $version"
