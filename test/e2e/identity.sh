#!/usr/bin/env bash
# The row is the unit of arithmetic: the same bytes whatever the groups, stages, batch size, schedule
# or crash.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

config "$TMP/ref.ini"
expect 0 'Done in' "$TDGEN" -c "$TMP/ref.ini"
expect 0 '' "$TDGEN" verify "$TMP/ref-out"

i=0
variants=("devices.gpus=cpu*2 devices.gpus_per_model=1"
    "devices.gpus=cpu*4 devices.gpus_per_model=4"
    "devices.gpus=cpu*3 devices.groups=0|1,2"
    "devices.gpus=cpu*2 devices.groups=0|0"
    "devices.gpus=cpu*4 devices.gpus_per_model=1"
    "devices.gpus=cpu*2 devices.gpus_per_model=2"
    "devices.gpus=cpu*4 devices.gpus_per_model=2"
    "devices.gpus=cpu*3 devices.gpus_per_model=1 devices.cpu_speeds=0.25,0.5,1"
    "devices.gpus=cpu*2 devices.gpus_per_model=2 devices.cpu_speeds=0.5,1 devices.cpu_threads=1,3")
rounds="1 2 3"
if [ -n "${TDGEN_TEST_BRIEF-}" ]; then
    variants=("${variants[@]:0:4}")
    rounds="1 2"
fi
for devices in "${variants[@]}"; do
    for tokens in 512 8192; do
        i=$((i + 1))
        # shellcheck disable=SC2086 # two arguments
        expect 0 'Done in' "$TDGEN" -c "$TMP/ref.ini" output.dir="$TMP/v$i" $devices \
            run.batch_tokens=$tokens
        same_shards "$TMP/ref-out" "$TMP/v$i"
    done
done

# What each group did, for people and for programs.
expect 0 'group 0 .* busy [0-9]+% [0-9]+%   last done at [0-9.]+s' "$TDGEN" -c "$TMP/ref.ini" \
    output.dir="$TMP/two" devices.gpus=cpu*2 devices.gpus_per_model=2 run.batch_tokens=512
check "status.json has no last_done_s" grep -q '"last_done_s": [0-9]*[1-9.]' "$TMP/two/status.json"

# A longer job for what has to be hit in the middle: 1200 rows in 38 shards, some seconds.
for _ in $(seq 6); do cat demo/demo.jsonl; done >"$TMP/long.jsonl"
config "$TMP/long.ini" '[data]' "path = $TMP/long.jsonl"
sed -i '/^path = demo\/demo.jsonl/d' "$TMP/long.ini"
expect 0 'Done in' "$TDGEN" -c "$TMP/long.ini"

# await_shards DIR N: until DIR holds at least N shards (20 s at most).
await_shards() {
    for _ in $(seq 1000); do
        [ "$(find "$1" -name 'shard-*' 2>/dev/null | wc -l)" -ge "$2" ] && return
        sleep 0.02
    done
}

# Killed while at work, then continued with the same command until it gets through; also right after
# the start, when nothing is there yet.
for round in $rounds; do
    dir="$TMP/killed$round"
    n_hits=0
    for at in 0 1 $((3 * round)) $((8 + 5 * round)) 30; do
        "$TDGEN" -c "$TMP/long.ini" output.dir="$dir" run.batch_tokens=512 \
            devices.gpus=cpu*2 devices.gpus_per_model=$((1 + round % 2)) >"$TMP/log" 2>&1 &
        pid=$!
        await_shards "$dir" "$at"
        kill -9 "$pid" 2>/dev/null
        wait "$pid" 2>/dev/null
        n=$(find "$dir" -name 'shard-*' 2>/dev/null | wc -l)
        [ "$n" -ge 1 ] && [ "$n" -lt 38 ] && n_hits=$((n_hits + 1))
    done
    check "round $round: only $n_hits kills hit the work" [ "$n_hits" -ge 2 ]
    expect 0 'Done in|already complete' "$TDGEN" -c "$TMP/long.ini" output.dir="$dir"
    same_shards "$TMP/long-out" "$dir"
    expect 0 '' "$TDGEN" verify "$dir"
    check "temp files left in $dir" [ -z "$(find "$dir" -name '*.tmp*')" ]
