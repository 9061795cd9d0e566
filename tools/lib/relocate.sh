# shellcheck shell=bash
# relocate.sh - programs that bring their libraries along: what tools/bundle and tools/release share. To be
# sourced after setup.sh.
#
# A stage is a folder with libexec/ (the programs), lib/ and share/licences/. Programs look for libraries
# beside themselves first, whatever LD_LIBRARY_PATH says; glibc, the driver and CUDA's own stay the machine's.

# Copies into STAGE/lib every library that STAGE/libexec loads, and those that these load, with licences.
stage_libraries() { # STAGE
    local stage=$1 library path package file
    local -A packages=()
    mkdir -p "$stage"/lib "$stage"/share/licences
    while read -r library path; do
        case $library in
        libc.so.* | libm.so.* | libpthread.so.* | libdl.so.* | librt.so.* | libresolv.so.* | libutil.so.* | libanl.so.*) ;;
        libtd_gpu_shared.so) install -m 644 "$path" "$stage/lib/$library" ;;
        libcuda.so.* | libcudart.so.* | libcublas*.so.* | libnv*.so.*) ;;
        *)
            install -m 644 "$path" "$stage/lib/$library"
            package=$(dpkg-query -S "$(realpath "$path")" 2>/dev/null | head -n 1 | cut -d: -f1) || true
            [[ -n $package ]] && packages[$package]=1
            ;;
        esac
    done < <(ldd "$stage"/libexec/* | sed -n 's/^[[:space:]]*\([^ ]*\) => \(\/[^ ]*\) .*/\1 \2/p' | sort -u)
    if ldd "$stage"/libexec/* | grep 'not found' >&2; then
        say "the build itself lacks these libraries" >&2
        return 1
    fi
    for package in "${!packages[@]}"; do
        [[ -f /usr/share/doc/$package/copyright ]] && cp -L "/usr/share/doc/$package/copyright" "$stage/share/licences/$package"
    done
    # DT_RPATH, not RUNPATH: LD_LIBRARY_PATH of a cluster's modules must not put other versions before ours.
    strip --strip-unneeded "$stage"/lib/*
    strip --strip-debug "$stage"/libexec/*
    for file in "$stage"/libexec/*; do patchelf --force-rpath --set-rpath "\$ORIGIN/../lib" "$file"; done
    # shellcheck disable=SC2016 # the loader's word
    for file in "$stage"/lib/*; do patchelf --force-rpath --set-rpath '$ORIGIN' "$file"; done
}

# The oldest glibc that has every symbol of the stage: "2.36".
glibc_floor() { # STAGE
    objdump -T "$1"/libexec/* "$1"/lib/* 2>/dev/null | grep -o 'GLIBC_2\.[0-9]*' | sort -Vu | tail -n 1 | sed 's/GLIBC_//'
}

# STAGE/env.sh finds CUDA's libraries; a launcher in STAGE/bin sources it.
stage_environment() { # STAGE CUDA_MAJOR|""
    sed "s/@CUDA_MAJOR@/$2/" "$(dirname "${BASH_SOURCE[0]}")/bundle_env.sh" >"$1/env.sh"
}

stage_launcher() { # STAGE NAME COMMAND...
    mkdir -p "$1/bin"
    # shellcheck disable=SC2016 # for the launcher
    printf '%s\n' '#!/bin/sh' 'bundle=$(dirname -- "$(dirname -- "$(readlink -f -- "$0")")")' \
        '. "$bundle/env.sh"' "exec ${*:3} \"\$@\"" >"$1/bin/$2"
    chmod +x "$1/bin/$2"
}

# "0.1.0", and the major version of CUDA that a program was built with, or nothing.
program_version() { "$1" --version | sed -n 's/^tdgen \([^ ]*\) .*/\1/p'; }
program_cuda_major() { "$1" --version | sed -n 's/.*cuda-\([0-9]*\).*/\1/p'; }
