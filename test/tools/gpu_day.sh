#!/usr/bin/env bash
# tools/gpu_day over a bundle of stand-ins and the real run_suites.sh: order, budgets, clean stops,
# resuming, exit codes, what the JSON and the page say.
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
work=$(mktemp -d /tmp/tdgen-gpu-day-XXXXXX)
bundle=$work/bundle out=$work/out
background=''
cleanup() {
    [[ -z $background ]] || kill -9 "$background" 2>/dev/null
    [[ ! -s $work/hang.pid ]] || kill -9 "$(cat "$work/hang.pid")" 2>/dev/null
    rm -rf "$work"
}
trap cleanup EXIT
failed=0
passed=0
unset TDGEN_TEST_DEVICE TDGEN_TEST_ROWS TDGEN_TEST_LARGE TDGEN_LOGS TD_SOURCE_DIR

# --- a bundle as tools/bundle lays it out, and a machine
mkdir -p "$bundle"/{bin,lib,libexec,test/e2e,tools/lib} "$work/tools"
cp "$root/tools/gpu_day" "$bundle/tools/"
cp "$root"/tools/lib/gpu_day_*.py "$root/tools/lib/run_suites.sh" "$bundle/tools/lib/"
printf '%s\n' 'tdgen 1.2.3, built for: cpu cuda-13.0' 'source: abc1234' >"$bundle/BUNDLE"
# shellcheck disable=SC2016 # for the bundle
echo 'export TD_SOURCE_DIR="$bundle"' >"$bundle/env.sh"

# script FILE LINE...: a program of sh, which first notes that it was called, and reads what a scenario
# put into $work/NAME.sh, if anything. The programs themselves stay as they are: they are the bundle.
script() {
    local file=$1
    shift
    {
        printf '%s\n' '#!/bin/sh' "echo ${file##*/} \"\$@\" >>'$work/calls'" '# TDGEN_TEST_DEVICE' \
            "[ ! -e '$work/${file##*/}.sh' ] || . '$work/${file##*/}.sh'"
        printf '%s\n' "$@"
    } >"$file"
    chmod +x "$file"
}
launcher() { # NAME COMMAND
    # shellcheck disable=SC2016 # for the launcher
    printf '%s\n' '#!/bin/sh' 'bundle=$(dirname -- "$(dirname -- "$(readlink -f -- "$0")")")' '. "$bundle/env.sh"' \
        "exec $2 \"\$@\"" >"$bundle/bin/$1"
    chmod +x "$bundle/bin/$1"
}
# shellcheck disable=SC2016 # for the launchers
{
    launcher run-suites '"$bundle/tools/lib/run_suites.sh" --programs "$bundle/libexec" --tdgen "$bundle/bin/tdgen"'
    launcher gpu_day 'python3 "$bundle/tools/gpu_day"'
}
script "$work/tools/nvidia-smi" 'case "$*" in' \
    "*--query*) echo 'Pretend H100, GPU-1, 81559 MiB, 9.0, 700.00 W, 1980 MHz, 580.1' ;;" \
    "*) echo '| Driver Version: 580.1    CUDA Version: 13.0 |' ;; esac"
script "$work/tools/compute-sanitizer" 'echo "========= ERROR SUMMARY: 0 errors"' 'echo "test_gpu_a: 3 passed, 0 failed"'
script "$bundle/bin/tdgen" 'exit 0'
echo 'echo "SKIPPED: no such device"; exit 77' >"$bundle/test/e2e/gpu.sh"
script "$bundle/libexec/test_gpu_a" 'echo "test_gpu_a: 3 passed, 0 failed"'
script "$bundle/libexec/test_gpu_b" 'echo "test_gpu_b: 4 passed, 0 failed"'
# shellcheck disable=SC2016 # for the program
script "$bundle/libexec/test_gpu_rows" '[ "$1" = --list ] && { echo products; echo norms; exit; }' \
    'echo "    $1 [N 64]: up to $TDGEN_TEST_ROWS rows, 1000 compared"' "[ ! -e '$work'/\$1.sh ] || . '$work'/\$1.sh" \
    'echo "  passed $1 (0.1 s)"; echo "test_gpu_rows: 1 passed, 0 failed"'
script "$bundle/libexec/bench_gpu" 'echo "# cuda:0: Pretend H100, kind"' \
    'echo "ceiling.bf16_to_bf16              700.0 TFLOP/s  0.001"' \
    'echo "gemm.qkv                          560.0 TFLOP/s  0.001"'
