#!/usr/bin/env bash
# What makes a record one that others can trust: merging workers' folders.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

config "$TMP/one.ini"
expect 0 'Truncation: the 16 candidates cover' "$TDGEN" -c "$TMP/one.ini"
check "no truncation report in status.json" grep -q '"mean_kl"' "$TMP/one-out/status.json"
for w in 0 1 2; do
    expect 0 'Done in' "$TDGEN" -c "$TMP/one.ini" output.dir="$TMP/w$w" run.worker_id=$w \
        run.total_workers=3
done

# --- merge: the bytes of one worker, whatever the order of the folders
expect 0 '7 linked, 0 copied' "$TDGEN" merge "$TMP/all" "$TMP/w2" "$TMP/w0" "$TMP/w1"
same_shards "$TMP/one-out" "$TMP/all"
check "manifest of the merge" cmp "$TMP/one-out/manifest.json" "$TMP/all/manifest.json"
check "index of the merge" cmp "$TMP/one-out/shards.jsonl" "$TMP/all/shards.jsonl"
expect 0 '^OK' "$TDGEN" verify "$TMP/all"
expect 0 'all of it was there already' "$TDGEN" merge "$TMP/all" "$TMP/w0" "$TMP/w1" "$TMP/w2"
expect 0 '0 written, 7 already there' "$TDGEN" -c "$TMP/one.ini" output.dir="$TMP/all"
# The last shard is worker 0's: without it nothing but status.json tells that one is missing.
expect 6 'shards? 0 is in none' "$TDGEN" merge "$TMP/gap" "$TMP/w1" "$TMP/w2"
expect 6 'shard 0 is both in' "$TDGEN" merge "$TMP/gap" "$TMP/w0" "$TMP/one-out"
expect 0 'Done in' "$TDGEN" -c "$TMP/one.ini" output.dir="$TMP/k8" capture.top_k=8 run.worker_id=1 \
    run.total_workers=3
expect 6 'capture.top_k is 16 in .*w0 and 8 in .*k8' "$TDGEN" merge "$TMP/gap" "$TMP/w0" "$TMP/k8"
expect 2 'needs a new folder' "$TDGEN" merge "$TMP/gap"
expect 2 'did you mean "--copy"' "$TDGEN" merge --cpy "$TMP/gap" "$TMP/w0"
check "a refused merge wrote something" [ ! -e "$TMP/gap" ]

# Killed while copying, then the same command: complete.

for round in 1 2 3 4 5 6; do
    rm -rf "$TMP/killed"
    "$TDGEN" merge --copy "$TMP/killed" "$TMP/w0" "$TMP/w1" "$TMP/w2" >/dev/null 2>&1 &
    pid=$!
    for _ in $(seq 2000); do
        [ "$(find "$TMP/killed" -name 'shard-*' 2>/dev/null | wc -l)" -ge "$round" ] && break
        [ -d "/proc/$pid" ] || break
    done
    kill -9 "$pid" 2>/dev/null
    wait "$pid" 2>/dev/null
    if [ -e "$TMP/killed/merge.json" ]; then
        expect 6 'half a merge' "$TDGEN" verify "$TMP/killed"
    fi
    expect 0 '' "$TDGEN" merge --copy "$TMP/killed" "$TMP/w0" "$TMP/w1" "$TMP/w2"
    same_shards "$TMP/one-out" "$TMP/killed"
    check "files left by a killed merge" [ -z "$(find "$TMP/killed" -name '*.tmp' -o -name merge.json)" ]
done
for w in 0 1 2; do
    expect 0 '^OK' "$TDGEN" verify "$TMP/w$w"
done
finish
