#!/usr/bin/env bash
# tools/lib/run_suites.sh with stand-ins for the suites and for compute-sanitizer: what is counted as
# passed, failed and skipped.

# shellcheck source=test/tools/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
mkdir -p "$work"/{bin,source}
export TD_SOURCE_DIR=$work/source TDGEN_LOGS=$work/logs

# program NAME STATUS LINE...
program() {
    local name=$1 status=$2
    shift 2
    {
        printf '#!/bin/sh\n# %s\n' "${uses:-TDGEN_TEST_DEVICE}"
        printf "echo '%s'\n" "$@"
        printf 'exit %d\n' "$status"
    } >"$work/bin/$name"
    chmod +x "$work/bin/$name"
}

# runs STATUS "LAST LINE" "PART OF THE OUTPUT" ARGUMENT...
runs() {
    local expected=$1 last=$2 part=$3 out rc
    shift 3
    out=$(PATH=$work/tools:$PATH "$root/tools/lib/run_suites.sh" --programs "$work/bin" "$@" 2>&1 </dev/null)
    rc=$?
    if [[ $rc == "$expected" && $(tail -n 1 <<<"$out") == "$last" && $out == *"$part"* ]]; then
        verdict ok
    else
        verdict no "exit $rc instead of $expected, or no \"$part\", or the end is not \"$last\"" "$out"
    fi
}

# A suite may know of the CUDA-on-CPU layer (test_gpu_gemm's tolerance) without being linked with it.
uses='TDGEN_TEST_DEVICE TDGEN_PRETEND_GPUS' program test_gpu_good 0 'test_gpu_good: 7 passed, 0 failed'
runs 0 '1 passed, 0 failed, 1 skipped' '7 cases passed, 0 failed'
uses='TDGEN_TEST_DEVICE TDGEN_PRETEND_SEED' program test_gpu_good_pretend 1 'FAILED: not of a card'
uses=nothing program test_gpu_host 1 'FAILED: not of a card'
program test_gpu_none 77 'test_gpu_none: SKIPPED: no such device; NOTHING was tested'
runs 0 '1 passed, 0 failed, 2 skipped' 'SKIPPED: test_gpu_none: no such device'
runs 77 '0 passed, 0 failed, 2 skipped' '' --only none --only end-to-end
program test_gpu_bad 1 'FAILED: embed' 'test_gpu_bad: 3 passed, 2 failed'
runs 1 '1 passed, 1 failed, 2 skipped' '10 cases passed, 2 failed'
program test_gpu_bad 139 'no last line'
runs 1 '1 passed, 1 failed, 2 skipped' 'test_gpu_bad                       FAILED with 139'
rm "$work"/bin/test_gpu_{bad,none}
program test_session 0 '[====] Synthesis: Tested: 9 | Passing: 9 | Failing: 0 | Crashing: 0'
runs 0 '2 passed, 0 failed, 1 skipped' '16 cases passed, 0 failed'
runs 2 'run_suites.sh: unknown argument --everything' '' --everything
program test_session_modes 0 '[====] Synthesis: Tested: 5 | Passing: 5 | Failing: 0 | Crashing: 0'
program test_device_modes 0 'test_device_modes: 6 passed, 0 failed'
runs 0 '4 passed, 0 failed, 1 skipped' '27 cases passed, 0 failed'
runs 0 '1 passed, 0 failed, 1 skipped' '9 cases passed, 0 failed' --only =test_session
rm -rf "$work/logs"
runs 0 test_session_modes $'test_gpu_good\ntest_device_modes\ntest_session' --list --tdgen none
[[ ! -e $work/logs ]] || { echo 'FAILED: --list made a folder of logs'; failed=$((failed + 1)); }
rm "$work"/bin/test_{session,session_modes,device_modes}

# The tool: fails when it finds something, and when it says nothing at all.
mkdir "$work/tools"
sanitizer() { # STATUS LINE...
    program ../tools/compute-sanitizer "$@"
}
sanitizer 0 '========= ERROR SUMMARY: 0 errors'
runs 0 '3 passed, 0 failed, 0 skipped' 'racecheck_test_gpu_good' --sanitizer-only 20
sanitizer 86 '========= Invalid __global__ read of size 4 bytes' '========= ERROR SUMMARY: 1 error'
runs 1 '0 passed, 3 failed, 0 skipped' 'Invalid __global__ read' --sanitizer-only 20
sanitizer 0 'nothing'
runs 1 '0 passed, 3 failed, 0 skipped' 'no summary of the tool' --sanitizer-only 20

finish
