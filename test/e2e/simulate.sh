#!/usr/bin/env bash
# tdgen --simulate: what it prints, its last line, the same for the same seed, and what it refuses.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

cat >"$TMP/job.ini" <<INI
[model]
path = test/fixtures/configs/llama-8b
[data]
path = none
max_length = 8192
[devices]
inventory = conf/inventory/4xa100-4xv100.ini
[output]
dir = $TMP/none
[simulate]
lengths = lognormal:512:1:8192
n_samples = 5000
INI
sim() { "$TDGEN" -c "$TMP/job.ini" --simulate "$@"; }
refuse() { expect "$1" "$2" "$TDGEN" -c "$TMP/job.ini" --simulate "${@:3}"; }

# config.json is all that is there of the teacher, and there is no dataset.
expect 0 '^Predicted wall time: .* ideal ' sim
expect 0 'group 7 .*V100-32GB .*of the tokens +busy [0-9.]+%' sim
expect 0 '^  group 7 +\|[#+.]+' sim
last=$(sim | tail -n 1)
check "last line: $last" grep -qE '^makespan_over_ideal=[0-9.]+ static_over_ideal=[0-9.]+$' <<<"$last"
# shellcheck disable=SC2016 # awk's own $
check "static is worse: $last" awk -F '[ =]' '{ exit !($2 < $4) }' <<<"$last"
check 'a folder was made' test ! -e "$TMP/none"

expect 0 'Left over: no group uses GPUs 6,7' sim devices.gpus_per_model=3

sim simulate.seed=7 simulate.failures=2 >"$TMP/a"
sim simulate.seed=7 simulate.failures=2 >"$TMP/b"
check 'the same seed, another output' cmp "$TMP/a" "$TMP/b"
sim simulate.seed=8 simulate.failures=2 >"$TMP/b"
check 'another seed, the same output' sh -c "! cmp -s '$TMP/a' '$TMP/b'"
check 'failures are told' grep -q 'failed at' "$TMP/a"
# shellcheck disable=SC2016 # awk's own $
check 'nothing is lost' awk '/of the tokens/ { for (i = 1; i < NF; i++) if ($(i + 1) == "of") sum += $i }
    END { exit !(sum > 99.5 && sum < 100.5) }' "$TMP/a"

expect 0 '' sim --timeline "$TMP/line.svg"
check 'the picture' grep -q '</svg>' "$TMP/line.svg"

# The lengths of a real dataset.
config "$TMP/demo.ini"
expect 0 'lengths of demo/demo.jsonl' "$TDGEN" -c "$TMP/demo.ini" --simulate devices.gpus='cpu*2'

refuse 2 'lengths.*lognormal:MEDIAN' simulate.lengths=normal:5
refuse 2 'MAX is a whole number from MEDIAN' simulate.lengths=lognormal:512:1:100
refuse 2 'SIGMA' simulate.lengths=lognormal:512:x:8192
refuse 2 'max_length = 2048.*8192' data.max_length=2048
refuse 2 'noise' simulate.noise=1.5
refuse 2 'failures = 8.*8 groups' simulate.failures=8
refuse 2 'nothing to simulate: no sample has two tokens' simulate.lengths=fixed:1
refuse 2 'no shard for worker 9 of 10' run.total_workers=10 run.worker_id=9
refuse 6 '--timeline' --timeline "$TMP/nowhere/x.svg"
expect 2 '--timeline needs' "$TDGEN" -c "$TMP/job.ini" --simulate --timeline
expect 2 'goes with --simulate' "$TDGEN" -c "$TMP/job.ini" --dry-run --timeline "$TMP/x.svg"
grep -v '^lengths\|^n_samples' "$TMP/job.ini" >"$TMP/bare.ini"
expect 4 'dataset none is not there.*simulate.lengths=' "$TDGEN" -c "$TMP/bare.ini" --simulate
expect 2 'n_samples.*needs \[simulate\] lengths' "$TDGEN" -c "$TMP/bare.ini" --simulate simulate.n_samples=5
expect 2 'needs \[simulate\] n_samples' "$TDGEN" -c "$TMP/bare.ini" --simulate simulate.lengths=fixed:9

finish
