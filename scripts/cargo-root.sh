#!/usr/bin/env bash
# Runs cargo so that what it builds runs as root: scripts/cargo-root.sh test --workspace
#
# Most tests need root, building does not. As another user everything is built as that user, and only
# the finished test and bench programs run through sudo, by cargo's `runner` setting.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cargo=(scripts/rust.sh cargo)
if [[ "$(id -u)" != 0 ]]; then
    echo "building as $(id -un); the programs that need root run through sudo" >&2
    # Ask for the password now, not in the middle of the output.
    scripts/as-root.sh true
    cargo+=(--config "target.'cfg(target_os = \"linux\")'.runner = ['$PWD/scripts/as-root.sh']")
fi

exec "${cargo[@]}" "$@"
