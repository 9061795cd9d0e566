#!/usr/bin/env bash
# check_cu12.sh - the host code of src/gpu against the headers of CUDA 12's runtime and cuBLAS: only API that
# both toolkits have may be used. Exit 77 where they cannot be had.
#
# The C files go through gcc. A CUDA file's host part needs a compiler that knows CUDA: the toolkit's own
# front end, cudafe++ of any version, reads it behind the preprocessor with CUDA 12's headers (nvcc itself
# insists on its own). Nothing is linked or run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=tools/lib/cu12.sh
. tools/lib/cu12.sh
cu12_or_skip "the host code was NOT checked against CUDA 12's headers"
site=$(cu12_site)
includes=(-Isrc -isystem "$site/cuda_runtime/include" -isystem "$site/cuda_nvcc/include"
    -isystem "$site/cublas/include")
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
passed=0 failed=0

one() { # NAME COMMAND...
    local name=$1
    shift
    if "$@" >"$tmp/out" 2>&1; then
        passed=$((passed + 1))
    else
        printf '%s: FAILED\n' "$name"
        sed 's/^/    /' "$tmp/out"
        failed=$((failed + 1))
    fi
}

cuda_host() { # FILE
    # What nvcc 12.9 defines for the host's side.
    g++ -E -x c++ -std=c++17 -m64 -D_GNU_SOURCE -D__CUDACC__ -D__NVCC__ -D__CUDA_ARCH_LIST__=700,800,900 \
        -D__CUDACC_VER_MAJOR__=12 -D__CUDACC_VER_MINOR__=9 -D__CUDACC_VER_BUILD__=86 \
        -D__CUDA_API_VER_MAJOR__=12 -D__CUDA_API_VER_MINOR__=9 -D__NVCC_DIAG_PRAGMA_SUPPORT__=1 \
        -D__CUDACC_DEVICE_ATOMIC_BUILTINS__=1 "${includes[@]}" -include cuda_runtime.h "$1" -o "$tmp/in.ii" &&
        "$cudafe" --c++17 --static-host-stub --gnu_version="$gnu_version" --display_error_number \
            --orig_src_file_name "$1" --orig_src_path_name "$PWD/$1" --allow_managed --m64 --parse_templates \
            --gen_c_file_name "$tmp/out.cpp" --stub_file_name stub.c --gen_module_id_file \
            --module_id_file_name "$tmp/module_id" "$tmp/in.ii"
}

shopt -s nullglob
for file in src/gpu/*.c; do
    one "$file" gcc -std=gnu11 -fsyntax-only -Wall -Wextra -Werror -Wshadow -Wno-format-truncation \
        -D_GNU_SOURCE "${includes[@]}" "$file"
done
nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
cudafe=$(dirname "$nvcc")/cudafe++
gnu_version=$(g++ -dumpfullversion | awk -F. '{ printf "%d%02d%02d", $1, $2, $3 }')
if [[ -x $cudafe ]]; then
    for file in src/gpu/*.cu; do
        one "$file" cuda_host "$file"
    done
else
    echo "SKIPPED: no cudafe++ (no CUDA toolkit): the launchers in src/gpu/*.cu were NOT checked against CUDA 12"
fi
echo "CUDA 12 headers: $passed passed, $failed failed"
((failed == 0))
