#!/usr/bin/env bash
# What the GPUs are called, on the CUDA-on-CPU layer: numbered by PCI id and not by speed, found by UUID
# and PCI id, from among what is visible.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

export TDGEN_PRETEND_GPUS='Pretend V100:7.0:8:4,Pretend A100:8.0:8:4*2'
unset CUDA_DEVICE_ORDER CUDA_VISIBLE_DEVICES
if ! "$TDGEN" devices 2>/dev/null | grep -q 'Pretend V100'; then
    echo "device_names.sh: SKIPPED: this build has no pretended devices"
    exit 77
fi
config "$TMP/run.ini"
second_line() { "$TDGEN" devices | grep -A1 "^$1 " | tail -n 1; }
# named LABEL MODEL SETTING... : whom a plan takes
named() {
    local label=$1 model=$2
    shift 2
    expect 0 "Total GPUs available: 1 \($label\)" "$TDGEN" -c "$TMP/run.ini" --dry-run "$@"
    check "$* is a $model" grep -q "on 1 x $model" "$TMP/out"
}
refused() {
    local code=$1 pattern=$2
    shift 2
    expect "$code" "$pattern" "$TDGEN" -c "$TMP/run.ini" --dry-run "$@"
}

# The V100 is the slowest, and CUDA by itself would count it last.
expect 0 '^cuda:0 +Pretend V100' "$TDGEN" devices
check "cuda:2 is the third on the bus" grep -q 'PCI 0000:17:00.0' <(second_line cuda:2)
uuid=$(second_line cuda:1 | awk '{print $1}')
named 1 'Pretend A100' devices.gpus="${uuid:0:9}"
named 1 'Pretend A100' devices.gpus="$uuid"
named 1 'Pretend A100' devices.gpus=0f:00.0
named 0 'Pretend V100' devices.gpus=00000000:07:00.0
named 0 'Pretend V100' devices.gpus=cuda:0
named 2 'Pretend A100' devices.groups=17:00.0 devices.gpus=cuda:2
named 0 'Pretend A100' devices.gpus="MIG-${uuid:4}" # CUDA is asked for this slice alone
refused 5 'no GPU GPU-0123.*tdgen devices lists' devices.gpus=GPU-0123
refused 2 'names GPU 1 twice' devices.gpus="0f:00.0,$uuid"
refused 2 'knows no UUID and no PCI id' devices.gpus=0f:00.0 \
    devices.inventory=conf/inventory/8xa100-80gb.ini
# The numbers in CUDA_VISIBLE_DEVICES are those of nvidia-smi too.
export CUDA_VISIBLE_DEVICES=0,2
named 0 'Pretend V100' devices.gpus=0
named 1 'Pretend A100' devices.gpus=17:00.0
refused 5 'shows no GPU 0f:00.0' devices.gpus=0f:00.0
expect 0 '^CUDA_VISIBLE_DEVICES=0,2 is set: ' "$TDGEN" devices
unset CUDA_VISIBLE_DEVICES
# An order that the user wants is his.
export CUDA_DEVICE_ORDER=FASTEST_FIRST
expect 0 '^cuda:0 +Pretend A100' "$TDGEN" devices
check "says so" grep -q '^CUDA_DEVICE_ORDER=FASTEST_FIRST is set: ' "$TMP/out"
export CUDA_DEVICE_ORDER=PCI_BUS_ID
expect 0 '^cuda:0 +Pretend V100' "$TDGEN" devices
check "nothing to say" eval "! grep -q CUDA_DEVICE_ORDER '$TMP/out'"
unset CUDA_DEVICE_ORDER
# Without a GPU a plan takes names for any, and a run says whom it misses.
export TDGEN_PRETEND_GPUS=none
refused 0 'Total GPUs available: 3 \(0,1,2\)' devices.gpus=0,GPU-8f2e,65:00.0
expect 5 'names GPU GPU-8f2e, but there is no GPU' "$TDGEN" -c "$TMP/run.ini" devices.gpus=GPU-8f2e
# cpu:0 is what tdgen devices prints.
expect 0 '^cpu:0 ' "$TDGEN" devices
expect 0 'Total devices available: 2 \(cpu:0,cpu:1\)' "$TDGEN" -c "$TMP/run.ini" --dry-run devices.gpus=cpu:0,cpu:1
expect 0 'Worker 0: .*cpu:1' "$TDGEN" -c "$TMP/run.ini" --dry-run devices.gpus='cpu*2' devices.groups=cpu:1
finish
