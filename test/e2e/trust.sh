#!/usr/bin/env bash
# What makes a record one that others can trust: merging workers' folders, computing samples again.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

config "$TMP/one.ini"
expect 0 'Truncation: the .at most. 16 candidates cover' "$TDGEN" -c "$TMP/one.ini"
check "no truncation report in status.json" grep -q '"mean_kl"' "$TMP/one-out/status.json"
# A set cut at top_p truncates, too: what its rows leave out, from the run and from the shards of an earlier one.
expect 0 'Truncation: .* cover 7[0-9.]+% of the probability' "$TDGEN" -c "$TMP/one.ini" output.dir="$TMP/topp" \
    capture.mode=topp capture.top_p=0.7 capture.top_k=1024
rm "$TMP/topp/shard-000003.safetensors"
expect 0 'in shards that were there already' "$TDGEN" -c "$TMP/one.ini" output.dir="$TMP/topp" \
    capture.mode=topp capture.top_p=0.7 capture.top_k=1024
check "smaller k were reported of a mode that has no k" grep -q '"smaller_k": *\[\]' "$TMP/topp/status.json"
for w in 0 1 2; do
    expect 0 'Done in' "$TDGEN" -c "$TMP/one.ini" output.dir="$TMP/w$w" run.worker_id=$w \
        run.total_workers=3
done

# --- merge: the bytes of one worker, whatever the order of the folders
expect 0 '7 linked, 0 copied' "$TDGEN" merge "$TMP/all" "$TMP/w2" "$TMP/w0" "$TMP/w1"
same_shards "$TMP/one-out" "$TMP/all"
check "manifest of the merge" cmp "$TMP/one-out/manifest.json" "$TMP/all/manifest.json"
check "index of the merge" cmp "$TMP/one-out/shards.jsonl" "$TMP/all/shards.jsonl"
expect 0 '^OK' "$TDGEN" verify "$TMP/all"
expect 0 'all of it was there already' "$TDGEN" merge "$TMP/all" "$TMP/w0" "$TMP/w1" "$TMP/w2"
expect 0 '0 written, 7 already there' "$TDGEN" -c "$TMP/one.ini" output.dir="$TMP/all"
# The last shard is worker 0's: without it nothing but status.json tells that one is missing.
expect 6 'shards? 0 is in none' "$TDGEN" merge "$TMP/gap" "$TMP/w1" "$TMP/w2"
expect 6 'shard 0 is both in' "$TDGEN" merge "$TMP/gap" "$TMP/w0" "$TMP/one-out"
expect 0 'Done in' "$TDGEN" -c "$TMP/one.ini" output.dir="$TMP/k8" capture.top_k=8 run.worker_id=1 \
    run.total_workers=3
expect 6 'capture.top_k is 16 in .*w0 and 8 in .*k8' "$TDGEN" merge "$TMP/gap" "$TMP/w0" "$TMP/k8"
expect 2 'needs a new folder' "$TDGEN" merge "$TMP/gap"
expect 2 'did you mean "--copy"' "$TDGEN" merge --cpy "$TMP/gap" "$TMP/w0"
check "a refused merge wrote something" [ ! -e "$TMP/gap" ]

# Killed while copying, then the same command: complete.

for round in 1 2 3 4 5 6; do
    rm -rf "$TMP/killed"
    "$TDGEN" merge --copy "$TMP/killed" "$TMP/w0" "$TMP/w1" "$TMP/w2" >/dev/null 2>&1 &
    pid=$!
    for _ in $(seq 2000); do
        [ "$(find "$TMP/killed" -name 'shard-*' 2>/dev/null | wc -l)" -ge "$round" ] && break
        [ -d "/proc/$pid" ] || break
    done
    kill -9 "$pid" 2>/dev/null
    wait "$pid" 2>/dev/null
    if [ -e "$TMP/killed/merge.json" ]; then
        expect 6 'half a merge' "$TDGEN" verify "$TMP/killed"
    fi
    expect 0 '' "$TDGEN" merge --copy "$TMP/killed" "$TMP/w0" "$TMP/w1" "$TMP/w2"
    same_shards "$TMP/one-out" "$TMP/killed"
    check "files left by a killed merge" [ -z "$(find "$TMP/killed" -name '*.tmp*' -o -name merge.json)" ]
done
for w in 0 1 2; do
    expect 0 '^OK' "$TDGEN" verify "$TMP/w$w"
done

# --- verify --against: nothing differs on the device kind that recorded it, however it was scheduled
expect 0 'same device kind, 12 samples: 0 of [0-9]+ positions differ' "$TDGEN" verify "$TMP/one-out" \
    --against demo/teacher --samples 12 --devices cpu
expect 0 'control .*: 0 of [0-9]+ positions differ' "$TDGEN" verify "$TMP/all" --against demo/teacher \
    --seed 7 --devices cpu
