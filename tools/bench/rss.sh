#!/usr/bin/env bash
# Peak resident memory of a run against the size of its dataset.
# usage: tools/bench/rss.sh TDGEN [MEGABYTES...]     (default: 1 10 100)
# Repeats demo/demo.jsonl to each size and prints the peak RSS (VmHWM) and the wall time of the run.
set -eu
cd "$(dirname "$0")/../.."
tdgen=${1:?usage: tools/bench/rss.sh TDGEN [MEGABYTES...]}
shift
[ $# -gt 0 ] || set -- 1 10 100
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
printf '%8s %12s %10s %12s\n' MB 'peak RSS kB' seconds tokens
for mb in "$@"; do
    rm -rf "$tmp/out"
    : >"$tmp/data.jsonl"
    while [ "$(stat -c %s "$tmp/data.jsonl")" -lt $((mb * 1000000)) ]; do
        cat demo/demo.jsonl demo/demo.jsonl demo/demo.jsonl demo/demo.jsonl >>"$tmp/data.jsonl"
    done
    start=$(date +%s)
    "$tdgen" -c conf/demo.ini data.path="$tmp/data.jsonl" output.dir="$tmp/out" capture.top_k=8 \
        >"$tmp/log" 2>&1 &
    pid=$!
    peak=0
    while kill -0 "$pid" 2>/dev/null; do
        now=$(sed -n 's/^VmHWM:[^0-9]*\([0-9]*\).*/\1/p' "/proc/$pid/status" 2>/dev/null || true)
        [ -n "$now" ] && peak=$now
        sleep 0.05
    done
    wait "$pid" || { cat "$tmp/log"; exit 1; }
    printf '%8s %12s %10s %12s\n' "$mb" "$peak" $(($(date +%s) - start)) \
        "$(sed -n 's/^Done in.*samples, \([^ ]*\) tokens.*/\1/p' "$tmp/log")"
done
