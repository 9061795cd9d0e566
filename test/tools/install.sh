#!/usr/bin/env bash
# cmake --install, as those use it who build against libtdgen, read the manual, and complete at the shell.
# Environment: BUILD, the folder of the build.
set -u
: "${BUILD:?the folder of the build}"
# shellcheck source=test/tools/lib.sh
. "$(dirname "$0")/lib.sh"
cd "$root" || exit 1
tmp=$work
source=$root
prefix=$tmp/usr
# check NAME COMMAND... : the command must succeed.
check() {
    local name=$1 out
    shift
    if out=$("$@" 2>&1); then verdict ok "$name" ''; else verdict no "$name" "$out"; fi
}
check "cmake --install" cmake --install "$BUILD" --prefix "$prefix"
check "the program runs from there" "$prefix/bin/tdgen" --version
for file in share/man/man1/tdgen.1 share/man/man5/tdgen.ini.5 share/bash-completion/completions/tdgen \
    share/zsh/site-functions/_tdgen share/doc/tdgen/LICENSE share/doc/tdgen/conf/run.ini share/doc/tdgen/docs/data.md; do
    check "$file is not there" [ -s "$prefix/$file" ]
done

# The manual says what the program says: every key, every option.
"$prefix/bin/tdgen" --keys | sed -n 's/^  \([a-z]*\.[a-z_0-9]*\) (.*/\1/p' >"$tmp/keys"
check "keys were listed" [ "$(wc -l <"$tmp/keys")" -gt 40 ]
while read -r key; do
    check "tdgen.ini(5) does not have $key" grep -qF "$key" "$prefix/share/man/man5/tdgen.ini.5"
done <"$tmp/keys"
for word in 'dry\-run' 'tdgen status' 'exit codes'; do
    check "tdgen(1) does not have $word" grep -qF -- "$word" "$prefix/share/man/man1/tdgen.1"
done

# A program of somebody else's, by pkg-config and by CMake, against the installed library alone.
lib=$(dirname "$(find "$prefix" -name tdgen.pc)")
if [ -d "$lib" ]; then
    flags=$(PKG_CONFIG_PATH=$lib pkg-config --cflags --libs tdgen)
    # The prefix was chosen at the installation, not when the build was configured.
    flags=${flags//$(sed -n 's/^prefix=//p' "$lib/tdgen.pc")/$prefix}
    # shellcheck disable=SC2086 # several flags
    check "pkg-config" cc -o "$tmp/score" "$prefix/share/doc/tdgen/examples/score.c" $flags
    library=$(dirname "$(find "$prefix" -name 'libtdgen.so')")
    check "the program of pkg-config" env LD_LIBRARY_PATH="$library" "$tmp/score" "$source/demo/teacher" cpu 0 1753 623
    mkdir "$tmp/user"
    cat >"$tmp/user/CMakeLists.txt" <<'C'
cmake_minimum_required(VERSION 3.20)
project(user C)
find_package(tdgen 0.1 REQUIRED)
add_executable(score score.c)
target_link_libraries(score tdgen::tdgen)
C
    cp "$prefix/share/doc/tdgen/examples/score.c" "$tmp/user/"
    check "find_package(tdgen)" cmake -S "$tmp/user" -B "$tmp/user/build" -DCMAKE_PREFIX_PATH="$prefix"
    check "a build with tdgen::tdgen" cmake --build "$tmp/user/build"
    check "the program of CMake" "$tmp/user/build/score" "$source/demo/teacher" cpu 0 1753 623
fi

# What bash completes, as readline would ask.
completes() { # WORD... : the completions of the last word
    PATH=$prefix/bin:$PATH bash -c '. "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
        compopt() { :; }; _tdgen; printf "%s\n" "${COMPREPLY[@]}"' - "$prefix/share/bash-completion/completions/tdgen" "$@"
}
check "a command" grep -qx status <<<"$(completes tdgen sta)"
check "an option of a command" grep -qx -- --partial <<<"$(completes tdgen verify --par)"
check "a setting" grep -qx capture.top_k= <<<"$(completes tdgen run.ini capture.top_)"
check "an option of a run" grep -qx -- --dry-run <<<"$(completes tdgen run.ini --dry)"
finish
