#!/usr/bin/env bash
# The row is the unit of arithmetic: the same bytes whatever the groups, stages, batch size, schedule
# or crash.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

config "$TMP/ref.ini"
expect 0 'Done in' "$TDGEN" -c "$TMP/ref.ini"
expect 0 '' "$TDGEN" verify "$TMP/ref-out"

i=0
for devices in "devices.gpus=cpu*2 devices.gpus_per_model=1" \
    "devices.gpus=cpu*4 devices.gpus_per_model=1" \
    "devices.gpus=cpu*2 devices.gpus_per_model=2" \
    "devices.gpus=cpu*4 devices.gpus_per_model=4" \
    "devices.gpus=cpu*4 devices.gpus_per_model=2" \
    "devices.gpus=cpu*3 devices.groups=0|1,2" \
    "devices.gpus=cpu*2 devices.groups=0|0"; do
    for tokens in 512 8192; do
        i=$((i + 1))
        # shellcheck disable=SC2086 # two arguments
        expect 0 'Done in' "$TDGEN" -c "$TMP/ref.ini" output.dir="$TMP/v$i" $devices \
            run.batch_tokens=$tokens
        same_shards "$TMP/ref-out" "$TMP/v$i"
    done
done

# Killed at many moments, then continued with the same command until it gets through.
for round in 1 2 3; do
    dir="$TMP/killed$round"
    n_kills=0
    for delay in 0.05 0.1 0.15 0.2 0.25 0.3 0.4 0.5; do
        "$TDGEN" -c "$TMP/ref.ini" output.dir="$dir" run.batch_tokens=512 output.shard_samples=32 \
            devices.gpus=cpu*2 devices.gpus_per_model=$((1 + round % 2)) >"$TMP/log" 2>&1 &
        pid=$!
        sleep "$delay"
        kill -9 "$pid" 2>/dev/null && n_kills=$((n_kills + 1))
        wait "$pid" 2>/dev/null
    done
    check "round $round: nothing was killed" [ "$n_kills" -gt 0 ]
    expect 0 'Done in' "$TDGEN" -c "$TMP/ref.ini" output.dir="$dir"
    same_shards "$TMP/ref-out" "$dir"
    expect 0 '' "$TDGEN" verify "$dir"
    check "temp files left in $dir" [ -z "$(find "$dir" -name '*.tmp')" ]
done

# Asked to stop: exit 75, and the next run keeps what was finished.
"$TDGEN" -c "$TMP/ref.ini" output.dir="$TMP/stopped" run.batch_tokens=128 output.shard_samples=32 \
    >"$TMP/log" 2>&1 &
pid=$!
for _ in $(seq 200); do
    ls "$TMP/stopped"/shard-* >/dev/null 2>&1 && break
    sleep 0.02
done
kill -TERM "$pid"
wait "$pid"
code=$?
if [ "$code" -eq 75 ] || [ "$code" -eq 0 ]; then pass; else fail "SIGTERM gave exit $code"; fi
if [ "$code" -eq 75 ]; then
    check "no advice after SIGTERM" grep -q 'run the same command again' "$TMP/log"
fi
expect 0 'already there' "$TDGEN" -c "$TMP/ref.ini" output.dir="$TMP/stopped"
same_shards "$TMP/ref-out" "$TMP/stopped"

# A second signal leaves at once, whatever is in flight; the next run continues all the same.
"$TDGEN" -c "$TMP/ref.ini" output.dir="$TMP/twice" run.batch_tokens=128 >"$TMP/log" 2>&1 &
pid=$!
for _ in $(seq 200); do
    ls "$TMP/twice"/shard-* >/dev/null 2>&1 && break
    sleep 0.02
done
kill -INT "$pid"
kill -INT "$pid" 2>/dev/null
wait "$pid"
code=$?
# Bash gives background jobs an ignored SIGINT; a program that catches it gets it all the same.
case $code in
75 | 0) pass ;; # 0: it was done before the signals came
*) fail "two signals gave exit $code" ;;
esac
expect 0 'Done in' "$TDGEN" -c "$TMP/ref.ini" output.dir="$TMP/twice"
same_shards "$TMP/ref-out" "$TMP/twice"

# Finished shards are left untouched: not even their time stamps change.
stat -c '%n %y %i' "$TMP/ref-out"/shard-* >"$TMP/before"
expect 0 'Shards: 0 written' "$TDGEN" -c "$TMP/ref.ini"
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
