#!/usr/bin/env bash
# symbols.sh LIBTDGEN [STATIC_LIBRARY...] - what libtdgen.so exports and what it asks of the system.
# What it asks because of the static libraries named is their business.
set -euo pipefail
library=$1
shift
failed=0

exported=$(nm -D --defined-only "$library" | awk '{ sub(/@.*/, "", $3); print $3 }')
if strangers=$(grep -v '^tdgen_' <<<"$exported"); then
    printf 'exported, but no name of the API:\n%s\n' "$strangers"
    failed=1
fi
# Every function of the headers, and so at least one, is there.
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
declared=$(cat include/tdgen/*.h | grep -oE '\btdgen_[a-z_]+\(' | tr -d '(' | sort -u)
missing=$(comm -23 <(printf '%s\n' "$declared") <(sort -u <<<"$exported"))
if [[ -z $declared || -n $missing ]]; then
    printf 'declared, but not exported: %s\n' "$missing"
    failed=1
fi
if extra=$(comm -13 <(printf '%s\n' "$declared") <(sort -u <<<"$exported")) && [[ -n $extra ]]; then
    printf 'exported, but not declared: %s\n' "$extra"
    failed=1
fi

# Nothing that ends the process, takes its signals, its allocator or its environment.
forbidden='^(_?exit|_Exit|quick_exit|abort|atexit|on_exit|__cxa_atexit|raise|kill|signal|sigaction|sigprocmask|pthread_sigmask|sigaltstack|mallopt|__malloc_hook|fork|vfork|exec[vl]p?e?|system|setenv|unsetenv|putenv|setlocale|chdir|umask)$'
wanted() { nm --undefined-only "$@" 2>/dev/null | awk '{ sub(/@.*/, "", $NF); print $NF }' | sort -u; }
theirs=
(($#)) && theirs=$(wanted "$@")
asked=$(comm -23 <(wanted -D "$library") <(printf '%s\n' "$theirs"))
if [[ $(grep -c . <<<"$asked") -lt 20 ]]; then
    echo "nm tells hardly any symbol that $library asks for"
    failed=1
fi
if bad=$(grep -E "$forbidden" <<<"$asked"); then
    printf 'a library must not call:\n%s\n' "$bad"
    failed=1
fi
exit "$failed"
