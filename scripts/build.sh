#!/usr/bin/env bash
# Builds the static release binary and puts it at target/labctl.
#
# Static, because the same file is copied into nodes of every distribution. On the gnu target that is
# `+crt-static`, with an explicit --target: without one the flag would reach procedural macros too,
# which cannot be static. The flag is set for that target alone, not in RUSTFLAGS, so it never
# reaches the build of the eBPF object either.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

host="$(scripts/rust.sh rustc --print host-tuple)"
target_dir="${CARGO_TARGET_DIR:-target}"

variable="CARGO_TARGET_$(tr 'a-z-' 'A-Z_' <<<"$host")_RUSTFLAGS"
export "$variable=${!variable:+${!variable} }-C target-feature=+crt-static"
scripts/rust.sh cargo build --release --package labctl --bin labctl --target "$host"

built="$target_dir/$host/release/labctl"
if LC_ALL=C readelf --program-headers "$built" | grep -q INTERP; then
    echo "build: $built is not static: RUSTFLAGS or build.rustflags override the flag; unset them" >&2
    exit 1
fi

# A new file under the old name: a running labctl keeps the old one, and writing to it would fail.
if ! cmp -s "$built" target/labctl; then
    mkdir -p target
    cp "$built" "target/labctl.new.$$"
    mv -f "target/labctl.new.$$" target/labctl
fi
