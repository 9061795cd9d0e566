#!/usr/bin/env bash
# GPUs, end to end: the same bytes whatever the groups, the stages and the batch size; close to the
# CPU's numbers; lost devices, short memory, kills; and what the program says about its devices.
#
# TDGEN is the program on the CUDA-on-CPU layer (test/pretend), whose machine TDGEN_PRETEND_GPUS
# describes, or a build for real GPUs. Which one, the script finds out by itself. On hardware what
# needs several cards or planted faults is left out, and said so. Exit 77: there is no GPU.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

export TDGEN_PRETEND_GPUS='Pretend Probe:8.0:4:1'
if "$TDGEN" devices 2>/dev/null | grep -q 'Pretend Probe'; then
    pretend=true
else
    pretend=false
    unset TDGEN_PRETEND_GPUS
    if ! "$TDGEN" devices 2>/dev/null | grep -q '^cuda:0'; then
        echo "gpu.sh: SKIPPED: this build or machine has no cuda device; NOTHING was tested"
        exit 77
    fi
    echo "gpu.sh: on hardware; SKIPPED: several cards, mixed kinds and planted faults" >&2
fi
# The planner leaves a part of each card to the driver: a card of 1 GiB has nothing to use.
a100='Pretend A100:8.0:8:4'
v100='Pretend V100:7.0:8:4'
gpus() { $pretend && export TDGEN_PRETEND_GPUS=$1; }

n_rows=24
$pretend || n_rows=200
head -n "$n_rows" demo/demo.jsonl >"$TMP/few.jsonl"

