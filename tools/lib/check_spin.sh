#!/usr/bin/env bash
# Checks the Spin model of the work queue exhaustively, and that the model can fail: every rule that a
# BUG_ switch of the model breaks must make an error. About a minute and 1.2 GB.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
model=$PWD/test/spin/queue.pml
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"

verify() { # [SPIN ARGUMENT...]: prints Spin's report
    rm -f pan pan.?
    spin -a "$@" "$model" >spin.log || cat spin.log >&2
    # -w: no stringop warnings about code that Spin wrote
    cc -w -O2 -DSAFETY -DCOLLAPSE -DMEMLIM=4000 -o pan pan.c
    ./pan -m400000
}

verify >report
grep -E 'errors:|states, stored' report
grep -q 'errors: 0' report
if grep -qE 'max search depth too small|out of memory|Search not completed' report; then
    echo "the search was not complete" >&2
    exit 1
fi

mapfile -t bugs < <(grep -oE '^#ifn?def BUG_[A-Z_]+' "$model" | cut -d' ' -f2 | sort -u)
if ((${#bugs[@]} < 6)); then
    echo "the model has lost its planted bugs" >&2
    exit 1
fi
for bug in "${bugs[@]}"; do
    verify "-D$bug" >report || true
    if ! grep -qE 'errors: [1-9]' report; then
        echo "the model does not notice $bug" >&2
        exit 1
    fi
    printf '%s: found (%s)\n' "$bug" "$(grep -m1 -oE 'assertion violated|invalid end state' report || echo error)"
done
