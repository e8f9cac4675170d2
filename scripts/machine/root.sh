# Sourced: makes a machine's disk, a small Debian userland of copies of this
# machine's programs. $root is its folder.

add_program() { # FILE [PLACE]: with its libraries where the loader looks
  local library
  install -D -m 0755 "$1" "$root/${2:-$1}"
  for library in $(ldd "$1" 2>/dev/null | grep -o '/[^ ]*' || true); do
    [ -e "$root$library" ] || install -D -m 0755 "$library" "$root$library"
  done
}
add_stripped() { # FILE PLACE
  add_program "$1" "$2"
  strip --strip-debug "$root/$2"
}
add_named() { # NAME...: programs of this machine's, to /usr/sbin
  local name program
  for name in "$@"; do
    program=$(PATH=$PATH:/usr/sbin:/sbin command -v "$name") || { echo "disk: $name is missing" >&2; exit 1; }
    add_program "$(readlink -f "$program")" "/usr/sbin/$name"
  done
}

# Debian's merged /usr, so that each program has both of its names, with
# busybox, the kernel's modules, and the first process.
start_root() { # KERNEL GUEST
  local name
  mkdir -p "$root"/{dev,proc,sys,run,root,tmp,etc,tests,var/tmp,var/lib,usr/bin,usr/sbin,usr/lib,usr/lib64}
  for name in bin sbin lib lib64; do ln -s "usr/$name" "$root/$name"; done
  chmod 1777 "$root/tmp" "$root/var/tmp"
  add_program /bin/busybox /usr/bin/busybox
  for name in $(/bin/busybox --list); do
    [ -e "$root/usr/bin/$name" ] || ln -s busybox "$root/usr/bin/$name"
  done
  rm -f "$root/usr/bin/modprobe"
  add_named modprobe
  cp -a "$1/lib/modules" "$root/usr/lib/"
  install -m 0755 "$2" "$root/usr/sbin/guest"
  install -m 0644 "$(dirname "${BASH_SOURCE[0]}")"/{report,speed}.sh "$root/usr/lib/"
}

# Test programs by the names that cargo gives them, less the hash.
add_tests() { # TEST...
  local test name
  for test in "$@"; do
    name=$(basename "$test")
    # Tests' names end in a hash; those of their programs do not.
    add_stripped "$test" "/tests/$(sed 's/-[0-9a-f]\{16\}$//' <<<"$name")"
  done
}

make_disk() { # DISK SIZE
  rm -f "$1"
  truncate -s "$2" "$1"
  PATH=$PATH:/usr/sbin:/sbin mke2fs -q -F -t ext4 -O ^has_journal -d "$root" "$1"
}