done

# Asked to stop: exit 75 with advice, at work and already while loading; the next run keeps what was
# finished.
"$TDGEN" -c "$TMP/long.ini" output.dir="$TMP/stopped" run.batch_tokens=128 >"$TMP/log" 2>&1 &
pid=$!
await_shards "$TMP/stopped" 1
kill -TERM "$pid"
wait "$pid"
code=$?
check "SIGTERM gave exit $code" [ "$code" -eq 75 ]
check "no advice after SIGTERM" grep -q 'run the same command again' "$TMP/log"
check "status.json does not say stopped" grep -q '"state": "stopped"' "$TMP/stopped/status.json"
expect 0 'already there' "$TDGEN" -c "$TMP/long.ini" output.dir="$TMP/stopped"
same_shards "$TMP/long-out" "$TMP/stopped"
"$TDGEN" -c "$TMP/long.ini" output.dir="$TMP/early" >"$TMP/log" 2>&1 &
pid=$!
# From the first instruction of main on; before it there is nothing to save, and before the exec it is a
# shell that catches the signal itself, and whose exit would remove $TMP.
program=$(readlink -f "$TDGEN")
while [ -d "/proc/$pid" ] && ! { [ "$(readlink "/proc/$pid/exe")" = "$program" ] &&
    grep -qE '^SigCgt:.*[4567cdef]...$' "/proc/$pid/status"; }; do :; done
kill -TERM "$pid"
wait "$pid"
code=$?
check "SIGTERM while loading gave exit $code" [ "$code" -eq 75 ]

# A second signal leaves at once, whatever is in flight; the next run continues all the same.
"$TDGEN" -c "$TMP/long.ini" output.dir="$TMP/twice" run.batch_tokens=128 >"$TMP/log" 2>&1 &
pid=$!
await_shards "$TMP/twice" 1
kill -INT "$pid"
kill -INT "$pid" 2>/dev/null
wait "$pid"
code=$?
check "two signals gave exit $code" [ "$code" -eq 75 ]
expect 0 'Done in' "$TDGEN" -c "$TMP/long.ini" output.dir="$TMP/twice"
same_shards "$TMP/long-out" "$TMP/twice"

# Finished shards are left untouched: not even their time stamps change.
stat -c '%n %y %i' "$TMP/ref-out"/shard-* >"$TMP/before"
expect 0 'is already complete' "$TDGEN" -c "$TMP/ref.ini"
stat -c '%n %y %i' "$TMP/ref-out"/shard-* >"$TMP/after"
check "a rerun touched finished shards" cmp "$TMP/before" "$TMP/after"

# A trial of ten samples grows into the full run.
expect 0 'Done in' "$TDGEN" -c "$TMP/ref.ini" output.dir="$TMP/grown" data.max_samples=10
expect 0 'Done in' "$TDGEN" -c "$TMP/ref.ini" output.dir="$TMP/grown" data.max_samples=50
expect 0 'Done in' "$TDGEN" -c "$TMP/ref.ini" output.dir="$TMP/grown"
same_shards "$TMP/ref-out" "$TMP/grown"

# Two workers take whole shards; together they are the run.
expect 0 'Done in' "$TDGEN" -c "$TMP/ref.ini" output.dir="$TMP/w0" run.total_workers=2
expect 0 'Done in' "$TDGEN" -c "$TMP/ref.ini" output.dir="$TMP/w1" run.total_workers=2 run.worker_id=1
mkdir "$TMP/both"
cp "$TMP"/w0/shard-* "$TMP"/w1/shard-* "$TMP/both"
same_shards "$TMP/ref-out" "$TMP/both"

# A damaged shard is found and computed again, the others stay.
f=$(find "$TMP/v1" -name 'shard-*' | sort | head -1)
printf 'x' | dd of="$f" bs=1 seek=5000 conv=notrunc status=none
expect 8 "$(basename "$f")" "$TDGEN" verify "$TMP/v1"
expect 0 'Shards: 1 written' "$TDGEN" -c "$TMP/ref.ini" output.dir="$TMP/v1"
same_shards "$TMP/ref-out" "$TMP/v1"
finish
