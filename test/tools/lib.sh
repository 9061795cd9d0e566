# lib.sh - what the tests of the scripts share: $root is the repository, $work a folder of their own.
# shellcheck shell=bash
set -uo pipefail
# shellcheck disable=SC2034 # for the scripts
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
work=$(mktemp -d /tmp/tdgen-tools-XXXXXX)
trap 'rm -rf "$work"' EXIT
failed=0
passed=0

# verdict ok|no NAME DETAIL
verdict() {
    if [[ $1 == ok ]]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        printf 'FAILED: %s\n%s\n' "$2" "$3"
    fi
}

# The last line of a script, and its exit code.
finish() {
    printf '%s: %d passed, %d failed\n' "$(basename "$0")" "$passed" "$failed"
    ((failed == 0 && passed > 0))
    exit
}