# gpu_config FILE [line...]: as config, on device 0, with logits worth comparing.
gpu_config() {
    local file=$1
    shift
    {
        printf '[model]\npath = demo/teacher\ncompute = f32\n'
        printf '[data]\npath = %s\nmax_length = 64\n' "$TMP/few.jsonl"
        printf '[devices]\ngpus = 0\n'
        printf '[capture]\ntop_k = 16\nlogprob_dtype = f32\n'
        printf '[output]\ndir = %s\nshard_samples = %d\n' "${file%.ini}-out" $((n_rows / 4))
        printf '[run]\nbatch_tokens = 256\n'
        [ $# -gt 0 ] && printf '%s\n' "$@"
    } >"$file"
}

# close_to TOLERANCE A B: log-probs, place by place, and the row values of all shards. Standard
# Python only.
close_to() {
    python3 - "$@" <<'P'
import array, glob, json, os, struct, sys
tolerance, a, b = float(sys.argv[1]), sys.argv[2], sys.argv[3]
def tensors(path):
    data = open(path, "rb").read()
    n = struct.unpack("<Q", data[:8])[0]
    out = {}
    for name, t in json.loads(data[8:8 + n]).items():
        if name != "__metadata__" and t["dtype"] in ("F32", "I32"):
            x = array.array("f" if t["dtype"] == "F32" else "i")
            begin, end = t["data_offsets"]
            x.frombytes(data[8 + n + begin:8 + n + end])
            out[name] = x
    return out
shards = sorted(glob.glob(a + "/shard-*.safetensors"))
assert shards, "no shards in " + a
worst, same, total = 0.0, 0, 0
for path in shards:
    x, y = tensors(path), tensors(os.path.join(b, os.path.basename(path)))
    assert x.keys() == y.keys() and x["input_ids"] == y["input_ids"]
    for name in ("topk_logprobs", "logsumexp", "target_logprob", "entropy", "tail_mass"):
        assert len(x[name]) == len(y[name]) > 0, name
        for p, q in zip(x[name], y[name]):
            assert abs(p - q) <= tolerance, "%s %s: %r and %r" % (path, name, p, q)
            worst = max(worst, abs(p - q))
    same += sum(p == q for p, q in zip(x["topk_ids"], y["topk_ids"]))
    total += len(x["topk_ids"])
assert same >= total * (1 - 50 * tolerance), "only %d of %d ids are the same" % (same, total)
print("%s: largest difference %.2g, %d of %d ids alike" % (a, worst, same, total))
P
}
has_python=true
command -v python3 >/dev/null || {
    has_python=false
    echo "SKIPPED: no python3: numbers are not compared with the CPU's" >&2
}
near() { # near MESSAGE TOLERANCE A B
    $has_python || return 0
    if close_to "${@:2}" >"$TMP/near" 2>&1; then
        pass
        cat "$TMP/near"
    else
        fail "$1"
        tail -n 3 "$TMP/near" >&2
    fi
}

# --- what there is
gpus "$a100*2,$v100"
if $pretend; then
    expect 0 '^cuda:0 +Pretend A100 .*4\.0+ GiB.*f32 bf16 f16.*Pretend A100 sm_80' "$TDGEN" devices
    expect 0 '^cuda:2 +Pretend V100 .*f32 f16 .*Pretend V100 sm_70' "$TDGEN" devices
fi
expect 0 'cuda-1[23]\.[0-9]' "$TDGEN" devices
expect 0 'cuda-1[23]\.[0-9]' "$TDGEN" --version
if $pretend; then
    TDGEN_PRETEND_GPUS=none expect 0 '^cpu:0' "$TDGEN" devices
    TDGEN_PRETEND_GPUS=none "$TDGEN" devices | grep -q '^cuda:' && fail "devices of no driver"
fi

# --- one GPU, and the CPU
gpus "$a100*8"
gpu_config "$TMP/ref.ini"
expect 0 'Done in' "$TDGEN" -c "$TMP/ref.ini"
# Nothing of what follows could work without it.
# shellcheck disable=SC2154 # lib.sh
[ "$n_failed" -eq 0 ] || finish
expect 0 '' "$TDGEN" verify "$TMP/ref-out"
expect 0 'Done in' "$TDGEN" -c "$TMP/ref.ini" output.dir="$TMP/cpu" devices.gpus=cpu
near "f32 on a GPU is not what the CPU computes" 1e-4 "$TMP/ref-out" "$TMP/cpu"
for mode in bf16 f16; do
    expect 0 'Done in' "$TDGEN" -c "$TMP/ref.ini" output.dir="$TMP/$mode" model.compute=$mode
    near "$mode on a GPU is far from f32" 0.15 "$TMP/$mode" "$TMP/cpu"
    check "$mode gave the bytes of f32" sh -c "! cmp -s $TMP/$mode/shard-000000.safetensors $TMP/ref-out/shard-000000.safetensors"
done

# --- the row is the unit of arithmetic
i=0
identical() { # identical REFERENCE ARGUMENT... : a run gives the reference's bytes
    local reference=$1
    shift
    i=$((i + 1))
    expect 0 'Done in' "$TDGEN" -c "$TMP/ref.ini" output.dir="$TMP/v$i" "$@"
    same_shards "$reference" "$TMP/v$i"
}
identical "$TMP/ref-out" run.batch_tokens=64
identical "$TMP/ref-out" run.batch_tokens=4096
identical "$TMP/ref-out" 'devices.groups=0|0'
identical "$TMP/ref-out" 'devices.groups=0|0|0' run.batch_tokens=70
identical "$TMP/bf16" model.compute=bf16 run.batch_tokens=64
identical "$TMP/bf16" model.compute=bf16 'devices.groups=0|0' run.batch_tokens=4096
identical "$TMP/f16" model.compute=f16 run.batch_tokens=100
if $pretend; then
    identical "$TMP/ref-out" devices.gpus=0,1 devices.gpus_per_model=1
    identical "$TMP/ref-out" devices.gpus=0,1 devices.gpus_per_model=2 run.batch_tokens=100
    identical "$TMP/ref-out" devices.gpus=auto devices.gpus_per_model=1 run.batch_tokens=128
    identical "$TMP/ref-out" devices.gpus=auto devices.gpus_per_model=2 run.batch_tokens=128
    identical "$TMP/ref-out" devices.gpus=auto devices.gpus_per_model=4
    identical "$TMP/ref-out" devices.gpus=auto devices.gpus_per_model=8 run.batch_tokens=64
    identical "$TMP/ref-out" devices.gpus=0,1,2 'devices.groups=0|1,2'
    identical "$TMP/ref-out" devices.gpus=1,0 devices.gpus_per_model=2
    identical "$TMP/bf16" model.compute=bf16 devices.gpus=auto devices.gpus_per_model=4
    TDGEN_PRETEND_NO_PEER=1 identical "$TMP/ref-out" devices.gpus=0,1,2 devices.gpus_per_model=3
    for seed in 2 3; do
        TDGEN_PRETEND_SEED=$seed TDGEN_PRETEND_JITTER=1 identical "$TMP/ref-out" \
            devices.gpus=0,1,2,3 devices.gpus_per_model=2 run.batch_tokens=64
        TDGEN_PRETEND_SEED=$seed TDGEN_PRETEND_JITTER=1 TDGEN_PRETEND_NO_PEER=1 \
            identical "$TMP/bf16" model.compute=bf16 devices.gpus=0,1,2,3 devices.gpus_per_model=4 \
            run.batch_tokens=64
    done
    # Each allocation alone, filled with NaN: nothing is read that was not written.
    TDGEN_DEBUG_ALLOC=1 identical "$TMP/ref-out" devices.gpus=0,1 devices.gpus_per_model=2
fi

# --- what a dry run prints is what a run does
assignment() { grep -E '^  (Total GPUs|GPUs per model|Number of|Worker [0-9])' "$1"; }
if $pretend; then
    "$TDGEN" -c "$TMP/ref.ini" output.dir="$TMP/plan" devices.gpus=0,1,2,3 devices.gpus_per_model=2 \
        --dry-run >"$TMP/dry.log" 2>&1
    "$TDGEN" -c "$TMP/ref.ini" output.dir="$TMP/plan" devices.gpus=0,1,2,3 devices.gpus_per_model=2 \
        >"$TMP/wet.log" 2>&1
    assignment "$TMP/dry.log" >"$TMP/dry"
    assignment "$TMP/wet.log" >"$TMP/wet"
    check "the dry run printed no assignment" grep -q 'Worker 1: GPUs 2,3' "$TMP/dry"
    check "a run does not do what its dry run printed" cmp "$TMP/dry" "$TMP/wet"

    # gpus = 1,3 means exactly those: the others would break at their first kernel.
    TDGEN_PRETEND_FAULT='0 kernel * 1 illegal_address;2 kernel * 1 illegal_address' \
        identical "$TMP/ref-out" devices.gpus=1,3 devices.gpus_per_model=1
    TDGEN_PRETEND_FAULT='0 kernel * 1 illegal_address;2 kernel * 1 illegal_address' \
        identical "$TMP/ref-out" devices.gpus=1,3 devices.gpus_per_model=2
    expect 0 'Worker 0: GPUs 1$' "$TDGEN" -c "$TMP/ref.ini" --dry-run devices.gpus=1,3 \
        devices.gpus_per_model=1
    expect 0 'Worker 1: GPUs 3$' "$TDGEN" -c "$TMP/ref.ini" --dry-run devices.gpus=1,3 \
        devices.gpus_per_model=1
fi
expect 2 '[Gg][Pp][Uu].*99|99.*[Gg][Pp][Uu]' "$TDGEN" -c "$TMP/ref.ini" devices.gpus=99 \
    output.dir="$TMP/none"

if $pretend; then
    # --- unlike cards
    gpus "$a100,$v100"
    expect 0 'Computed in: +f16 .*V100' "$TDGEN" -c "$TMP/ref.ini" --dry-run devices.gpus=0,1 \
        devices.gpus_per_model=1 model.compute=auto
    expect 0 'Done in' "$TDGEN" -c "$TMP/ref.ini" output.dir="$TMP/mixed" devices.gpus=0,1 \
        devices.gpus_per_model=1 model.compute=auto
    near "A100 and V100 in f16 are far from f32" 0.15 "$TMP/mixed" "$TMP/cpu"
    expect 0 '' "$TDGEN" verify "$TMP/mixed"
    expect 0 'Done in' "$TDGEN" -c "$TMP/ref.ini" output.dir="$TMP/mixed2" devices.gpus=0,1 \
        devices.gpus_per_model=2 model.compute=f16
    near "A100 and V100 in one group are far from f32" 0.15 "$TMP/mixed2" "$TMP/cpu"
    expect 0 'Pretend A100' "$TDGEN" inspect "$TMP/mixed2"
    expect 0 'Pretend V100' "$TDGEN" inspect "$TMP/mixed2"
    expect 2 'bf16: device 1 .*V100.* does not offer it' "$TDGEN" -c "$TMP/ref.ini" devices.gpus=0,1 \
        devices.gpus_per_model=1 model.compute=bf16 output.dir="$TMP/none"

    # --- memory
    gpus "$a100*2"
    # The plan counts on the whole card; there is less. The run says so, and gets through: what is
    # there suffices, or only for a smaller micro-batch.
    TDGEN_PRETEND_FAULT="0 oom_after $((96 << 20))" expect 0 'of the planned .* are there' "$TDGEN" \
        -c "$TMP/ref.ini" output.dir="$TMP/short" run.batch_tokens=8192
    same_shards "$TMP/ref-out" "$TMP/short"
    TDGEN_PRETEND_FAULT="0 oom_after $((80 << 20))" expect 0 'trying again with micro-batches of' \
        "$TDGEN" -c "$TMP/ref.ini" output.dir="$TMP/shorter" run.batch_tokens=16384
    same_shards "$TMP/ref-out" "$TMP/shorter"
    TDGEN_PRETEND_FAULT='0 oom_after 65536' expect 5 'cuda:0: .* of device memory are not there' "$TDGEN" \
        -c "$TMP/ref.ini" output.dir="$TMP/none"

    # --- lost devices: the others do the work, and the bytes are the same
    for fault in '1 kernel attention 5 illegal_address' '0 kernel norm 9 launch_failure' \
        '1 kernel * 40 ecc'; do
        i=$((i + 1))
        # 7: finished, but a device was lost
        TDGEN_PRETEND_FAULT=$fault expect 7 'Done in' "$TDGEN" -c "$TMP/ref.ini" \
            output.dir="$TMP/v$i" devices.gpus=0,1 devices.gpus_per_model=1 run.batch_tokens=64
        cp "$TMP/out" "$TMP/fault.log"
        same_shards "$TMP/ref-out" "$TMP/v$i"
        check "the lost device is not named ($fault)" grep -q "cuda:${fault%% *}" "$TMP/fault.log"
        expect 0 '' "$TDGEN" verify "$TMP/v$i"
    done
    # The kernel that opening a device tries out: the others have nothing to do with it.
    gpus "$a100*3"
    TDGEN_PRETEND_FAULT='2 kernel bias 1 illegal_address' expect 7 'Lost device: cuda:2' "$TDGEN" \
        -c "$TMP/ref.ini" output.dir="$TMP/unopened" devices.gpus=0,1,2 devices.gpus_per_model=1
    check "a card was given up for another's failure" sh -c "! grep -q 'Lost device: cuda:[01]' '$TMP/out'"
    check "the other cards do not go on" grep -q 'Worker 1: GPUs 1$' "$TMP/out"
    same_shards "$TMP/ref-out" "$TMP/unopened"
    gpus "$a100*2"
    # The only one is lost: not success, and what is there can be continued.
    TDGEN_PRETEND_FAULT='0 kernel attention 20 illegal_address' "$TDGEN" -c "$TMP/ref.ini" \
        output.dir="$TMP/alone" run.batch_tokens=64 >"$TMP/log" 2>&1
    code=$?
    check "the only GPU was lost and the exit code is $code" [ "$code" -ne 0 ]
    check "the only GPU was lost by a crash ($code)" [ "$code" -lt 128 ]
    check "the lost GPU is not named" grep -q 'cuda:0' "$TMP/log"
    expect 0 'Done in' "$TDGEN" -c "$TMP/ref.ini" output.dir="$TMP/alone"
    same_shards "$TMP/ref-out" "$TMP/alone"
fi

# --- killed at work, continued on other devices
n_long=72
$pretend || n_long=2000
for _ in $(seq $((n_long / 24))); do head -n 24 demo/demo.jsonl; done >"$TMP/long.jsonl"
long=("$TDGEN" -c "$TMP/ref.ini" "data.path=$TMP/long.jsonl"
    output.shard_samples=$((n_long / 12)) run.batch_tokens=64)
expect 0 'Done in' "${long[@]}" output.dir="$TMP/long"
for round in 1 2; do
    dir=$TMP/killed$round
    n_hits=0
    for at in 1 4 8; do
        "${long[@]}" output.dir="$dir" >"$TMP/log" 2>&1 &
        pid=$!
        for _ in $(seq 2000); do
            [ "$(find "$dir" -name 'shard-*' 2>/dev/null | wc -l)" -ge "$at" ] && break
            sleep 0.005
        done
        kill -9 "$pid" 2>/dev/null
        wait "$pid" 2>/dev/null
        n=$(find "$dir" -name 'shard-*' 2>/dev/null | wc -l)
        [ "$n" -ge 1 ] && [ "$n" -lt 12 ] && n_hits=$((n_hits + 1))
    done
    check "round $round: no kill hit the work" [ "$n_hits" -ge 1 ]
    if [ "$round" -eq 1 ]; then
        expect 0 'Done in' "${long[@]}" output.dir="$dir"
    else
        expect 0 'Done in' "${long[@]}" output.dir="$dir" 'devices.groups=0|0'
    fi
    same_shards "$TMP/long" "$dir"
done
# What a card recorded is what the teacher gives there, bit for bit, and on the CPU within the
# tolerance between device kinds; and the other way round.
gpus "$a100"
gpu_config "$TMP/against.ini"
expect 0 'Done in' "$TDGEN" -c "$TMP/against.ini"
expect 0 'same device kind, [0-9]+ samples: 0 of' "$TDGEN" verify "$TMP/against-out" \
    --against demo/teacher --samples 5 --devices 0
expect 0 'another device kind' "$TDGEN" verify "$TMP/against-out" --against demo/teacher --devices cpu
expect 0 'Done in' "$TDGEN" -c "$TMP/against.ini" devices.gpus=cpu output.dir="$TMP/against-cpu"
expect 0 'another device kind' "$TDGEN" verify "$TMP/against-cpu" --against demo/teacher --samples 5

finish
