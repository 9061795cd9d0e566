# lib.sh - what the end-to-end scripts share. Each runs the real program on the demo teacher.
# Environment: TDGEN (the program), TD_SOURCE_DIR (the repository); TDGEN_TEST_BRIEF=1: fewer variants.
# shellcheck shell=bash
set -u
: "${TDGEN:?path of the program}" "${TD_SOURCE_DIR:?path of the repository}"
cd "$TD_SOURCE_DIR" || exit 1
TMP=$(mktemp -d) || exit 1
trap 'rm -rf "$TMP"' EXIT
n_passed=0
n_failed=0

pass() { n_passed=$((n_passed + 1)); }
fail() {
    n_failed=$((n_failed + 1))
    printf 'FAILED: %s\n' "$*" >&2
}
# check MESSAGE COMMAND... : the command must succeed.
check() {
    local message=$1
    shift
    if "$@" >/dev/null 2>&1; then pass; else fail "$message"; fi
}
finish() {
    printf '%s: %d passed, %d failed\n' "$(basename "$0")" "$n_passed" "$n_failed"
    [ "$n_failed" -eq 0 ] && [ "$n_passed" -gt 0 ]
    exit
}

# expect CODE PATTERN COMMAND... : the exit code, and an extended regular expression that the output
# (stdout and stderr) must contain. PATTERN '' asks for nothing.
expect() {
    local code=$1 pattern=$2 got
    shift 2
    "$@" >"$TMP/out" 2>&1 </dev/null
    got=$?
    if [ "$got" -ne "$code" ]; then
        fail "exit $got instead of $code: $*"
        sed 's/^/    /' "$TMP/out" | head -20 >&2
    elif [ -n "$pattern" ] && ! grep -qE -- "$pattern" "$TMP/out"; then
        fail "no \"$pattern\" in the output of: $*"
        sed 's/^/    /' "$TMP/out" | head -20 >&2
    else
        pass
    fi
}

# config FILE [line...]: a run of the demo teacher over the demo text into $TMP/out-<name>.
config() {
    local file=$1
    shift
    {
        printf '[model]\npath = demo/teacher\n'
        printf '[data]\npath = demo/demo.jsonl\nmax_length = 256\n'
        printf '[devices]\ngpus = cpu\n'
        printf '[capture]\ntop_k = 16\n'
        printf '[output]\ndir = %s\nshard_samples = 32\n' "${file%.ini}-out"
        printf '[run]\nbatch_tokens = 2048\n'
        [ $# -gt 0 ] && printf '%s\n' "$@"
    } >"$file"
}

# same_shards A B: the same shard files, byte for byte.
same_shards() {
    local a=$1 b=$2 f n=0
    for f in "$a"/shard-*.safetensors; do
        if ! cmp -s "$f" "$b/$(basename "$f")"; then
            fail "$(basename "$f") differs between $a and $b"
            return 1
        fi
        n=$((n + 1))
    done
    if [ "$n" -eq 0 ] || [ "$n" -ne "$(find "$b" -name 'shard-*.safetensors' | wc -l)" ]; then
        fail "$a has $n shards, $b has another number"
        return 1
    fi
    pass
}
