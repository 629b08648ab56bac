#!/usr/bin/env bash
# Runs a command with a Rust that is new enough first on PATH: scripts/rust.sh cargo build
#
# Sourced, it only defines `find_rust`, which setup.sh uses too. It installs nothing.
#
# Order: the cargo on PATH, then rustup's own folder (a shell opened before rustup was installed
# lacks it), then Debian's /usr/bin/cargo. rustup's proxy fails here when the toolchain that
# rust-toolchain.toml names is not installed; such a cargo counts as absent.

# The `rust-version` of Cargo.toml.
MIN_RUST=1.95

repo="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

# at_least VERSION MINIMUM: compares major.minor.
at_least() {
    local have_major have_minor min_major min_minor
    IFS=. read -r have_major have_minor _ <<<"$1"
    IFS=. read -r min_major min_minor _ <<<"$2"
    ((have_major > min_major || (have_major == min_major && have_minor >= min_minor)))
}

# Prints the version of a rustc or cargo as the repository sees it; fails if it does not run there.
version_of() {
    local line
    line="$(cd "$repo" && "$1" --version 2>/dev/null)" || return 1
    line="${line#* }"
    printf '%s\n' "${line%% *}"
}

# Prints the folder that must come first on PATH; fails if there is no Rust of MIN_RUST or newer.
find_rust() {
    local cargo rustc
    for cargo in "$(command -v cargo || true)" "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" /usr/bin/cargo; do
        [[ -n "$cargo" && -x "$cargo" ]] || continue
        rustc="${cargo%/*}/rustc"
        if at_least "$(version_of "$cargo" || echo 0.0)" "$MIN_RUST" &&
            at_least "$(version_of "$rustc" || echo 0.0)" "$MIN_RUST"; then
            printf '%s\n' "${cargo%/*}"
            return 0
        fi
    done
    return 1
}

if [[ "${BASH_SOURCE[0]}" == "$0" ]]; then
    set -euo pipefail
    if ! bin="$(find_rust)"; then
        echo "no cargo $MIN_RUST or newer found: run 'make setup', or install Rust from https://rustup.rs" >&2
        exit 3
    fi
    # setup.sh puts bpf-linker into its own folder; it goes before one of another version on PATH.
    export PATH="${XDG_CACHE_HOME:-$HOME/.cache}/labctl/tools/bin:$bin:$PATH"
    exec "$@"
fi
