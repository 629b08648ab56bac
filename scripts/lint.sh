#!/usr/bin/env bash
# Formatting, clippy, workflows and shell scripts; any finding fails.
#
# rustfmt and clippy must be there; actionlint and shellcheck are used where they are installed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cargo() { scripts/rust.sh cargo "$@"; }

if ! cargo fmt --version >/dev/null 2>&1 || ! cargo clippy --version >/dev/null 2>&1; then
    # A rustup with the minimal profile has neither; Debian's rustc-web never has.
    if ! scripts/rust.sh rustup component add rustfmt clippy >&2; then
        echo "lint: rustfmt and clippy are missing; they come with Rust from https://rustup.rs" >&2
        exit 3
    fi
fi

cargo fmt --all --check
cargo clippy --locked --workspace --all-targets --features labctl/mutations -- -D warnings

optional() {
    if command -v "$1" >/dev/null; then
        "$@"
    else
        echo "lint: $1 is not installed, skipped" >&2
    fi
}
optional shellcheck --external-sources scripts/*.sh .ci/run
optional actionlint
