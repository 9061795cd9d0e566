#!/usr/bin/env bash
# Devices that fail for good, samples that no device survives, devices that hang: the run goes on with
# what is left, nothing that is committed is lost, and the bytes are those of an undisturbed run.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

for _ in $(seq 4); do cat demo/demo.jsonl; done >"$TMP/long.jsonl"
config "$TMP/run.ini" '[data]' "path = $TMP/long.jsonl" '[devices]' 'gpus_per_model = 1'
sed -i '/^path = demo\/demo.jsonl/d; /^gpus = cpu$/d; s/^batch_tokens.*/batch_tokens = 512/' "$TMP/run.ini"
# shellcheck disable=SC2317 # through expect
tdgen() { "$TDGEN" -c "$TMP/run.ini" "$@"; }
expect 0 'Done in' tdgen devices.gpus=cpu*3
ref="$TMP/run-out"

# faulty VAR=VALUE CODE PATTERN DIR ARGUMENTS...: a run with a fault injected
faulty() {
    local fault=$1 code=$2 pattern=$3 dir=$4
    shift 4
    expect "$code" "$pattern" env "$fault" TDGEN_DEBUG_WATCHDOG_S="${WATCHDOG_S:-20}" \
        timeout 200 "$TDGEN" -c "$TMP/run.ini" output.dir="$dir" "$@"
}
gone() { check "$1/faults.json was left behind" [ ! -e "$1/faults.json" ]; }

# --- a device is lost: at the first product, in the middle, and in groups of several devices
faulty TDGEN_DEBUG_FAIL_OP="cpu:1 gemm 1 lost" 7 'Lost device: cpu:1 at ' "$TMP/l1" devices.gpus=cpu*3
same_shards "$ref" "$TMP/l1"
gone "$TMP/l1"
faulty TDGEN_DEBUG_FAIL_OP="cpu:1 gemm 250 lost" 7 'Going on without CPU device cpu:1' "$TMP/l2" \
    devices.gpus=cpu*3
same_shards "$ref" "$TMP/l2"
check "the log does not tell of the new start" grep -q 'starting anew without cpu:1 (1 of' \
    "$TMP/l2/tdgen.log"
check "status.json does not name the lost device" grep -q '"cpu:1"' "$TMP/l2/status.json"
check "temp files left" [ -z "$(find "$TMP/l2" -name '*.tmp*')" ]
expect 0 '' "$TDGEN" verify "$TMP/l2"
faulty TDGEN_DEBUG_FAIL_OP="cpu:1 gemm 100 lost" 7 'Total devices available: 3 .cpu:0,cpu:2,cpu:3' "$TMP/l3" \
    devices.gpus=cpu*4 devices.gpus_per_model=2
cp "$TMP/out" "$TMP/l3.out"
same_shards "$ref" "$TMP/l3"
check "the device that was left over is not named" grep -q 'no group uses device cpu:3' "$TMP/l3.out"
faulty TDGEN_DEBUG_FAIL_OP="cpu:0 gemm 100 lost" 7 'Worker 1: cpu:3' "$TMP/l4" devices.gpus=cpu*4 \
    'devices.groups=0,1|2|3'
cp "$TMP/out" "$TMP/l4.out"
same_shards "$ref" "$TMP/l4"
check "the group that was left out is not named" grep -q 'Group 0 of devices.groups has lost' "$TMP/l4.out"
# Lost before the first micro-batch, while the session is made.
faulty TDGEN_DEBUG_FAIL_OP="cpu:1 copy_in 1 lost" 7 'Lost device: cpu:1' "$TMP/l6" devices.gpus=cpu*2
same_shards "$ref" "$TMP/l6"
# What is left cannot hold a copy of the model as wide as the user wants it.
faulty TDGEN_DEBUG_FAIL_OP="cpu:1 gemm 100 lost" 5 'cannot go on without cpu:1.*gpus_per_model = 2' "$TMP/l5" \
    devices.gpus=cpu*2 devices.gpus_per_model=2
expect 0 'Done in' tdgen output.dir="$TMP/l5" devices.gpus=cpu*2 devices.gpus_per_model=2
same_shards "$ref" "$TMP/l5"

# --- the only device is lost: exit 5, and a rerun continues
faulty TDGEN_DEBUG_FAIL_OP="cpu:0 gemm 900 lost" 5 'no other device is left.*run the same command again' \
    "$TMP/one" devices.gpus=cpu
