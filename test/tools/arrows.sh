#!/usr/bin/env bash
# tools/lib/check_arrows.sh must pass on this tree, and must find each kind of forbidden include.

# shellcheck source=test/tools/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
check=$root/tools/lib/check_arrows.sh

# try FILE TEXT: the check's output over a tree of this one file, and its exit code.
try() {
    rm -rf "$work/src" "$work/include"
    mkdir -p "$work/$(dirname "$1")"
    printf '%s\n' "$2" >"$work/$1"
    "$check" "$work"
}

finds() { # FILE TEXT
    local out
    if out=$(try "$@") || [[ $out != *"$1:1"* ]]; then
        verdict no "not found: $1: $2" "$out"
    else
        verdict ok
    fi
}

allows() { # FILE TEXT
    local out
    if out=$(try "$@"); then verdict ok; else verdict no "refused: $1: $2" "$out"; fi
}

# Between rooms: only along the list, and only to a face.
finds src/model/forward.c '#include "cpu/kernels.h"'
finds src/model/forward.c '#include "gpu/kernels.cuh"'
finds src/model/forward.c '#include "config/config.h"'
finds src/model/forward.c '#include "plan/plan.h"'
finds src/gpu/device.c '#include "model/model.h"'
finds src/gpu/device.c '  #  include "model/forward.h"'
finds src/cpu/device.c '#include "plan/plan.h"'
finds src/plan/plan.c '#include "queue/queue.h"'
finds src/record/writer.c '#include "model/model.h"'
finds src/record/writer.c '#include "device/device.h"'
finds src/report/verify.c '#include "run/run.h"'
finds src/report/verify.c '#include "record/shard_temp.h"'
finds src/queue/queue.c '#include "run/run.h"'
finds src/sim/sim.c '#include "run/state.h"'
finds src/tokenizer/load.c '#include "model/model.h"'
finds src/base/log.c '#include "config/config.h"'
finds src/app/job.c '#include "cpu/cpu.h"'
finds src/app/job.c '#include "record/layout.h"'
finds src/run/run.c '#include "app/job.h"'
finds src/newroom/x.c '#include "device/device.h"'
# No file is exempt: the hall has two, each with arrows of its own.
finds src/main.c '#include "record/reader.h"'
finds src/main.c '#include "config/config.h"'
finds src/backends.c '#include "model/model.h"'
finds src/cmd_other.c '#include "base/log.h"'
# Names: every include says its room; nothing hides behind a macro or a relative path.
finds src/record/writer.c '#include "output.h"'
finds src/record/writer.c '#include "../model/model.h"'
finds src/record/writer.c '#include HEADER'
finds src/record/writer.c '#include <model/model.h>'
# The installed headers.
finds include/tdgen/record.h '#include "record/reader.h"'
finds include/tdgen/record.h '#include "base/status.h"'
finds include/other.h '#include <stdint.h>'
finds src/run/run.c '#include "tdgen/record.h"'
# System headers of one room.
finds src/plan/plan.c '#include <pthread.h>'
finds src/plan/plan.c '#include <oneapi/dnnl/dnnl.h>'
finds src/run/group.c '#include <cuda_runtime.h>'
finds src/main.c '#include <nvml.h>'
# Compile-time tests and seams.
finds src/main.c '#ifdef TDGEN_CUDA'
finds src/device/device.c '#if defined(TDGEN_CUDA)'
finds src/gpu/kernel.cu 'kernel<<<1, 2>>>(x);'
finds src/gpu/kernel.cu 'extern __shared__ float s[];'
finds src/gpu/common.cuh 'asm volatile ("trap;");'
allows src/gpu/ptx.cuh 'asm volatile ("trap;");'
allows src/gpu/launch.cuh 'kernel<<<1, 2>>>(x);'
allows src/gpu/device.c '#include <cuda_runtime.h>'
allows src/gpu/kernel.cu '#ifndef __CUDACC_RTC__'
allows src/gpu/capture.cu '#include "capture/philox.h"'
allows src/backends.c '#ifdef TDGEN_CUDA'
allows src/backends.c '#include "cpu/cpu.h"'
allows src/cpu/gemm.c '#include <oneapi/dnnl/dnnl.h>'
allows src/cpu/gemm.c '#include "device/backend.h"'
allows src/main.c '#include "app/app.h"'
allows src/model/forward.c '#include "device/device.h"'
allows src/model/forward.c '#include "model/weights.h"'
allows src/model/forward.c '#include <pthread.h>'
allows src/report/verify.c '#include "record/reader.h"'
allows src/api/record.c '#include "tdgen/record.h"'
allows include/tdgen/record.h '#include "tdgen/tdgen.h"'

# A circle in the list itself is found, too.
sed 's/^    \[capture\]=""/    [capture]="model"/' "$check" >"$work/circle.sh"
if out=$(bash "$work/circle.sh" "$root") || [[ $out != *"circle"* ]]; then
    verdict no 'not found: a circle in the list of arrows' "$out"
else
    verdict ok
fi

if out=$("$check" "$root"); then verdict ok; else verdict no 'this tree' "$out"; fi

finish
