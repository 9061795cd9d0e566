#!/usr/bin/env bash
# check_arrows.sh [ROOT] - the arrows between the rooms of src/, by what their files include.
#
# A room is a folder of src/. Other rooms see its face only, and only where the list below draws an
# arrow; docs/design.md explains both. Every include of every file under src/ and include/ is read:
# no file is exempt. Prints each violation with the reason; exit 1 when there is one.
set -euo pipefail

root=${1:-$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)}
cd "$root"

# Which rooms a room may include. Its own headers and base are always allowed.
declare -A arrows=(
    [base]=""
    [capture]=""
    [tokenizer]=""
    [config]="capture"
    [device]="capture"
    [cpu]="device capture"
    [gpu]="device capture"
    [model]="device capture"
    [data]="tokenizer config"
    [plan]="model data device capture config"
    [queue]="plan"
    [record]="capture data"
    [run]="queue plan record model data device capture config"
    [sim]="queue plan data"
    [report]="record capture data"
    [api]="model record data device"
    [app]="config capture device tokenizer model data plan queue run sim record report"
    # The two files of the hall.
    [main.c]="app"
    [backends.c]="device cpu gpu"
)
# The faces of a room that has more than ROOM/ROOM.h, and who the second one is for.
declare -A faces=(
    [capture]="capture limits philox" # limits.h, philox.h: compiled into kernels
    [device]="device backend"         # backend.h: for those who implement the table
    [record]="record reader"          # record.h: for those who write a folder; reader.h: who read it
)
# Headers of one room only.
declare -A system_owner=(
    ['cuda[a-zA-Z0-9_]*\.h|cublas[a-zA-Z0-9_]*\.h|nvml\.h|nvrtc\.h|mma\.h']=gpu
    ['(oneapi/)?dnnl[a-z_/]*\.h|omp\.h']=cpu
)

found=0
violation() { # PLACE, REASON
    printf '%s\n    %s\n' "$1" "$2"
    found=$((found + 1))
}

has_word() { [[ " $1 " == *" $2 "* ]]; }

# The list itself draws no circle.
if ! circle=$(for room in "${!arrows[@]}"; do
    printf '%s %s\n' "$room" "$room"
    for to in ${arrows[$room]}; do printf '%s %s\n' "$room" "$to"; done
done | tsort 2>&1 >/dev/null); then
    violation "tools/lib/check_arrows.sh" "the list has a circle: ${circle//$'\n'/ }"
fi

check_include() { # FILE LINE ROOM NAME: a quoted include
    local file=$1 line=$2 room=$3 name=$4 to header
    to=${name%%/*}
    header=${name#*/}
    if [[ $name != */* || $name == ../* || $name == ./* ]]; then
        violation "$file:$line: $name" "an include names the room: \"ROOM/HEADER\""
    elif [[ $to == tdgen ]]; then
        [[ $room == api ]] || violation "$file:$line: $name" "include/tdgen is what others see of libtdgen; only src/api implements it"
    elif [[ $to == "$room" || $to == base ]]; then
        :
    elif ! has_word "${arrows[$room]}" "$to"; then
        violation "$file:$line: $name" "$room may not include $to (it may: base ${arrows[$room]})"
    elif ! has_word "${faces[$to]:-$to}" "${header%.*}"; then
        violation "$file:$line: $name" "a header of src/$to that only $to may include; its faces: ${faces[$to]:-$to}"
    fi
}

shopt -s nullglob globstar
files=0
for file in src/**/*.{c,h,cu,cuh} include/**/*.h; do
    files=$((files + 1))
    case $file in
    include/tdgen/*) room=include ;;
    include/*) violation "$file:1" "include/ holds include/tdgen and nothing else" && continue ;;
    src/*/*) room=${file#src/} && room=${room%%/*} ;;
    *) room=${file#src/} ;;
    esac
    if [[ $room != include && ! -v "arrows[$room]" ]]; then
        violation "$file:1" "$room is no room of the list in tools/lib/check_arrows.sh"
        continue
    fi
    while IFS=: read -r line text; do
        case $text in
        *'"'*'"'*)
            name=${text#*\"} && name=${name%%\"*}
            if [[ $room == include ]]; then
                [[ $name == tdgen/* ]] || violation "$file:$line: $name" "the installed headers include the C library's and each other only"
            else
                check_include "$file" "$line" "$room" "$name"
            fi
            ;;
        *'<'*'>'*)
            name=${text#*<} && name=${name%%>*}
            for pattern in "${!system_owner[@]}"; do
                if [[ $name =~ ^($pattern)$ && $room != "${system_owner[$pattern]}" ]]; then
                    violation "$file:$line: $name" "only src/${system_owner[$pattern]} may include it"
                fi
            done
            if [[ $room == plan && $name =~ ^(pthread|threads|stdatomic)\.h$ ]]; then
                violation "$file:$line: $name" "plan is pure"
            fi
            if [[ $name == */* && -v "arrows[${name%%/*}]" ]]; then
                violation "$file:$line: $name" "our own headers are included with quotes"
            fi
            ;;
        *) violation "$file:$line: $text" "an include names its file" ;;
        esac
    done < <(grep -nE '^[[:space:]]*#[[:space:]]*(include|include_next|import)\b' "$file" || true)
    if [[ $room != gpu && $file != src/backends.c ]]; then
        while IFS= read -r match; do
            violation "$file:$match" "only src/backends.c and CMake ask whether CUDA was compiled in"
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
