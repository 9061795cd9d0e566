#!/usr/bin/env bash
# Checks the Spin model of the work queue exhaustively, and that the model can fail: without the
# second look at the owner's epoch in td_queue_claim an item must get lost.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
model=$PWD/test/spin/queue.pml
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"

verify() { # FILE: prints Spin's report
    spin -a "$1" >/dev/null
    cc -O2 -DSAFETY -DCOLLAPSE -DMEMLIM=4000 -o pan pan.c
    ./pan -m200000
}

cp "$model" queue.pml
verify queue.pml >report
grep -E 'errors:|states, stored' report
grep -q 'errors: 0' report
if grep -qE 'max search depth too small|out of memory|Search not completed' report; then
    echo "the search was not complete" >&2
    exit 1
fi

sed 's/:: retired\[me\] -> give_back(me, n, 0, ok).*/:: false -> skip/' "$model" >broken.pml
if cmp -s broken.pml "$model"; then
    echo "the mutation does not apply any more" >&2
    exit 1
fi
verify broken.pml >report || true
if grep -q 'errors: 0' report; then
    echo "the model does not notice a lost item" >&2
    exit 1
fi
echo "the mutated model fails as it must"
