#!/usr/bin/env bash
# tools/generate_teacher_logits_parallel.sh over a tdgen that prints its arguments.

# shellcheck source=test/tools/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
wrapper=$root/tools/generate_teacher_logits_parallel.sh

cat >"$work/tdgen" <<'END'
#!/bin/sh
[ -z "${CUDA_VISIBLE_DEVICES+set}" ] || echo "CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES"
for argument; do echo "$argument"; done
exit "${FAKE_EXIT:-0}"
END
chmod +x "$work/tdgen"
touch "$work/my.ini"
export TDGEN=$work/tdgen TDGEN_CONFIG=$work/my.ini
unset CUDA_VISIBLE_DEVICES

# runs "EXPECTED ARGUMENTS, ONE SPACE BETWEEN" ARGUMENTS...: what tdgen gets after -c FILE
runs() {
    local expected=$1 got
    shift
    got=$("$wrapper" "$@" 2>"$work/err")
    local rc=$?
    got=$(printf '%s' "$got" | tr '\n' ' ')
    if [[ $rc -eq 0 && $got == "-c ${CONFIG:-$work/my.ini}${expected:+ $expected}" ]]; then
        verdict ok
    else
        verdict no "$*" "  expected: $expected
  got ($rc): $got $(cat "$work/err")"
    fi
}

# refuses "PART OF THE MESSAGE" ARGUMENTS...
refuses() {
    local part=$1 out rc
    shift
    out=$("$wrapper" "$@" 2>&1)
    rc=$?
    if [[ $rc -eq 2 && $out == *"$part"* ]]; then
        verdict ok
    else
        verdict no "$*" "  expected exit 2 and: $part
  got ($rc): $out"
    fi
}

# The scenarios of the old document.
runs 'devices.gpus=0,1,2,3,4,5,6,7 devices.gpus_per_model=1' 1 "0,1,2,3,4,5,6,7"
runs 'devices.gpus=0,1,2,3,4,5,6,7 devices.gpus_per_model=2' 2 "0,1,2,3,4,5,6,7"
runs 'devices.gpus=0,1,2,3,4,5,6,7 devices.gpus_per_model=8' 8 "0,1,2,3,4,5,6,7"
runs 'devices.gpus=1,3,5,7 devices.gpus_per_model=1' 1 "1,3,5,7"
runs 'devices.gpus=auto devices.gpus_per_model=1' 1
runs '' # the configuration decides
runs 'devices.gpus=0,1,2,3 devices.gpus_per_model=2 data.max_samples=10' \
    2 "0,1,2,3" distillation.dataset.max_samples=10
runs 'run.worker_id=1 run.total_workers=6' worker_id=1 total_workers=6

# New names and options pass; an explicit override comes after the positional arguments.
runs 'devices.gpus=cpu*2 devices.gpus_per_model=auto devices.gpus=cpu output.dir=a b --dry-run' \
    auto 'cpu*2' --dry-run devices.gpus=cpu 'output.dir=a b'
runs 'data.separator=a=b --verbose' data.separator=a=b --verbose
CONFIG=$work/other.ini
cp "$work/my.ini" "$CONFIG"
runs 'devices.gpus=auto devices.gpus_per_model=1' 1 -c "$CONFIG"
CONFIG=$root/conf/run.ini
pushd "$root" >/dev/null || exit
TDGEN_CONFIG='' runs ''
popd >/dev/null || exit
unset CONFIG
# The paths of the default configuration are relative to the repository.
pushd "$work" >/dev/null || exit
TDGEN_CONFIG='' refuses 'name the configuration with -c FILE'
popd >/dev/null || exit

# Old names.
runs 'data.path=d.jsonl model.path=m' distillation.dataset.path=d.jsonl teacher.model_path=m
runs 'data.max_samples=0 model.compute=bf16' \
    distillation.dataset.max_samples=null distillation.teacher.torch_dtype=torch.bfloat16
runs 'model.compute=f16 model.compute=f32' \
    distillation.teacher.dtype=float16 distillation.teacher.dtype=float32
refuses 'run.batch_tokens counts tokens' 1 0 distillation.dataset.batch_size=4
refuses 'data.path=PATH takes local' distillation.dataset.name=wikitext
refuses "unknown override 'distillation.loss=kl'" distillation.loss=kl
refuses 'gpu_list' CUDA_VISIBLE_DEVICES=0

# Wrong arguments.
refuses "gpus_per_model is '0'" 0
refuses "gpus_per_model is '0,1'" "0,1"
refuses "gpu_list is '0,,1'" 1 "0,,1"
refuses "gpu_list is '0 1'" 1 "0 1"
refuses "gpu_list is 'all'" 1 all
runs 'devices.gpus=GPU-8f2e,0000:65:00.0,cuda:3 devices.gpus_per_model=1' 1 GPU-8f2e,0000:65:00.0,cuda:3
runs 'devices.gpus=cpu:0,cpu:1 devices.gpus_per_model=1' 1 cpu:0,cpu:1
refuses "unexpected argument '2'" 1 "0,1" 2
refuses "unknown option '--dryrun'" 1 --dryrun
refuses '-c needs the path' 1 -c
refuses 'there is no configuration file /nowhere/x.ini' 1 -c /nowhere/x.ini
TDGEN=$work/none refuses 'is not a program' 1

# CUDA_VISIBLE_DEVICES never reaches tdgen, and never silently widens to all GPUs.
export CUDA_VISIBLE_DEVICES=4,5
refuses '2 "4,5"' 2
refuses '1 "4,5"'
runs 'devices.gpus=0,1 devices.gpus_per_model=1' 1 0,1
runs 'devices.groups=0|1' 'devices.groups=0|1'
unset CUDA_VISIBLE_DEVICES

# The exit code of the run is the exit code of the script.
FAKE_EXIT=75 "$wrapper" 1 >/dev/null 2>&1
rc=$?
if [[ $rc -eq 75 ]]; then verdict ok; else verdict no 'exit code' "  expected 75, got $rc"; fi

# It says what it runs, unless quiet.
out=$("$wrapper" 1 2>&1 >/dev/null)
if [[ $out == running:*"'devices.gpus=auto'"* ]]; then verdict ok; else verdict no 'running line' "$out"; fi
out=$("$wrapper" 1 --quiet 2>&1 >/dev/null)
if [[ -z $out ]]; then verdict ok; else verdict no '--quiet' "$out"; fi

finish