# shellcheck disable=SC2016 # for the program
script "$bundle/bin/bench_gpu" 'shape=$2; while [ "$1" != --json ]; do shift; done' \
    'echo "{\"runs\": [{\"profiled\": false, \"model\": \"$shape\", \"dataset\": \"2048\", \"tokens_per_s\": 36200.4,' \
    '\"tflops\": 563.04, \"of_ceiling\": 0.8049, \"transformers\": [{\"tokens_per_s\": 28960}, {\"error\": \"x\"}]}]}" >"$2"'
# A program that ends only by SIGKILL, and so does the child that it waits for.
hang="trap '' TERM INT; echo 'before the hang'; sh -c 'trap \"\" TERM INT; echo \$\$ >$work/hang.pid; while :; do sleep 1; done'"

# --- checks
verdict() { # ok|no NAME DETAIL
    if [[ $1 == ok ]]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        printf 'FAILED: %s\n%s\n' "$2" "$3"
    fi
}

# day NAME STATUS "PART OF THE OUTPUT" ARGUMENT...
day() {
    local name=$1 expected=$2 part=$3 rc
    shift 3
    : >"$work/calls"
    output=$(cd "$work" && PATH=$work/tools:$PATH "${program:-$root/tools/gpu_day}" --out "$out" --grace 1 "$@" 2>&1 </dev/null)
    rc=$?
    if [[ $rc == "$expected" && $output == *"$part"* ]]; then
        verdict ok
    else
        verdict no "$name" "  exit $rc instead of $expected, or no \"$part\":
$output"
    fi
}

