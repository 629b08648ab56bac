#!/usr/bin/env bash
# Runs a command as root with the caller's environment: scripts/as-root.sh ./target/labctl up dsr
#
# Network namespaces and eBPF need root; building does not. As root this changes nothing.
set -euo pipefail

if [[ "$(id -u)" == 0 ]]; then
    exec "$@"
fi
if ! command -v sudo >/dev/null; then
    echo "root is needed to run $1 (network namespaces, eBPF), and sudo is not installed: run this as root" >&2
    exit 3
fi
if [[ -t 0 ]]; then
    sudo -v -p "[sudo] root is needed for network namespaces and eBPF; password for %p: "
elif ! sudo -n true 2>/dev/null; then
    echo "root is needed to run $1 (network namespaces, eBPF), and sudo asks for a password:" \
        "run this as root or on a terminal" >&2
    exit 3
fi
# sudo resets PATH even with -E.
exec sudo -E env "PATH=$PATH" "$@"
