#!/usr/bin/env bash
# Datasets of several files, files that are not read, and runs that record nothing, as a user meets them.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

config "$TMP/ok.ini"
sed -i 's/^max_length = .*/max_length = 64/; s/^shard_samples = .*/shard_samples = 8/' "$TMP/ok.ini"
run() { expect "$1" "$2" "$TDGEN" -c "$TMP/ok.ini" "${@:3}"; }
# fingerprints OUT: shard, rows of the dataset, what was read and what was recorded.
fingerprints() {
    sed -E 's/.*"shard": ([0-9]+), "row_begin": ([0-9]+).*"rows": ([0-9]+),.*"source_hash": ("[0-9a-f]+").*/\1 \2 \3 \4/' \
        "$1/shards.jsonl"
}

# --- one dataset of several files is what one file of the same rows is
mkdir "$TMP/set" "$TMP/set/deeper"
head -40 demo/demo.jsonl >"$TMP/one.jsonl"
sed -n 1,11p "$TMP/one.jsonl" >"$TMP/set/a.jsonl"
sed -n 12,20p "$TMP/one.jsonl" | gzip >"$TMP/set/b.jsonl.gz"
: >"$TMP/set/c.jsonl"
sed -n 21,40p "$TMP/one.jsonl" >"$TMP/set/d, e.jsonl"
echo 'about it' >"$TMP/set/README.md"
run 0 'Done in' data.path="$TMP/one.jsonl" output.dir="$TMP/one"
run 0 'of .*/set these are not taken for data: README.md' data.path="$TMP/set" output.dir="$TMP/folder"
run 0 '1 of 4 files are empty: .*/c.jsonl' data.path="$TMP/set" output.dir="$TMP/folder"
for kind in folder glob list; do
    case $kind in
    folder) path=$TMP/set ;;
    glob) path="$TMP/set/*.jsonl*" ;;
    list) path="$TMP/set/b.jsonl.gz, \"$TMP/set/d, e.jsonl\", $TMP/set/a.jsonl" ;;
    esac
    run 0 'Done in' data.path="$path" output.dir="$TMP/folder-$kind"
    check "$kind: not the rows of one file" diff <(fingerprints "$TMP/one") <(fingerprints "$TMP/folder-$kind")
    # Paths in one setting or another: the same identity, the same bytes.
    same_shards "$TMP/folder" "$TMP/folder-$kind"
done
check "the manifest names no file" grep -q '"data.n_files": 3' "$TMP/folder/manifest.json"
check "one file is told as one of several" sh -c "! grep -q 'n_files\|data_files' $TMP/one/manifest.json"
expect 0 '' "$TDGEN" verify "$TMP/folder"

# A run that was cut short goes on behind the border of a file, and workers share all files.
run 0 'Done in' data.path="$TMP/set" output.dir="$TMP/grown" data.max_samples=14
run 0 'Done in' data.path="$TMP/set" output.dir="$TMP/grown"
same_shards "$TMP/folder" "$TMP/grown"
for k in 0 1; do
    run 0 'Done in' data.path="$TMP/set" output.dir="$TMP/w$k" run.total_workers=2 run.worker_id=$k
done
expect 0 '' "$TDGEN" merge "$TMP/merged" "$TMP/w0" "$TMP/w1"
same_shards "$TMP/folder" "$TMP/merged"
# A folder of tdgen is a token dataset; moved, a dataset is what it was.
run 0 'Done in' data.path="$TMP/folder" output.dir="$TMP/again"
cp -r "$TMP/set" "$TMP/moved"
run 0 'already complete: 100% of 40 dataset rows' data.path="$TMP/moved" output.dir="$TMP/folder"

# A file more, changed, less: another dataset, and the message says which.
echo '{"text": "more of it"}' >"$TMP/moved/z.jsonl"
run 6 'of its files .*/moved/z.jsonl was added' data.path="$TMP/moved" output.dir="$TMP/folder"
echo '{"text": "more of it"}' >>"$TMP/moved/a.jsonl"
rm "$TMP/moved/z.jsonl" "$TMP/moved/b.jsonl.gz"
run 6 'moved.*b.jsonl.gz is gone|set/b.jsonl.gz is gone, .*/moved/a.jsonl changed' data.path="$TMP/moved" \
    output.dir="$TMP/folder"
# A row's message names its own file.
echo '{"text": 7}' >>"$TMP/moved/d, e.jsonl"
run 4 'moved/d, e.jsonl:21: "text"' data.path="$TMP/moved" output.dir="$TMP/x1"

# --- the dry run: how it knows, what max_length loses
run 0 'counted: all 40 rows were read in 3 files' data.path="$TMP/set" output.dir="$TMP/x2" --dry-run
run 0 'Too long: .* are cut, which loses [0-9.k]+ tokens' data.path="$TMP/set" output.dir="$TMP/x2" --dry-run
run 0 'are split, which loses no token' data.path="$TMP/set" output.dir="$TMP/x2" data.overflow=split --dry-run
run 0 'the dataset .*/none.\* is not there' data.path="$TMP/none.*" output.dir="$TMP/x2" --dry-run
for _ in $(seq 20); do cat demo/demo.jsonl; done >"$TMP/part.jsonl" # 1.3 MB
for _ in $(seq 14); do cat "$TMP/part.jsonl"; done >"$TMP/large.jsonl"
for _ in $(seq 7); do cat "$TMP/part.jsonl"; done | gzip -1 >"$TMP/large.jsonl.gz"
run 0 'estimated from [0-9.k]+ rows, .* spread evenly over .* in 2 files' data.path="$TMP/large.jsonl,$TMP/one.jsonl" \
    output.dir="$TMP/x2" --dry-run