# is NAME EXPRESSION: of the state s, its parts p, the page h
is() {
    local said
    if said=$(python3 -c "
import json, sys
s = json.load(open('$out/gpu_day.json')); p = s['parts']; h = open('$out/gpu_day.html').read()
if not ($2): sys.exit(json.dumps(s))" 2>&1); then
        verdict ok
    else
        verdict no "$1" "  not so: $2
$said"
    fi
}

called() { # NAME COUNT: how often a stand-in ran in the last day
    local n
    n=$(grep -c "^$1" "$work/calls")
    if [[ $n == "$2" ]]; then verdict ok; else verdict no "calls of $1" "  $n instead of $2: $(cat "$work/calls")"; fi
}

gone() { # the hanging program's child; nobody may have collected it yet
    local state
    state=$(sed -E 's/.*\) (.) .*/\1/' "/proc/$(cat "$work/hang.pid")/stat" 2>/dev/null)
    if [[ ${state:-Z} == [ZX] ]]; then verdict ok; else verdict no "$1" "  its process lives ($state)"; fi
    rm -f "$work/hang.pid"
}

appears() { # FILE: waits for it, as long as the day runs
    until [[ -s $1 ]]; do
        kill -0 "$background" 2>/dev/null || { verdict no "$1" '  the day ended without it' && return 1; }
        sleep 0.1
    done
}

# begins ARGUMENT...: a day in the background, up to where it hangs
begins() {
    PATH=$work/tools:$PATH "$root/tools/gpu_day" --bundle "$bundle" --out "$out" --grace 1 "$@" \
        >"$work/background.log" 2>&1 </dev/null &
    background=$!
    appears "$work/hang.pid"
}

ends() { # NAME STATUS: of the day in the background
    local rc
    wait "$background" 2>/dev/null
    rc=$?
    background=''
    if [[ $rc == "$2" ]]; then verdict ok; else verdict no "$1" "  exit $rc instead of $2: $(cat "$work/background.log")"; fi
}

# --- all is well: order, figures, machine, page; then nothing is left to do
day 'all passes' 0 '5 passed, 0 failed, 0 skipped, 0 unfinished' --bundle "$bundle"
if [[ $output =~ suites\ \(value.*rows\ \(value.*sanitizer\ \(value.*card\ \(value.*bench\ \(value ]]; then
    verdict ok
else
    verdict no 'order by value' "$output"
fi
is 'bundle and machine' "(s['bundle']['version'], s['bundle']['commit'], s['machine']['driver'], s['machine']['cuda'],
    s['machine']['gpus'][0]['name']) == ('1.2.3', 'abc1234', '580.1', '13.0', 'Pretend H100')"
is 'figures of the suites' "p['suites']['figures'] == {'cases_passed': 7, 'cases_failed': 0, 'skipped': 1}
    and p['suites']['steps']['e2e_gpu']['status'] == 'skipped'"
is 'figures of the rows' "(lambda f: (f['cases_passed'], f['every_operation_up_to'], f['rows_compared']) == (2, 32768, 2000))(
    p['rows']['figures'])"
is 'figures of the sanitizer' "set(p['sanitizer']['steps']) == {'memcheck', 'racecheck', 'initcheck'}
    and p['sanitizer']['figures'] == {'programs_clean': 7, 'programs_failed': 0, 'skipped': 0, 'not_finished': 0}"
is 'figures of the card' "p['card']['figures']['gemm.qkv TFLOP/s'] == 560 and p['card']['figures']['gemm.qkv of ceiling'] == 0.8"
is 'figures of the bench' "p['bench']['figures']['8b 2048 tokens/s'] == 36200
    and p['bench']['figures']['1b 2048 times transformers'] == 1.25"
is 'every part has what it needs' "all(o['status'] == 'passed' and o['finished'] and t['log'] and t['seconds'] >= 0
    for o in p.values() for t in o['steps'].values() if t['status'] != 'skipped') and s['verdict'] == 'passed'"
is 'the page' "all(t in h for t in ('Pretend H100', 'abc1234', '580.1', 'products', 'racecheck', '36,200', 'GPU day: <span class=passed'))
    and '<script' not in h and 'http' not in h.replace('http-equiv', '')"
if [[ -s $out/logs/rows-norms.log ]]; then verdict ok; else verdict no logs "$(ls "$out/logs")"; fi
seconds=$(sed -nE 's/^bench_gpu --shapes 8b .*--budget ([0-9]+) .*/\1/p' "$work/calls")
if ((seconds > 0 && seconds <= 200)); then verdict ok; else verdict no 'seconds of the bench' "$(cat "$work/calls")"; fi
day 'again' 0 'suites: passed before' --bundle "$bundle"
called test_gpu 0
day 'afresh, one part' 0 '1 passed' --bundle "$bundle" --only rows --fresh
called 'test_gpu_rows products' 1
called test_gpu_a 0
is 'the others are kept' "p['bench']['status'] == 'passed'"
day 'the table' 0 'passed       device, model' --list

# --- something fails: the rest runs, and the text is harmless in the page
echo 'echo "  FAILED embed: <script>alert(1)</script>"; echo "test_gpu_a: 2 passed, 1 failed"; exit 1' >"$work/test_gpu_a.sh"
day 'a failure' 1 '4 passed, 1 failed, 0 skipped, 0 unfinished' --bundle "$bundle" --fresh
called test_gpu_b 1
is 'the failure' "p['suites']['status'] == 'failed' and p['suites']['steps']['test_gpu_a']['status'] == 'failed'
    and p['suites']['figures']['cases_failed'] == 1 and p['suites']['figures']['failed_names'] == ['test_gpu_a']"
is 'escaped' "'alert(1)' in h and '<script' not in h and 'alert(1)' in p['suites']['steps']['test_gpu_a']['tail']"
day 'a failure is a result' 1 'suites: failed before' --bundle "$bundle"
mv "$bundle/bin/run-suites" "$work/run-suites"
day 'a program is missing' 1 '1 passed, 2 failed' --bundle "$bundle" --fresh --only suites,rows,sanitizer
mv "$work/run-suites" "$bundle/bin/run-suites"

# --- a hang: ended with all its processes, told, the rest runs; then it runs behind the others
echo "$hang" >"$work/test_gpu_a.sh"
rm -rf "$out"
day 'a hang' 75 '1 passed, 0 failed, 0 skipped, 1 unfinished' --bundle "$bundle" --only suites,rows --budget suites=20
gone 'the hanging suite'
is 'out of time' "p['suites']['status'] == 'out of time' and p['suites']['steps']['test_gpu_a']['status'] == 'out of time'
    and 'before the hang' in p['suites']['steps']['test_gpu_a']['tail'] and 'before the hang' in h
    and p['suites']['steps']['test_gpu_b']['status'] == 'passed' and p['rows']['status'] == 'passed'
    and p['card']['status'] == 'waiting' and s['verdict'] == 'unfinished'"
rm "$work/test_gpu_a.sh"
day 'it goes on' 0 '5 passed, 0 failed, 0 skipped, 0 unfinished' --bundle "$bundle"
if [[ $output =~ sanitizer\ \(value.*bench\ \(value.*suites\ \(value ]]; then verdict ok; else verdict no 'out of time comes last' "$output"; fi
called test_gpu_a 1
called test_gpu_b 0

# --- signals, and the end of everybody's time: a clean stop, and on from there
echo "$hang" >"$work/norms.sh"
for number in TERM INT HUP; do
    begins --fresh
    kill -s "$number" "$background"
    ends "SIG$number" 75
    gone "the case at SIG$number"
    is "state at SIG$number" "p['rows']['status'] == 'stopped' and p['rows']['steps']['norms']['status'] == 'stopped'
        and p['rows']['steps']['products']['status'] == 'passed' and p['bench']['status'] == 'waiting' and 'stopped' in h"
done
day 'the end of --total' 75 'not finished' --bundle "$bundle" --only rows --total 4
is 'state at the end of --total' "p['rows']['status'] == 'stopped' and not p['rows']['finished']"
rm -f "$work/hang.pid"
begins --only rows
day 'two at a time' 2 'another one is at work' --bundle "$bundle"
kill -9 "$background"
ends 'kill -9' 137
kill -9 "$(cat "$work/hang.pid")"
is 'state at kill -9' "p['rows']['steps']['norms']['status'] == 'running'"
rm "$work/norms.sh"
day 'on after kill -9' 0 '5 passed, 0 failed, 0 skipped, 0 unfinished' --bundle "$bundle"
called 'test_gpu_rows norms' 1
called 'test_gpu_rows products' 0

# --- a step that says itself that it is not finished
echo 'exit 75' >"$work/products.sh"
day 'exit 75 of a step' 75 '1 unfinished' --bundle "$bundle" --fresh --only rows
rm "$work/products.sh"

# --- a suite without its data ends well, and is not said to have passed
echo 'echo "test_gpu_a: SKIPPED: no data"; echo "test_gpu_a: 0 passed, 0 failed"; exit' >"$work/test_gpu_a.sh"
day 'no data' 0 'test_gpu_a: skipped' --bundle "$bundle" --fresh --only suites
is 'no data' "p['suites']['status'] == 'passed' and p['suites']['steps']['test_gpu_a']['status'] == 'skipped'"
rm "$work/test_gpu_a.sh"

# --- where nothing can run
mv "$work/tools/nvidia-smi" "$work/nvidia-smi"
day 'another machine' 2 'has the day of another machine: Pretend H100, driver 580.1, tests on cuda; here: no GPU' --bundle "$bundle"
for name in test_gpu_a test_gpu_b products norms bench_gpu; do
    echo "echo '$name: SKIPPED: no such device'; exit 77" >"$work/$name.sh"
done
mv "$work/tools/compute-sanitizer" "$work/compute-sanitizer"
day 'no GPU' 77 '0 passed, 0 failed, 5 skipped, 0 unfinished' --bundle "$bundle" --fresh
is 'no GPU' "s['verdict'] == 'nothing ran' and s['machine']['gpus'] == [] and 'nvidia-smi names no GPU' in h"
called bench_gpu 1 # the card's; no checkpoint is written for nothing
rm "$work"/*.sh
mv "$work/nvidia-smi" "$work/compute-sanitizer" "$work/tools/"

# --- from the bundle itself; from a tarball; from a repository that has none yet
rm -rf "$out"
program=$bundle/bin/gpu_day day 'in the bundle' 0 '1 passed' --only rows
TDGEN_TEST_ROWS=99 day 'fewer rows' 0 'every operation up to: 99' --bundle "$bundle" --fresh --only rows
echo 'echo more' >>"$bundle/libexec/bench_gpu"
day 'another bundle' 2 'has the day of another bundle' --bundle "$bundle" --fresh --only rows
rm -rf "$out"
mkdir -p "$work/repository/tools/lib"
cp "$root/tools/gpu_day" "$work/repository/tools/"
cp "$root"/tools/lib/gpu_day_*.py "$work/repository/tools/lib/"
script "$work/repository/tools/bundle" "mkdir -p '$work/repository/build'" \
    "tar -C '$work' -czf '$work/repository/build/tdgen-bundle-1.2.3.tar.gz' bundle"
program=$work/repository/tools/gpu_day day 'a repository without a bundle' 0 '1 passed' --only rows
called bundle 1
program=$work/repository/tools/gpu_day day 'the bundle is there' 0 'rows: passed before' --only rows
called bundle 0
day 'a tarball' 0 'rows: passed before' --bundle "$work/repository/build/tdgen-bundle-1.2.3.tar.gz" --only rows

# --- what is refused
day 'no such part' 2 "no part 'suits'" --only suits
day 'no such budget' 2 'budget' --budget suites
day 'no bundle' 2 'is no bundle' --bundle "$work/tools"
echo nothing >"$work/nothing.tar.gz"
day 'no tarball' 2 'is no bundle' --bundle "$work/nothing.tar.gz"
echo '{"schema": 1' >"$out/gpu_day.json"
day 'a broken state' 2 'not of this program' --bundle "$bundle"

printf '%s: %d passed, %d failed\n' "$(basename "$0")" "$passed" "$failed"
((failed == 0 && passed > 0))