expect 0 'Done in' "$TDGEN" -c "$TMP/one.ini" output.dir="$TMP/two" devices.gpus='cpu*2' \
    devices.gpus_per_model=2 run.batch_tokens=700 'capture.temperatures=2, 0.5' data.max_samples=50 \
    capture.logprob_dtype=f32 data.overflow=split data.max_length=40
expect 0 'same device kind, .* 0 of [0-9]+ positions differ' "$TDGEN" verify "$TMP/two" \
    --against demo/teacher --samples 300 --devices cpu
# Every mode and way of storing.
for mode in topk "topk capture.logprob_dtype=q8 capture.pack_ids=true capture.always_ids=1,2" topp \
    "sample capture.proposal_power=0.5 output.zstd=true" topk+sample full hidden; do
    rm -rf "$TMP/mode"
    # shellcheck disable=SC2086 # several arguments
    expect 0 'Done in' "$TDGEN" -c "$TMP/one.ini" output.dir="$TMP/mode" data.max_samples=12 \
        run.seed=3 capture.mode=$mode
    expect 0 'same device kind, .* 0 of [0-9]+ positions differ' "$TDGEN" verify "$TMP/mode" \
        --against demo/teacher --devices cpu
done

# Another device kind: here the CPU with other kernels of oneDNN, whose name the kind carries.
expect 0 'Done in' "$TDGEN" -c "$TMP/one.ini" output.dir="$TMP/f32" model.compute=f32 devices.gpus=cpu
expect 0 'another device kind .* may differ by 0.002' env ONEDNN_MAX_CPU_ISA=SSE41 "$TDGEN" verify \
    "$TMP/f32" --against demo/teacher --devices cpu

# The wrong teacher or tokenizer is an error that shows both sides.
for part in config.json tokenizer.json model.safetensors; do
    rm -rf "$TMP/teacher"
    cp -r demo/teacher "$TMP/teacher"
    case $part in
    *.json) printf '\n' >>"$TMP/teacher/$part" ;;
    *) # a bit of the last weight
        size=$(stat -c %s "$TMP/teacher/$part")
        printf '\001' | dd of="$TMP/teacher/$part" bs=1 seek=$((size - 3)) conv=notrunc 2>/dev/null ;;
    esac
    expect 3 'is not the teacher that .* was made with: .* is [0-9a-f]{16} in the folder and [0-9a-f]{16} in the model' \
        "$TDGEN" verify "$TMP/one-out" --against "$TMP/teacher" --devices cpu
done
# So it is for a run that goes on.
for part in config.json tokenizer.json model.safetensors; do
    rm -rf "$TMP/teacher"
    cp -r demo/teacher "$TMP/teacher"
    case $part in
    *.json) printf '\n' >>"$TMP/teacher/$part" ;;
    *) printf '\001' | dd of="$TMP/teacher/$part" bs=1 seek=$((size - 3)) conv=notrunc 2>/dev/null ;;
    esac
    expect 6 'is "[0-9a-f]{16}" in the folder and "[0-9a-f]{16}" in this run' \
        "$TDGEN" -c "$TMP/one.ini" model.path="$TMP/teacher"
done
cp demo/demo.jsonl "$TMP/data.jsonl"
echo '{"id": "more", "text": "One more."}' >>"$TMP/data.jsonl"
expect 6 'data.size_bytes .* in the folder and .* in this run' "$TDGEN" -c "$TMP/one.ini" \
    data.path="$TMP/data.jsonl"
expect 6 'capture.top_k is 16 in the folder and 8 in this run' "$TDGEN" -c "$TMP/one.ini" capture.top_k=8
expect 2 'goes with --against' "$TDGEN" verify "$TMP/one-out" --samples 3
expect 2 'expected auto, cpu' "$TDGEN" verify "$TMP/one-out" --against demo/teacher --devices gpu

# --- inspect: JSON for programs, and a page that hostile texts cannot break out of
hostile=$'out<img src=x onerror=alert(1)>&"\xe2\x80\xae'"'"
python3 - "$TMP/hostile.jsonl" <<'P'
import json, sys
rows = ['</script><script>alert(1)</script><img src=x onerror=alert(2)> & "quotes" \'s <!-- end',
        'right to left \u202e turned \u2067 isolated \u200f mark \u05e2\u05d1\u05e8\u05d9\u05ea back',
        'bell \u0007 escape \u001b[31m line \u2028 feed \r\n tab \t nul \u0000 done']
with open(sys.argv[1], "w") as f:
    for i in range(12):
        f.write(json.dumps({"id": "<b>" + str(i), "text": rows[i % 3]}) + "\n")
P
config "$TMP/hostile.ini"
expect 0 'Done in' "$TDGEN" -c "$TMP/hostile.ini" output.dir="$TMP/$hostile" data.path="$TMP/hostile.jsonl" \
    output.shard_samples=4 devices.gpus='cpu*2' devices.gpus_per_model=1