check "faults.json is missing" grep -q '"suspects"' "$TMP/one/faults.json"
n=$(find "$TMP/one" -name 'shard-*' | wc -l)
check "nothing was committed before the loss" [ "$n" -ge 1 ]
expect 0 "$n already there" tdgen output.dir="$TMP/one" devices.gpus=cpu
same_shards "$ref" "$TMP/one"
gone "$TMP/one"

# --- a sample that no device survives. "~" is a token that the demo text does not have.
expect 0 ',95,' sh -c "echo 'In the ~ beginning' | $TDGEN tokenize --model demo/teacher"
{
    head -150 demo/demo.jsonl
    echo '{"id": "poison", "text": "In the ~ beginning God created the heaven and the earth."}'
    tail -50 demo/demo.jsonl
} >"$TMP/poison.jsonl"
poison="data.path=$TMP/poison.jsonl"
expect 0 'Done in' tdgen output.dir="$TMP/pref" devices.gpus=cpu*3 "$poison"
# Skipped: two devices show that it is the sample, then all three work again.
faulty TDGEN_DEBUG_FAIL_TOKEN="95 lost" 7 'Skipped for making devices fail: dataset row 150' "$TMP/p1" \
    devices.gpus=cpu*3 "$poison" run.on_bad_sample=skip
check "more than one sample was skipped" grep -q 'Skipped samples: 1 in this run, 1 in the folder' "$TMP/out"
check "not all devices are back" sh -c "tail -25 '$TMP/out' | grep -q 'group 2 *cpu:2'"
check "a device counts as lost" sh -c "! grep -q 'Lost device' '$TMP/out'"
expect 0 '' "$TDGEN" verify "$TMP/p1"
gone "$TMP/p1"
for f in "$TMP/pref"/shard-*; do
    [ "$(basename "$f")" = shard-000004.safetensors ] && continue # rows 128 to 159
    check "$(basename "$f") differs" cmp "$f" "$TMP/p1/$(basename "$f")"
done
# Not skipped: an error that names the row and both devices; and again without any device failing.
faulty TDGEN_DEBUG_FAIL_TOKEN="95 lost" 3 'dataset row 150 .*cpu:[012] and cpu:[012] fail.*on_bad_sample = skip' \
    "$TMP/p2" devices.gpus=cpu*3 "$poison"
expect 3 'dataset row 150 .*on_bad_sample = skip' tdgen output.dir="$TMP/p2" devices.gpus=cpu*3 "$poison"
expect 7 'dataset row 150' tdgen output.dir="$TMP/p2" devices.gpus=cpu*3 "$poison" run.on_bad_sample=skip
same_shards "$TMP/p1" "$TMP/p2"
# Without a second device it takes the third failure of the sample alone.
for _ in 1 2; do
    faulty TDGEN_DEBUG_FAIL_TOKEN="95 lost" 5 'no other device is left' "$TMP/p3" devices.gpus=cpu "$poison" \
        run.on_bad_sample=skip
done
faulty TDGEN_DEBUG_FAIL_TOKEN="95 lost" 7 'dataset row 150' "$TMP/p3" devices.gpus=cpu "$poison" \
    run.on_bad_sample=skip
same_shards "$TMP/p1" "$TMP/p3"

# --- a device that fails, and the process can go on: at the first operation, in the middle, late, while
# sessions are made; its late answers do not count, and the others do the rest
ops=("embed 1" "gemm 77" "copy_in 1" "gemm 2" "gemm 250" "capture 3")
groups="1 2 3"
if [ -n "${TDGEN_TEST_BRIEF-}" ]; then
    ops=("${ops[@]:0:2}")
    groups="1 3"
fi
for op in "${ops[@]}"; do
    faulty TDGEN_DEBUG_FAIL_OP="cpu:1 $op" 7 'Done in' "$TMP/d1" devices.gpus=cpu*3
    check "$op: the summary does not tell of the device" grep -qE 'retired: group 1: |failed 1 time' "$TMP/out"
    same_shards "$ref" "$TMP/d1"
    rm -rf "$TMP/d1"
