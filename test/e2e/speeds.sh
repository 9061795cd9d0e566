#!/usr/bin/env bash
# Speeds of GPUs: a dry run touches none, the first run measures those that it uses, and later plans
# know them. On the CUDA-on-CPU layer.
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$here" || exit 1
tmp=$(mktemp -d /tmp/tdgen-speeds-XXXXXX)
trap 'rm -rf "$tmp"' EXIT
export XDG_CACHE_HOME=$tmp/cache TDGEN_PRETEND_GPUS='Pretend A100:8.0:8:4*2,Pretend V100:7.0:8:4'
cache=$XDG_CACHE_HOME/tdgen/device-speeds.json
failed=0

plan() { # CONFIG...
    "$TDGEN" -c conf/demo.ini data.max_samples=6 data.max_length=32 run.batch_tokens=64 \
        devices.gpus_per_model=1 model.compute=f32 output.dir="$tmp/out" "$@" 2>&1
}
says() { # WHAT TEXT EXPECTED
    if [[ $2 != *"$3"* ]]; then
        failed=$((failed + 1))
        printf 'FAILED: %s: not found: %s\nin:\n%s\n' "$1" "$3" "$2"
    fi
}
check() { # WHAT COMMAND...
    local what=$1
    shift
    if ! "$@"; then
        failed=$((failed + 1))
        printf 'FAILED: %s\n' "$what"
    fi
}

says "before" "$(plan devices.gpus=0,1 --dry-run)" "speeds: estimated from clocks; a run measures once"
check "a dry run measures nothing" test ! -e "$cache"
says "the first run" "$(plan devices.gpus=0)" "Measuring the speed of 1 GPU (once"
check "only the chosen one" test "$(grep -c '"GPU-' "$cache")" = 1
# GPU 1 is of the same model, GPU 2 is not: its estimate would not compare.
says "a sibling" "$(plan devices.gpus=0,1 --dry-run)" "speeds: measured on 20"
says "another model" "$(plan devices.gpus=0,2 --dry-run)" "speeds: estimated from clocks"
out=$(plan devices.gpus=0,2 output.dir="$tmp/out2")
says "the new one" "$out" "Measuring the speed of 1 GPU (once"
says "after" "$(plan devices.gpus=0,1,2 --dry-run)" "speeds: measured on"
out=$(plan devices.gpus=0,2 output.dir="$tmp/out3")
check "not again" test "${out/Measuring/}" = "$out"

# A damaged cache costs a measurement, no more.
echo '{"format": 1, "devices": {' >"$cache"
says "damaged" "$(plan devices.gpus=0 --dry-run)" "speeds: estimated from clocks"
says "tdgen devices --measure" "$("$TDGEN" devices --measure)" "cuda:2   measured: "
says "measured" "$(plan devices.gpus=0,1,2 --dry-run)" "speeds: measured on"
check "dated" grep -q "\"date\": \"20" "$cache"
# A folder that cannot be written is a warning.
out=$(XDG_CACHE_HOME=/dev/null/none plan devices.gpus=0 output.dir="$tmp/out4")
says "no folder" "$out" "the measured speeds are not remembered"
says "and the run goes on" "$out" "Look at it with"

[[ $failed = 0 ]] && echo "speeds: all as expected"
exit $((failed > 0))
