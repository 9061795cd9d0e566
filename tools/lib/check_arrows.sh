#!/usr/bin/env bash
# check_arrows.sh [ROOT] - the arrows between the rooms of src/, by what their files include.
#
# A room's own headers (src/ROOM/*.h) are for that room; other rooms use include/tdgen, and of it
# only what the list below allows. main and the cmd_ files at the top of src/ may use everything.
set -euo pipefail

root=${1:-$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)}
cd "$root"

# Leaf headers, for everybody.
leaves='status|log|util|json|dtype|convert|philox'
declare -A allowed=(
    [plan]="config|cost|data|device|model|plan"
    [data]="config|cost|data|tokenizer|safetensors"
    [record]="config|data|device|model|record|safetensors|tokenizer"
    [model]="device|model|safetensors|tokenizer"
    [cpu]="device|device_check"
    [gpu]="device|device_check"
    [sched]="config|cost|data|device|faults|model|plan|record|run|simulate|tokenizer"
)
# Headers of one room only.
declare -A system_owner=(
    ['cuda[a-zA-Z0-9_]*\.h|cublas[a-zA-Z0-9_]*\.h|nvml\.h|nvrtc\.h']=gpu
    ['(oneapi/)?dnnl[a-z_/]*\.h']=cpu
)

found=0
violation() { # FILE:LINE:TEXT, REASON
    printf '%s\n    %s\n' "$1" "$2"
    found=$((found + 1))
}

shopt -s nullglob globstar
files=0
for file in src/**/*.{c,h,cu,cuh}; do
    files=$((files + 1))
    room=${file#src/}
    case $room in */*) room=${room%%/*} ;; *) room= ;; esac
    while IFS=: read -r line text; do
        name=${text#*[<\"]}
        name=${name%%[>\"]*}
        case $text in
        *'"tdgen/'*)
            header=${name#tdgen/}
            header=${header%.h}
            if [[ -n $room && ! $header =~ ^($leaves)$ && ! $header =~ ^(${allowed[$room]-})$ ]]; then
                violation "$file:$line: $name" "$room may not use it (allowed: $leaves|${allowed[$room]-nothing, the room is not in the list})"
            fi
            ;;
        *'"'*/*)
            if [[ -n $room && ${name%%/*} != "$room" ]]; then
                violation "$file:$line: $name" "the headers in src/${name%%/*} are private to it; include/tdgen holds what others may use"
            fi
            ;;
        *'<'*)
            for pattern in "${!system_owner[@]}"; do
                if [[ $name =~ ^($pattern)$ && $room != "${system_owner[$pattern]}" ]]; then
                    violation "$file:$line: $name" "only src/${system_owner[$pattern]} may use it"
                fi
            done
            if [[ $room == plan && $name =~ ^(pthread|omp|threads)\.h$ ]]; then
                violation "$file:$line: $name" "plan is pure"
            fi
            ;;
        esac
    done < <(grep -nE '^[[:space:]]*#[[:space:]]*include[[:space:]]*[<"]' "$file" || true)
    if [[ $room != gpu && $file != src/device.c ]]; then
        while IFS= read -r match; do
            violation "$file:$match" "only src/device.c and CMake ask whether CUDA was compiled in"
        done < <(grep -nE '^[[:space:]]*#[[:space:]]*(el)?if.*CUDA' "$file" || true)
    fi
done

# The seams of the kernels: what NVRTC and the CUDA-on-CPU layer replace stands in one header each.
for file in src/gpu/**/*.{cu,cuh}; do
    declare -A seams=(
        [launch.cuh]='<<<|extern __shared__'
        [ptx.cuh]='\basm\b *(volatile)? *\('
    )
    for seam in "${!seams[@]}"; do
        [[ ${file##*/} == "$seam" ]] && continue
        while IFS= read -r match; do
            violation "$file:$match" "only src/gpu/$seam may hold that"
        done < <(grep -nE "${seams[$seam]}" "$file" || true)
    done
done

if ((files == 0)); then
    echo "no source files under $root/src"
    exit 1
fi
if ((found > 0)); then
    echo "$found forbidden arrows"
    exit 1
fi
echo "$files files, no forbidden arrow"