done
faulty TDGEN_DEBUG_FAIL_OP="cpu:3 gemm 100" 7 'Done in' "$TMP/d2" devices.gpus=cpu*4 devices.gpus_per_model=2
same_shards "$ref" "$TMP/d2"
# The only group makes itself a new session; a device that fails for good ends the run, and a rerun
# continues (test_run has the second).
faulty TDGEN_DEBUG_FAIL_OP="cpu:0 gemm 100" 7 'failed 1 time, worked again 1 time' "$TMP/d3" devices.gpus=cpu
same_shards "$ref" "$TMP/d3"

# --- a sample over which devices fail: isolated within three tries, whatever the number of groups; all
# other rows are those of a run that leaves the same sample out for another reason
for n in $groups; do
    faulty TDGEN_DEBUG_FAIL_TOKEN="95 fail" 7 'Skipped samples: 1 in this run, 1 in the folder' "$TMP/s$n" \
        devices.gpus="cpu*$n" "$poison" run.on_bad_sample=skip
    check "$n groups: not by three failures" [ "$(grep -c 'failure injected by' "$TMP/out")" -eq 3 ]
    check "$n groups: the row is not named" grep -q 'dataset row 150: the sample makes devices fail' "$TMP/out"
    check "$n groups: one is retired" sh -c "! grep -q 'retired: ' '$TMP/out'"
    same_shards "$TMP/p1" "$TMP/s$n"
    expect 0 '' "$TDGEN" verify "$TMP/s$n"
    faulty TDGEN_DEBUG_FAIL_TOKEN="95 fail" 3 'dataset row 150 .*run.on_bad_sample = skip' "$TMP/t$n" \
        devices.gpus="cpu*$n" "$poison"
done
faulty TDGEN_DEBUG_FAIL_TOKEN="95 fail" 7 'dataset row 150' "$TMP/t2" devices.gpus=cpu*2 "$poison" run.on_bad_sample=skip
same_shards "$TMP/p1" "$TMP/t2"
# Two of them in one shard, and a device that breaks beside.
{
    head -150 demo/demo.jsonl
    for _ in 1 2; do echo '{"text": "In the ~ beginning God created the heaven and the earth."}'; done
    tail -50 demo/demo.jsonl
} >"$TMP/two.jsonl"
two="data.path=$TMP/two.jsonl"
for n in $groups; do
    faulty TDGEN_DEBUG_FAIL_TOKEN="95 fail" 7 'Skipped samples: 2 in this run, 2 in the folder' "$TMP/two$n" \
        devices.gpus="cpu*$n" "$two" run.on_bad_sample=skip
    same_shards "$TMP/two1" "$TMP/two$n"
done
expect 7 'Skipped samples: 2 in this run' env TDGEN_DEBUG_FAIL_OP="cpu:1 gemm 120" TDGEN_DEBUG_FAIL_TOKEN="95 fail" \
    "$TDGEN" -c "$TMP/run.ini" output.dir="$TMP/two4" devices.gpus=cpu*3 "$two" run.on_bad_sample=skip
same_shards "$TMP/two1" "$TMP/two4"

# --- more losses than re-executions: five such samples, each costs two; a rerun does the rest
for i in 1 2 3 4 5; do
    sed -n "$((30 * i)),$((30 * i + 28))p" demo/demo.jsonl
    echo '{"text": "In the ~ beginning God created the heaven and the earth."}'
done >"$TMP/five.jsonl"
five="data.path=$TMP/five.jsonl"
faulty TDGEN_DEBUG_FAIL_TOKEN="95 lost" 5 'started anew 8 times already.*run the same command again' \
    "$TMP/five" devices.gpus=cpu*2 "$five" run.on_bad_sample=skip output.shard_samples=10 run.batch_tokens=64
faulty TDGEN_DEBUG_FAIL_TOKEN="95 lost" 7 'Skipped samples: . in this run, 5 in the folder' "$TMP/five" \
    devices.gpus=cpu*2 "$five" run.on_bad_sample=skip output.shard_samples=10 run.batch_tokens=64
expect 0 '' "$TDGEN" verify "$TMP/five"

# --- what comes from the environment is not believed without a faults.json of this very process
env TDGEN_DEBUG_FAIL_OP="cpu:0 embed 1 lost" TDGEN_REEXEC="77,3" \
    timeout 100 "$TDGEN" -c "$TMP/run.ini" output.dir="$TMP/env" devices.gpus=cpu*2 >"$TMP/out" 2>&1