run 0 'estimated from [0-9.k]+ rows, the first .* of ' data.path="$TMP/large.jsonl.gz" output.dir="$TMP/x2" --dry-run

# --- nothing recorded is no success
printf '{"text":""}\n{"text":""}\n' >"$TMP/void.jsonl"
run 7 'Nothing was recorded: the samples are empty' data.path="$TMP/void.jsonl" data.add_special_tokens=false output.dir="$TMP/n1"
run 7 'ended with exit code 7' data.path="$TMP/void.jsonl" data.add_special_tokens=false output.dir="$TMP/n1"
check "the report in run.json does not say why" grep -q 'Nothing was recorded: the samples are empty' "$TMP/n1/run.json"
rm "$TMP/n1/run.json"
run 7 'Nothing was recorded: the samples are empty' data.path="$TMP/void.jsonl" data.add_special_tokens=false output.dir="$TMP/n1" --quiet
expect 0 '' "$TDGEN" verify "$TMP/n1"
run 7 'Nothing will be recorded: every row is longer' data.path="$TMP/one.jsonl" data.max_length=3 data.overflow=skip \
    output.dir="$TMP/n2" --dry-run
run 7 'Nothing was recorded: every row is longer than data.max_length = 3' data.path="$TMP/one.jsonl" data.max_length=3 \
    data.overflow=skip output.dir="$TMP/n2"
printf '{"ids":[1,2,3],"m":[1,0,0]}\n' >"$TMP/masked.jsonl"
run 7 'data.mask_field = m is 0 everywhere' data.path="$TMP/masked.jsonl" data.ids_field=ids data.mask_field=m output.dir="$TMP/n3"
printf '{"p":"hello there","c":""}\n' >"$TMP/empty-completion.jsonl"
run 7 'the completions \(data.completion_field = c\) are empty' data.path="$TMP/empty-completion.jsonl" data.prompt_field=p \
    data.completion_field=c data.append_eos=false output.dir="$TMP/n4"
# A worker without a shard of its own is done.
run 0 'Done in' data.path="$TMP/one.jsonl" data.max_samples=8 run.total_workers=2 run.worker_id=1 output.dir="$TMP/n5"

# --- files that are not read: the very command that helps
printf '{"messages":[{"role":"user","content":"hi"}]}\n' >"$TMP/it's chat.jsonl"
run 4 'is a conversation' data.path="$TMP/it's chat.jsonl" output.dir="$TMP/x3"
check "a conversation's message speaks of data.text_field" sh -c "! grep -q text_field $TMP/out"
check "the command has no quoted path" grep -qF "tdgen prepare '$TMP/it'\\''s chat.jsonl' --model demo/teacher --out" "$TMP/out"
printf 'text,label\n"a",1\n' >"$TMP/t.csv"
run 4 "tdgen prepare $TMP/t.csv --model demo/teacher --out $TMP/t.safetensors" data.path="$TMP/t.csv" output.dir="$TMP/x3"
run 0 'is named as a CSV file, and read as data.format = text says' data.path="$TMP/t.csv" data.format=text output.dir="$TMP/x4"
mkdir "$TMP/saved"
echo '{}' >"$TMP/saved/state.json"
printf '\377\377\377\377\020\000\000\000' >"$TMP/saved/data-00000-of-00001.arrow"
run 4 "save_to_disk .*tdgen prepare $TMP/saved --model demo/teacher --out $TMP/saved.safetensors" data.path="$TMP/saved" \
    output.dir="$TMP/x3"
check "a refused run left its output folder" [ ! -e "$TMP/x3" ]
# A token file's first bytes are the length of its header, which may look like anything: a pickle, UTF-16.
python3 - "$TMP" <<'P'
import json, struct, sys
for name, want in (("pickle", 0x0280), ("pickle5", 0x0580), ("wide", 0x0100)):
    t = {"sample_offsets": {"dtype": "I64", "shape": [2], "data_offsets": [0, 16]},
         "input_ids": {"dtype": "I32", "shape": [4], "data_offsets": [16, 32]}}
    text = json.dumps(t).encode()
    for suffix in (".safetensors", ""):
        with open(f"{sys.argv[1]}/{name}{suffix}", "wb") as f:
            f.write(struct.pack("<Q", want) + text + b" " * (want - len(text)) + struct.pack("<2q4i", 0, 4, 5, 6, 7, 8))
P
for name in pickle pickle5 wide; do
    for suffix in .safetensors ''; do
        run 0 'Done in' data.path="$TMP/$name$suffix" output.dir="$TMP/first-$name$suffix"
    done
done
finish
