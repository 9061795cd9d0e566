#!/usr/bin/env bash
# The dataset formats, through the whole program; what must agree, agrees byte for byte.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
config "$TMP/ok.ini"
run() { expect "$1" "$2" "$TDGEN" -c "$TMP/ok.ini" "${@:3}"; }

# Text, its JSONL, and its token ids are the same samples.
printf 'In the beginning God created the heaven\nAnd the earth was without form\n\nlast line' >"$TMP/t.txt"
while IFS= read -r line || [ -n "$line" ]; do printf '{"text":"%s"}\n' "$line"; done <"$TMP/t.txt" >"$TMP/t.jsonl"
"$TDGEN" tokenize --model demo/teacher <"$TMP/t.txt" | sed 's/.*/{"ids":&}/' >"$TMP/ids.jsonl"
run 0 'Done in' data.path="$TMP/t.txt" output.dir="$TMP/a"
run 0 'Done in' data.path="$TMP/t.jsonl" output.dir="$TMP/b"
run 0 'Done in' data.path="$TMP/ids.jsonl" data.ids_field=ids output.dir="$TMP/c"
for d in a b c; do
    expect 0 '' "$TDGEN" verify "$TMP/$d"
    expect 0 '4' "$TDGEN" inspect "$TMP/$d"
done
# The data part (after the header, whose metadata names the source) is the same.
data_part() { # FILE: 8 bytes of header length, the header, the data
    local n
    n=$(od -An -tu8 -N8 "$1" | tr -d ' ')
    tail -c +$((9 + n)) "$1"
}
for d in b c; do
    check "the tensors of $d differ from those of text" cmp \
        <(data_part "$TMP/a/shard-000000.safetensors") <(data_part "$TMP/$d/shard-000000.safetensors")
done

# The shards of a run are a token dataset themselves.
run 0 'Done in' data.path="$TMP/a/shard-000000.safetensors" output.dir="$TMP/d"
expect 0 '' "$TDGEN" verify "$TMP/d"

# Prompt and completion: rows only for the completion; end of sequence appended.
run 0 'Done in' data.path=demo/qa.jsonl data.prompt_field=prompt data.completion_field=completion output.dir="$TMP/qa"
expect 0 '' "$TDGEN" verify "$TMP/qa"
run 0 'Done in' data.path=demo/qa.jsonl data.prompt_field=prompt data.completion_field=completion \
    data.append_eos=false output.dir="$TMP/qa2"
run 6 'append_eos' data.path=demo/qa.jsonl data.prompt_field=prompt data.completion_field=completion output.dir="$TMP/qa2"

# Overflow: truncate, split, skip.
run 0 'longer than data.max_length' data.max_length=20 output.dir="$TMP/o1"
run 0 'longer than data.max_length' data.max_length=20 data.overflow=split output.dir="$TMP/o2"
run 0 'longer than data.max_length' data.max_length=20 data.overflow=skip output.dir="$TMP/o3"
for d in qa qa2 o1 o2 o3; do expect 0 '' "$TDGEN" verify "$TMP/$d"; done

# One whole file as one row; ids carried through; temperatures; f32 log-probs; f32 compute.
run 0 'Done in' data.path="$TMP/t.txt" data.text_unit=file output.dir="$TMP/f"
run 0 'Done in' data.id_field=id capture.temperatures=0.5,2 capture.logprob_dtype=f32 model.compute=f32 output.dir="$TMP/x"
for d in f x; do expect 0 '' "$TDGEN" verify "$TMP/$d"; done
expect 0 'pass|LORD|God' "$TDGEN" inspect "$TMP/x"

# Rows that predict nothing still are there.
printf '{"text":""}\n{"text":"a"}\n' >"$TMP/short.jsonl"
run 0 'Done in' data.path="$TMP/short.jsonl" data.add_special_tokens=false output.dir="$TMP/short"
expect 0 '' "$TDGEN" verify "$TMP/short"

# What a person watching relies on.
check "no log file" [ -s "$TMP/a/tdgen.log" ]
check "status.json does not say done" grep -q '"state": "done"' "$TMP/a/status.json"

# Two processes on one folder: the second is told.
"$TDGEN" -c "$TMP/ok.ini" output.dir="$TMP/lock" run.batch_tokens=64 >/dev/null 2>&1 &
pid=$!
for _ in $(seq 100); do
    [ -e "$TMP/lock/manifest.json" ] && break
    sleep 0.02
done
if kill -STOP "$pid" 2>/dev/null; then
    run 6 'lock|another' output.dir="$TMP/lock"
    kill -CONT "$pid"
fi
wait "$pid"
finish
