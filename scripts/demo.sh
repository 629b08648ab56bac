#!/usr/bin/env bash
# Brings a lab up, proves it, takes it down: scripts/demo.sh [LAB]
#
# Exits with the code of `labctl verify`, or of `labctl up` if that failed. The lab goes down in
# every case, Ctrl-C included.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

lab="${1:-dsr}"
labctl() { scripts/as-root.sh ./target/labctl "$@"; }

# After a failed `up` nothing is left to take down; labctl undoes it itself.
labctl up "$lab" || exit

down() {
    local code=$?
    labctl down "$lab" || echo "labctl down $lab failed; what is left: labctl list" >&2
    exit "$code"
}
trap down EXIT
# A signal ends `verify`, which cleans up after itself; this shell only has to live on until `down`.
trap 'exit 130' INT
trap 'exit 143' TERM

labctl verify "$lab"
