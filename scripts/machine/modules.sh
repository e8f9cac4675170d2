# Sourced: a kernel's modules, and initramfses of busybox with some of them.

# Modules' files and those that they need, in the order in which they load.
files_of() { # FOLDER VERSION MODULE...
  modprobe -d "$1" -S "$2" --ignore-install -a --show-depends "${@:3}" \
    | awk '$1 == "insmod" && !seen[$2]++ { print $2 }'
}

# A folder with busybox, the modules under /modules by the order of their
# names, and the first process.
initramfs_root() { # ROOT INIT FOLDER VERSION MODULE...
  local root=$1
  mkdir -p "$root/bin"
  cp /bin/busybox "$root/bin/"
  install -m 0755 "$2" "$root/init"
  modules_root "$root" "${@:3}"
}

# Modules under /modules, by the order of their names.
modules_root() { # ROOT FOLDER VERSION MODULE...
  local root=$1 number=100 file
  mkdir -p "$root/modules"
  for file in $(files_of "${@:2}"); do
    cp "$file" "$root/modules/$number-${file##*/}"
    number=$((number + 1))
  done
}

pack_initramfs() { # ROOT
  (cd "$1" && find . | LC_ALL=C sort | busybox cpio -o -H newc 2>/dev/null)
}
