# Sourced by an initramfs's first process: loads its modules.
b=/bin/busybox
load_modules() {
  for module in /modules/*; do
    case $module in
      *.ko) $b insmod "$module" || fail "$module" ;;
      *.xz) $b xz -dc "$module" >/module.ko && $b insmod /module.ko || fail "$module" ;;
      *) fail "$module is packed in an unknown way" ;;
    esac
  done
}
