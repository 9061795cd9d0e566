# shellcheck shell=bash
# cu12.sh - what check_nvrtc.sh and check_cu12.sh share: CUDA 12 from PyPI in build/venv-cu12 (headers of the
# runtime and of cuBLAS, and NVRTC; PyPI has no nvcc driver). To be sourced, with the repository as
# working directory. Made once, kept while the requirements stay the same.

# shellcheck disable=SC2034 # for the scripts that source this file
cu12_python=$PWD/build/venv-cu12/bin/python

# Exit 77 of the calling script where PyPI cannot be reached: tools/check counts that as skipped.
cu12_or_skip() { # WHAT IS NOT CHECKED THEN
    local venv=build/venv-cu12 stamp
    stamp=$venv/.made-$(cat tools/lib/cu12-requirements.txt tools/lib/cu12.sh | cksum | cut -d' ' -f1)
    [[ -f $stamp ]] && return 0
    rm -rf "$venv"
    mkdir -p build
    if ! python3 -m venv "$venv" ||
        ! "$venv/bin/pip" install -q --no-deps --no-cache-dir --disable-pip-version-check --timeout 20 \
            --retries 1 -r tools/lib/cu12-requirements.txt; then
        echo "SKIPPED: no CUDA 12 packages (is PyPI reachable?): $1"
        exit 77
    fi
    # 800 MB that nothing here loads.
    rm -rf "$venv"/lib/python3*/site-packages/nvidia/cublas/lib
    touch "$stamp"
}

cu12_site() {
    echo build/venv-cu12/lib/python3*/site-packages/nvidia
}
