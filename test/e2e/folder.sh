#!/usr/bin/env bash
# What is not complete does not look complete, a finished run is not made twice, a killed one does not look
# alive, and a batch log can be read.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

config "$TMP/one.ini"
out=$TMP/one-out
run() { "$TDGEN" -c "$TMP/one.ini" "$@"; }
list() { find "$1" -type f -printf '%p %s %T@ %C@\n' | sort; }

# --- a new folder, a finished one
expect 0 "Output folder: +$out, new" run --dry-run
expect 0 'Done in' run
expect 0 'complete, 100% of 200 dataset rows \(7 of 7 shards\)' "$TDGEN" inspect "$out"
expect 0 '^OK: ' "$TDGEN" verify "$out"
expect 0 'state +done' "$TDGEN" status "$out"
expect 0 'is complete: 100% of 200 dataset rows .* would only check it' run --dry-run
list "$out" >"$TMP/before"
expect 0 'is already complete: 100% of 200 dataset rows.*every byte checked. Nothing was' run
expect 0 '' run --quiet
[ -s "$TMP/out" ] && fail "a quiet rerun speaks"
list "$out" >"$TMP/after"
check "a rerun of a finished job wrote something" cmp "$TMP/before" "$TMP/after"
python3 - "$out/run.json" <<'P' || fail "run.json does not have the execution"
import json, sys
h = json.load(open(sys.argv[1]))
(e,) = h["executions"]
assert e["exit_code"] == 0 and "-c" in e["command"] and e["ended"] and e["host"]
assert "Worker 0:" in e["report"] and "Done in" in e["report"] and "Memory" not in e["command"]
P

# --- an index that is to be repaired is repaired, though every shard is there
cp -r "$out" "$TMP/twice"
cat "$out/shards.jsonl" >>"$TMP/twice/shards.jsonl"
expect 8 'more than once' "$TDGEN" verify "$TMP/twice"
expect 0 'complete already: nothing was computed' run output.dir="$TMP/twice"
expect 0 '^OK: ' "$TDGEN" verify "$TMP/twice"
check "the index was not mended" cmp "$out/shards.jsonl" "$TMP/twice/shards.jsonl"

# --- damage is found by a rerun, and other weights too, though the folder is complete
cp -r "$out" "$TMP/hurt"
printf X | dd of="$TMP/hurt/shard-000002.safetensors" bs=1 seek=20000 conv=notrunc 2>/dev/null
expect 0 'computed again' run output.dir="$TMP/hurt"
same_shards "$out" "$TMP/hurt"
cp -r demo/teacher "$TMP/teacher"
expect 0 '' run model.path="$TMP/teacher" output.dir="$TMP/other"
python3 - "$TMP/teacher/model.safetensors" <<'P'
import os, sys
path = sys.argv[1]
at = os.stat(path)
with open(path, "r+b") as f:
    f.seek(-1000, 2)
    b = f.read(1)
    f.seek(-1000, 2)
    f.write(bytes([b[0] ^ 64]))
os.utime(path, ns=(at.st_atime_ns, at.st_mtime_ns))
P
expect 6 "teacher's weights" run model.path="$TMP/teacher" output.dir="$TMP/other"

# --- the last shards are gone, and their lines with them
cp -r "$out" "$TMP/short"
rm "$TMP/short"/shard-00000[56]*
sed -i '/"shard": [56],/d' "$TMP/short/shards.jsonl"
expect 10 'UNFINISHED: 80% of 200 dataset rows \(5 of 7 shards\); shard 5 is missing' "$TDGEN" verify "$TMP/short"
expect 0 'OK so far: ' "$TDGEN" verify --partial "$TMP/short"
expect 0 'NOT FINISHED, 80% of 200' "$TDGEN" inspect "$TMP/short"
check "state does not come first" [ "$(sed -n 2p "$TMP/out" | grep -c 'NOT FINISHED')" = 1 ]
expect 0 '"complete": false' "$TDGEN" inspect --json "$TMP/short"
expect 0 '' "$TDGEN" inspect --html "$TMP/page.html" "$TMP/short"
check "the page calls it complete" grep -q 'Not finished: 80% of 200' "$TMP/page.html"
expect 10 '' "$TDGEN" status "$TMP/short"
expect 0 'holds 80% of 200 .*the run continues it' run --dry-run output.dir="$TMP/short"
expect 0 '5 already there' run output.dir="$TMP/short"
same_shards "$out" "$TMP/short"
expect 0 '' "$TDGEN" verify "$TMP/short"

# --- a trial grows into the run
expect 0 '' run --quiet data.max_samples=40 output.dir="$TMP/trial"
expect 0 'complete, 100% of 40' "$TDGEN" inspect "$TMP/trial"
expect 0 'is already complete' run data.max_samples=40 output.dir="$TMP/trial"
expect 0 'did not come to the end of the dataset; the run continues it' run --dry-run output.dir="$TMP/trial"
expect 0 '' run --quiet output.dir="$TMP/trial"
expect 0 'complete, 100% of 200' "$TDGEN" inspect "$TMP/trial"
same_shards "$out" "$TMP/trial"

# --- workers: each knows its share, the merged folder the whole
for w in 0 1; do
    expect 0 '' run --quiet run.worker_id=$w run.total_workers=2 output.dir="$TMP/w$w"
