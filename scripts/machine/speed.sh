# Sourced by a machine's first process: how slow the machine is, by which every
# deadline is stretched.

centis() { tr -d . </proc/uptime | cut -d' ' -f1; }

# Sets $factor, how many times slower than on a quiet host of two cores, where
# this takes a second; $took, the hundredths of one that it took; and
# SKIFF_SLOWNESS.
measure_speed() { # SLOWNESS: as it was asked for
  started=$(centis)
  head -c 16777216 /dev/zero | sha256sum >/dev/null
  took=$(($(centis) - started))
  factor=$((took / 100 + 1))
  SKIFF_SLOWNESS=$(($1 * factor))
  export SKIFF_SLOWNESS
}
