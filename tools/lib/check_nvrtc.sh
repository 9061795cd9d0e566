#!/usr/bin/env bash
# check_nvrtc.sh [ARCHS] - compiles every kernel with NVRTC 12, default for 70 (the V100, which CUDA 13's nvcc
# does not know any more) and 75; nvcc builds newer ones. Exit 77 where NVRTC cannot be had.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=tools/lib/cu12.sh
. tools/lib/cu12.sh
cu12_or_skip "the kernels were NOT compiled for sm_70"
exec "$cu12_python" tools/lib/nvrtc_compile.py "${1:-70,75}" src/gpu/*.cu