done
expect 0 'complete, 100% of 104 dataset rows \(4 of 4' "$TDGEN" inspect "$TMP/w0"
expect 0 'complete, 100% of 96 dataset rows \(3 of 3' "$TDGEN" inspect "$TMP/w1"
expect 0 'is already complete' run run.worker_id=1 run.total_workers=2 output.dir="$TMP/w1"
expect 0 '' "$TDGEN" merge "$TMP/all" "$TMP/w0" "$TMP/w1"
expect 0 'complete, 100% of 200' "$TDGEN" inspect "$TMP/all"
rm "$TMP/w1/shard-000005.safetensors"
sed -i '/"shard": 5,/d' "$TMP/w1/shards.jsonl"
expect 10 '33|67% of 96' "$TDGEN" verify "$TMP/w1"

# --- other settings: named before a run, and --restart deletes nothing
expect 0 'REFUSED \(exit 6\).*top_k is 16 in the folder and 8 in this run.*--restart' run --dry-run capture.top_k=8
expect 6 'top_k is 16 .*--restart' run capture.top_k=8
expect 0 'Done in' run --restart capture.top_k=8 output.dir="$TMP/all"
old=$(echo "$TMP"/all.old-*)
expect 0 '^OK: ' "$TDGEN" verify "$old"
expect 0 '^OK: ' "$TDGEN" verify "$TMP/all"
mkdir "$TMP/mine" && echo precious >"$TMP/mine/thesis.tex"
expect 6 'is none \(it has no manifest.json\)' run --restart output.dir="$TMP/mine"
check "a folder of the user was moved" [ -s "$TMP/mine/thesis.tex" ]
expect 0 'Done in' run --restart output.dir="$TMP/fresh" data.max_samples=3

# --- samples left out: the rerun ends as the run did
head -n 20 demo/demo.jsonl >"$TMP/bad.jsonl"
echo 'no json' >>"$TMP/bad.jsonl"
expect 7 '' run --quiet data.path="$TMP/bad.jsonl" run.on_bad_sample=skip output.dir="$TMP/bad"
expect 7 'is already complete.*' run data.path="$TMP/bad.jsonl" run.on_bad_sample=skip output.dir="$TMP/bad"

# --- killed: it does not say "running" for ever
status_of() { # HOST: what is said of a copy of the folder whose process was last heard of an hour ago, there
    python3 - "$TMP/killed/status.json" "$1" <<'P'
import datetime, json, sys
s = json.load(open(sys.argv[1]))
assert s["state"] in ("running", "starting"), s["state"]
assert s["schema"] == 1 and s["boot_id"] and s["process_start"] > 0 and s["heartbeat_s"] == 10
s["updated"] = (datetime.datetime.utcnow() - datetime.timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
s["host"] = sys.argv[2] or s["host"]
json.dump(s, open(sys.argv[1], "w"))
P
}
"$TDGEN" -c "$TMP/one.ini" output.dir="$TMP/killed" devices.cpu_speeds=0.05 run.batch_tokens=512 run.progress_s=1 \
    run.metrics="$TMP/tdgen.prom" >"$TMP/batch.out" 2>"$TMP/batch.err" &
pid=$!
for _ in $(seq 600); do
    [ -s "$TMP/killed/shards.jsonl" ] && grep -q ' tokens/s' "$TMP/batch.err" && break
    sleep 0.05
done
expect 0 'state +running \(seen [0-9.]+m?s ago\)' "$TDGEN" status "$TMP/killed"
expect 0 'progress +[0-9]+%, .* samples' "$TDGEN" status "$TMP/killed"
expect 0 'REFUSED .*in use by another tdgen' run --dry-run output.dir="$TMP/killed"
kill -KILL "$pid"
wait "$pid" 2>/dev/null
status_of ''
expect 10 'state +DIED' "$TDGEN" status "$TMP/killed"
status_of elsewhere
expect 10 'NO SIGN OF LIFE for 1h' "$TDGEN" status --watch "$TMP/killed"
expect 10 '"seen": "no sign of life"' "$TDGEN" status --json "$TMP/killed"
expect 6 'no output folder' "$TDGEN" status "$TMP"
expect 10 'did not come to the end of the dataset' "$TDGEN" verify "$TMP/killed"
expect 0 '' run --quiet output.dir="$TMP/killed"
same_shards "$out" "$TMP/killed"

# --- the batch log: progress with the time of day; the metrics: Prometheus' text format
check "no line of progress in the batch log" grep -qE '^20[0-9-]+T[0-9:]+Z \[ *[0-9]+%\] .* tokens/s' "$TMP/batch.err"
check "a line without the time of day" [ "$(grep -vcE '^20[0-9-]+T[0-9:]+Z ' "$TMP/batch.err")" = 0 ]
expect 0 '' run output.dir="$TMP/silent" run.progress_s=0
check "progress though progress_s is 0" [ "$(grep -cE '\[ *[0-9]+%\]' "$TMP/out")" = 0 ]
check "no metrics" grep -q '^tdgen_tokens_total{dir=".*killed",worker="0"} [0-9]' "$TMP/tdgen.prom"
check "not the text format of Prometheus" [ "$(grep -vcE \
    '^(# (HELP|TYPE) [a-z_]+ .+|[a-z_]+\{([a-z]+="[^"]*",?)+\} -?[0-9.e+]+)$' "$TMP/tdgen.prom")" = 0 ]
expect 0 'run.metrics: .*nowhere' run output.dir="$TMP/nometrics" run.metrics="$TMP/nowhere/x.prom"
finish