check "no timeline" grep -q '"segments":\[\[' "$TMP/$hostile/timeline.jsonl"
printf '%s\n' '{"started": 1, "worker_id": 0, "groups": [{"group": 0, "devices": "<script>x</script>", "kind": "\"><i>", "segments": [[0, 1, 0, 0, 1, "x"], [1, 1e300, 0]]}]}' \
    'no JSON' >>"$TMP/$hostile/timeline.jsonl"
expect 0 'open it in a browser' "$TDGEN" inspect "$TMP/$hostile" --html "$TMP/page.html" --samples 12
check "tags or links in the page" sh -c "! grep -qE '<script|<img|<i>|<b>|href=|https?:' '$TMP/page.html'"
check "direction marks in the page" sh -c "! LC_ALL=C grep -qP '\xe2\x80[\x8e\x8f\xa8-\xae]|\xe2\x81[\xa6-\xa9]|[\x00-\x08\x1b]' '$TMP/page.html'"
check "direction marks are not shown" grep -q 'u202E' "$TMP/page.html"
check "not every token is isolated" grep -q 'unicode-bidi:isolate' "$TMP/page.html"
expect 0 '"schema": "tdgen-inspect-1"' "$TDGEN" inspect "$TMP/$hostile" --json
cp "$TMP/out" "$TMP/one.json"
check "inspect --json is no JSON, or its numbers contradict each other" python3 - "$TMP/one.json" <<'P'
import json, math, sys
d = json.load(open(sys.argv[1]))
s = d["sample"]
assert d["shards"] == 3 and d["samples"] == 12 and s["number"] == 0 and s["rows_left_out"] == 0
assert len(s["rows"]) == len(s["tokens"]) - 1
for r in s["rows"]:
    assert r["target"]["id"] == s["tokens"][r["position"] + 1]["id"]
    assert r["target"]["text"] == s["tokens"][r["position"] + 1]["text"]
    p = [c["logprob"] for c in r["candidates"]]
    assert p == sorted(p, reverse=True) and len(p) == 5
    assert abs(r["covered"] + r["tail_mass"] - 1) < 1e-6
    for rank, c in enumerate(r["candidates"]):
        if c["id"] == r["target"]["id"]:
            assert rank == r["target"]["rank"] and abs(c["logprob"] - r["target"]["logprob"]) < 1e-2
P
for mode in topp sample topk+sample full hidden; do
    rm -rf "$TMP/mode"
    expect 0 'Done in' "$TDGEN" -c "$TMP/one.ini" output.dir="$TMP/mode" data.max_samples=5 capture.mode=$mode
    expect 0 'open it in a browser' "$TDGEN" inspect "$TMP/mode" --html "$TMP/mode.html"
    expect 0 '"rows"' "$TDGEN" inspect "$TMP/mode" --json --positions 3
    check "$mode: --json is no JSON" python3 -m json.tool "$TMP/out"
done
expect 2 'two forms' "$TDGEN" inspect "$TMP/mode" --json --html "$TMP/x.html"
expect 2 'needs the name of the file' "$TDGEN" inspect "$TMP/mode" --html
expect 8 '' sh -c "cp -r '$TMP/mode' '$TMP/bad' && printf x >>'$TMP/bad/manifest.json' &&
    '$TDGEN' inspect '$TMP/bad' --html '$TMP/bad.html'"
check "a page of a damaged folder" [ ! -e "$TMP/bad.html" ]

# In a real browser: the page is what it was written as, nothing ran, and it can be drawn.
browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome)
if [ -z "$browser" ]; then
    echo "trust.sh: SKIPPED: no Chromium here, the page of inspect --html was NOT looked at by a browser" >&2
else
    timeout 120 "$browser" --headless --no-sandbox --disable-gpu --user-data-dir="$TMP/profile" \
        --dump-dom "file://$TMP/page.html" >"$TMP/dom" 2>/dev/null
    check "the browser's page has other tokens" [ "$(grep -o '<span style="--p' "$TMP/dom" | wc -l)" -eq \
        "$(grep -o '<span style="--p' "$TMP/page.html" | wc -l)" ]
    check "the browser found an element that no one wrote" sh -c "! grep -qE '<script|<img|<i>|<b>' '$TMP/dom'"
    check "the browser has no articles" [ "$(grep -c '<article>' "$TMP/dom")" -ge 10 ]
    timeout 120 "$browser" --headless --no-sandbox --disable-gpu --user-data-dir="$TMP/profile" \
        --screenshot="$TMP/page.png" "file://$TMP/page.html" >/dev/null 2>&1
    check "no picture of the page" [ "$(stat -c %s "$TMP/page.png" 2>/dev/null || echo 0)" -gt 20000 ]
fi
finish
