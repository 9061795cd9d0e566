#!/usr/bin/env bash
# tools/lib/check_arrows.sh must pass on this tree, and must find each kind of forbidden include.
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
check=$root/tools/lib/check_arrows.sh
work=$(mktemp -d /tmp/tdgen-arrows-XXXXXX)
trap 'rm -rf "$work"' EXIT
failed=0
passed=0

finds() { # FILE TEXT
    rm -rf "$work/src"
    mkdir -p "$work/$(dirname "$1")"
    printf '%s\n' "$2" >"$work/$1"
    local out
    if out=$("$check" "$work") || [[ $out != *"$1:1"* ]]; then
        failed=$((failed + 1))
        printf 'FAILED: not found: %s: %s\n%s\n' "$1" "$2" "$out"
    else
        passed=$((passed + 1))
    fi
}

allows() { # FILE TEXT
    rm -rf "$work/src"
    mkdir -p "$work/$(dirname "$1")"
    printf '%s\n' "$2" >"$work/$1"
    local out
    if out=$("$check" "$work"); then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        printf 'FAILED: refused: %s: %s\n%s\n' "$1" "$2" "$out"
    fi
}

finds src/model/forward.c '#include "cpu/kernels.h"'
finds src/model/forward.c '#include "gpu/kernels.cuh"'
finds src/gpu/device.c '#include "tdgen/model.h"'
finds src/gpu/device.c '  #  include "model/forward.h"'
finds src/cpu/device.c '#include "tdgen/plan.h"'
finds src/model/forward.c '#include "tdgen/plan.h"'
finds src/plan/plan.c '#include <pthread.h>'
finds src/plan/plan.c '#include "sched/queue.h"'
finds src/plan/plan.c '#include <oneapi/dnnl/dnnl.h>'
finds src/sched/group.c '#include <cuda_runtime.h>'
finds src/main.c '#include <nvml.h>'
finds src/main.c '#ifdef TDGEN_CUDA'
finds src/newroom/x.c '#include "tdgen/device.h"'
finds src/gpu/kernel.cu 'kernel<<<1, 2>>>(x);'
finds src/gpu/kernel.cu 'extern __shared__ float s[];'
finds src/gpu/common.cuh 'asm volatile ("trap;");'
allows src/gpu/ptx.cuh 'asm volatile ("trap;");'
allows src/gpu/launch.cuh 'kernel<<<1, 2>>>(x);'
allows src/gpu/device.c '#include <cuda_runtime.h>'
allows src/gpu/kernel.cu '#ifndef __CUDACC_RTC__'
allows src/device.c '#ifdef TDGEN_CUDA'
allows src/cpu/gemm.c '#include <oneapi/dnnl/dnnl.h>'
allows src/main.c '#include "record/index.h"'
allows src/model/forward.c '#include "tdgen/device.h"'
allows src/model/forward.c '#include <pthread.h>'

if out=$("$check" "$root"); then
    passed=$((passed + 1))
else
    failed=$((failed + 1))
    printf 'FAILED: this tree\n%s\n' "$out"
fi

printf '%d passed, %d failed\n' "$passed" "$failed"
((failed == 0 && passed > 0))