code=$?
check "a made-up TDGEN_REEXEC: exit $code" [ "$code" -eq 7 ]
check "a made-up TDGEN_REEXEC was believed" grep -q '(1 of at most 8 times)' "$TMP/out"

# --- the lock is never free between the executions
env TDGEN_DEBUG_FAIL_TOKEN="95 lost" "$TDGEN" -c "$TMP/run.ini" output.dir="$TMP/lock" devices.gpus=cpu*3 \
    "$poison" run.on_bad_sample=skip run.batch_tokens=256 >"$TMP/lock.log" 2>&1 &
pid=$!
while [ -d "/proc/$pid" ] && ! [ -s "$TMP/lock/.lock" ]; do sleep 0.01; done
n_free=0 n_tries=0
while kill -0 "$pid" 2>/dev/null && ! grep -q 'Done in' "$TMP/lock.log"; do
    n_tries=$((n_tries + 1))
    flock -n "$TMP/lock/.lock" true && ! grep -q 'Done in' "$TMP/lock.log" && n_free=$((n_free + 1))
done
wait "$pid"
code=$?
check "the run whose lock was tried gave exit $code" [ "$code" -eq 7 ]
check "it was not started anew" grep -q '(2 of at most 8 times)' "$TMP/lock.log"
check "the lock was free $n_free of $n_tries times" [ "$n_free" -eq 0 ]
check "the lock was hardly tried" [ "$n_tries" -gt 20 ]

# --- killed at any time in between, then run again
for at in 0.05 0.15 0.25 0.35 0.5 0.7; do
    env TDGEN_DEBUG_FAIL_TOKEN="95 lost" "$TDGEN" -c "$TMP/run.ini" output.dir="$TMP/kill" \
        devices.gpus=cpu*3 "$poison" run.on_bad_sample=skip run.batch_tokens=256 >/dev/null 2>&1 &
    pid=$!
    sleep "$at"
    kill -9 "$pid" 2>/dev/null
    wait "$pid" 2>/dev/null
done
faulty TDGEN_DEBUG_FAIL_TOKEN="95 lost" 7 '' "$TMP/kill" devices.gpus=cpu*3 "$poison" run.on_bad_sample=skip
same_shards "$TMP/p1" "$TMP/kill"
expect 0 '' "$TDGEN" verify "$TMP/kill"

# --- a device hangs: the others do its work; alone, the process says so and a rerun continues
WATCHDOG_S=4
faulty TDGEN_DEBUG_FAIL_OP="cpu:1 gemm 250 hang" 7 'retired: group 1: micro-batch .* cpu:1: no sign of life .* the device hangs' \
    "$TMP/h1" devices.gpus=cpu*3
same_shards "$ref" "$TMP/h1"
faulty TDGEN_DEBUG_FAIL_OP="cpu:3 gemm 100 hang" 7 'the device hangs' "$TMP/h2" devices.gpus=cpu*4 \
    devices.gpus_per_model=2
same_shards "$ref" "$TMP/h2"
faulty TDGEN_DEBUG_FAIL_OP="cpu:0 gemm 900 hang" 9 'the device hangs' "$TMP/h3" devices.gpus=cpu
expect 0 'already there' tdgen output.dir="$TMP/h3" devices.gpus=cpu
same_shards "$ref" "$TMP/h3"

# --- faults.json is ours, and yet it is not believed blindly
i=0
for text in '{' '[1]' '{"version": 2}' '' \
    '{"version":1,"pid":1,"reexecutions":-1,"compute":"bf16","machine":[],"lost":[],"suspects":[]}' \
    '{"version":1,"pid":1,"reexecutions":0,"compute":"bf16","machine":[],"lost":[],"suspects":[{"row":-4,"start":0,"tries":1,"devices":[]}]}' \
    '{"version":1,"pid":1,"reexecutions":0,"compute":"bf16bf16bf16bf16","machine":[],"lost":[],"suspects":[]}'; do
    i=$((i + 1))
    mkdir -p "$TMP/f$i"
    printf '%s' "$text" >"$TMP/f$i/faults.json"
    expect 0 'warning: .*faults\.json.*ignored' tdgen output.dir="$TMP/f$i" devices.gpus=cpu data.max_samples=5
    gone "$TMP/f$i"
done
finish
