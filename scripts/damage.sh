#!/usr/bin/env bash
# Tests the judge on a run of every bundled lab: scripts/damage.sh COUNT
#
# Each lab comes up, is verified, and its evidence is damaged COUNT times. Fails when the judge misses one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

count="${1:?usage: scripts/damage.sh COUNT}"
labctl() { scripts/as-root.sh ./target/labctl "$@"; }

up=""
trap '[[ -z "$up" ]] || labctl down "$up"' EXIT
for lab in dsr snat hybrid local; do
    labctl up "$lab"
    up="$lab"
    labctl verify "$lab" --self-test="$count"
    labctl down "$lab"
    up=""
done
