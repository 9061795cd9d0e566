#!/usr/bin/env bash
# The device, model and end-to-end suites on a real GPU: tools/check --gpu, and bin/run-suites of a
# bundle. Prints a line per suite and, last, "N passed, N failed, N skipped".
set -uo pipefail

usage() {
    cat <<'END2'
usage: run_suites.sh --programs FOLDER... --tdgen PROGRAM [--sanitizer [SECONDS]] [--cpu] [--small] [--only PART]... [--list]

  --programs FOLDER   where test_gpu_*, test_device_modes, test_logits, test_families, test_session and
                      test_session_modes are; may be repeated
  --tdgen PROGRAM     the program for the end-to-end script
  --sanitizer         then a slice under compute-sanitizer: memcheck over the device suites and a small
                      run, racecheck and initcheck over the kernels; SECONDS at most for each tool
                      (default 90), what does not end in time is skipped and said so
  --sanitizer-only    nothing but that slice
  --cpu               then the suites of the CPU device and of the run too: the oracle, on this processor
  --small             without the sizes of real models
  --only PART         suites whose name holds PART, or =NAME; may be repeated
  --list              prints the names of the suites (not those under the sanitizer) and runs nothing

Environment: TD_SOURCE_DIR (repository or bundle), TDGEN_TEST_DEVICE (cuda; cpu tries this script out),
TDGEN_TEST_JOBS (4: cases of the model suites at a time).
A suite that exits with 77 is skipped: there was no such device. All skipped: exit 77. Logs are in
build/logs/gpu, or in TDGEN_LOGS.
END2
}
: "${TD_SOURCE_DIR:=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)}"
export TD_SOURCE_DIR TDGEN_TEST_DEVICE=${TDGEN_TEST_DEVICE:-cuda}
folders=() parts=() tdgen='' sanitizer=0 large=1 plain=true cpu=false list=false
while (($# > 0)); do
    case $1 in
    --programs) folders+=("${2:?}") && shift ;;
    --tdgen) tdgen=${2:?} && shift ;;
    --sanitizer | --sanitizer-only)
        [[ $1 == --sanitizer-only ]] && plain=false
        sanitizer=90
        [[ ${2-} =~ ^[0-9]+$ ]] && sanitizer=$2 && shift
        ;;
    --small) large=0 ;;
    --cpu) cpu=true ;;
    --list) list=true ;;
    --only) parts+=("${2:?}") && shift ;;
    -h | --help) usage && exit 0 ;;
    *) echo "run_suites.sh: unknown argument $1" >&2 && exit 2 ;;
    esac
    shift
done
if ! $list; then
    logs=${TDGEN_LOGS:-build/logs/gpu}
    mkdir -p "$logs" || exit 1
    logs=$(cd "$logs" && pwd)
fi
passed=0 failed=0 skipped=0 cases=0 broken=0

wanted() { # NAME
    local part
    ((${#parts[@]} == 0)) && return 0
    for part in "${parts[@]}"; do [[ $part == "=$1" || $1 == *"$part"* ]] && return 0; done
    return 1
}

skip() {
    $list && return 0
    printf 'SKIPPED: %s\n' "$*"
    skipped=$((skipped + 1))
}

# Cases that a suite's log counts: plain programs' and scripts' last line, or Criterion's.
count_cases() { # LOG
    sed -nE 's/.*: ([0-9]+) passed, ([0-9]+) failed.*/\1 \2/p
        s/.*Synthesis: Tested: [0-9]+ \| Passing: ([0-9]+) \| Failing: ([0-9]+).*/\1 \2/p' "$1" |
        sed 's/\x1b\[[0-9;]*m//g' | tail -n 1
}

# suite NAME SECONDS COMMAND...
suite() {
    local name=$1 limit=$2 log=${logs-}/$1.log begin=$SECONDS status good=0 bad=0 reason
    shift 2
    wanted "$name" || return 0
    $list && printf '%s\n' "$name" && return 0
    timeout --kill-after=10 "$limit" "$@" >"$log" 2>&1 </dev/null
    status=$?
    read -r good bad < <(count_cases "$log") || true
    good=${good:-0} bad=${bad:-0}
    cases=$((cases + good)) broken=$((broken + bad))
    case $status in
    0)
        passed=$((passed + 1))
        printf '%-34s passed, %d cases  (%d s)\n' "$name" "$good" $((SECONDS - begin))
        grep -ahE 'SKIPPED' "$log" | sort | uniq -c | sed -E 's/^ *([0-9]+) +/    \1 times: /' | cut -c 1-200 || true
        ;;
    77)
        reason=$(grep -am 1 -o 'SKIPPED: .*' "$log" | sed 's/^SKIPPED: //')
        skip "$name: ${reason:-exit 77}"
        ;;
    *)
        failed=$((failed + 1))
        ((status == 124 || status == 137)) && echo "    not finished in $limit s" >>"$log"
        printf '%-34s FAILED with %d, %d cases passed, %d failed  (%d s; %s)\n' "$name" "$status" "$good" \
            "$bad" $((SECONDS - begin)) "$log"
        grep -aE 'FAILED|Assertion|error|Error|ERROR|\[FAIL|not finished' "$log" | head -n 15 | cut -c 1-300 | sed 's/^/    /'
        ;;
    esac
}

# Programs named so, from all folders, that choose their device by TDGEN_TEST_DEVICE; those of the
# CUDA-on-CPU layer are not about a card. Only the layer reads TDGEN_PRETEND_SEED; a suite for both may
# ask for TDGEN_PRETEND_GPUS.
programs() { # PATTERN...
    local folder pattern file
    for folder in "${folders[@]}"; do
        for pattern; do
            for file in "$folder"/$pattern; do
                [[ -f $file && -x $file ]] || continue
                [[ $pattern == test_gpu_* ]] && { ! grep -q TDGEN_TEST_DEVICE "$file" ||
                    grep -q TDGEN_PRETEND_SEED "$file"; } && continue
                printf '%s\n' "$file"
            done
        done
    done
}

# --- as they are
if $plain; then
    export TDGEN_TEST_LARGE=$large
    mapfile -t found < <(programs 'test_gpu_*')
    ((${#found[@]} > 0)) || skip "there is no test_gpu_* in ${folders[*]}"
    # What capture makes in each mode: a suite of both kinds of device.
    for file in "${found[@]}" $(programs test_device_modes); do suite "${file##*/}" 600 "$file"; done
    # A few at a time: each case is a process and pays for CUDA's start, and all are small.
    for file in $(programs test_session test_session_modes test_families test_logits); do
        suite "${file##*/}" 600 env CRITERION_VERBOSITY_LEVEL=1 "$file" --jobs "${TDGEN_TEST_JOBS:-4}"
    done
    if [[ -n $tdgen && -f $TD_SOURCE_DIR/test/e2e/gpu.sh ]]; then
        suite e2e_gpu 600 env TDGEN="$tdgen" bash "$TD_SOURCE_DIR/test/e2e/gpu.sh"
    else
        skip "the end-to-end script: no --tdgen or no test/e2e/gpu.sh"
    fi
fi

if $cpu; then
    for file in $(programs 'test_device_*' test_run test_weights); do
        suite "${file##*/}" 600 env CRITERION_VERBOSITY_LEVEL=1 "$file"
    done
fi

$list && exit 0

# --- under compute-sanitizer
find_sanitizer() {
    local place
    command -v compute-sanitizer && return 0
    for place in "${CUDA_HOME-}"/bin /usr/local/cuda/bin /usr/local/cuda/compute-sanitizer \
        /usr/local/cuda-*/bin /usr/local/cuda-*/compute-sanitizer; do
        [[ -x $place/compute-sanitizer ]] && printf '%s\n' "$place/compute-sanitizer" && return 0
    done
    python3 -c "
import glob, os, sys
found = [p for e in sys.path for p in glob.glob(os.path.join(e, 'nvidia', '*', 'bin', 'compute-sanitizer'))]
print(found[0] if found else ''); sys.exit(not found)" 2>/dev/null
}

# checked TOOL NAME COMMAND...: within what is left of the tool's time.
checked() {
    local tool=$1 name=$1_$2 log begin=$SECONDS limit=$((tool_end - SECONDS)) status good=0 bad=0
    shift 2
    wanted "$name" || return 0
    log=$logs/$name.log
    if ((limit < 5)); then
        skip "$name: no time left for $tool"
        return
    fi
    timeout --kill-after=5 "$limit" "$tool_path" --tool "$tool" --error-exitcode 86 --target-processes all \
        --print-limit 20 "${tool_options[@]}" "$@" >"$log" 2>&1 </dev/null
    status=$?
    read -r good bad < <(count_cases "$log") || true
    case $status in
    0)
        if ! grep -qE 'ERROR SUMMARY: 0 errors|RACECHECK SUMMARY: 0 hazards' "$log"; then
            failed=$((failed + 1))
            printf '%-34s FAILED: no summary of the tool (%s)\n' "$name" "$log"
        else
            passed=$((passed + 1))
            printf '%-34s passed, %d cases  (%d s)\n' "$name" "${good:-0}" $((SECONDS - begin))
        fi
        ;;
    77) skip "$name: the suite has no device" ;;
    124 | 137)
        # What it found before the time was over counts.
        if grep -qaE '^========= (Invalid|Uninitialized|Error: |Race reported|Program hit)' "$log"; then
            failed=$((failed + 1))
            printf '%-34s FAILED  (%s)\n' "$name" "$log"
        else
            skip "$name: not finished in $limit s; no error up to there"
        fi
        ;;
    *)
        failed=$((failed + 1))
        printf '%-34s FAILED with %d  (%d s; %s)\n' "$name" "$status" $((SECONDS - begin)) "$log"
        ;;
    esac
    grep -aE -A 6 '^========= (Invalid|Uninitialized|Error: |Race reported|Program hit)' "$log" | head -n 24 | cut -c 1-200 | sed 's/^/    /'
}

if ((sanitizer > 0)); then
    export TDGEN_TEST_LARGE=0
    mapfile -t found < <(programs 'test_gpu_*')
    if [[ $TDGEN_TEST_DEVICE != cuda ]]; then
        skip "compute-sanitizer: TDGEN_TEST_DEVICE is $TDGEN_TEST_DEVICE"
    elif tool_path=$(find_sanitizer); then
        for tool in memcheck racecheck initcheck; do
            tool_end=$((SECONDS + sanitizer)) tool_options=()
            for file in "${found[@]}"; do
                # The kernels of the rows' suite are those of the others, its arrays are large.
                [[ ${file##*/} == test_gpu_rows ]] && continue
                # Races inside a block and unwritten memory are a matter of kernels: the suite that
                # is about streams goes through memcheck only.
                [[ $tool != memcheck && $file == *streams* ]] && continue
                checked "$tool" "${file##*/}" "$file"
            done
            if [[ $tool == memcheck && -n $tdgen ]]; then
                out=$(mktemp -d)
                checked memcheck run "$tdgen" -c "$TD_SOURCE_DIR/conf/demo.ini" model.path="$TD_SOURCE_DIR/demo/teacher" \
                    data.path="$TD_SOURCE_DIR/demo/demo.jsonl" data.max_samples=16 devices.gpus=0 output.dir="$out/run"
                rm -rf "$out"
            fi
        done
    else
        skip "compute-sanitizer is not installed: nothing ran under it"
    fi
fi

printf '%d cases passed, %d failed\n' "$cases" "$broken"
printf '%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
if ((passed + failed + skipped == 0)); then
    echo "no suite was chosen" >&2
    exit 1
fi
((failed == 0)) || exit 1
((passed > 0)) || exit 77
