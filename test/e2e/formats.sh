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

# Compressed, they are the same too; broken ones are named with the place.
python3 - "$TMP" <<'END'
import gzip, sys
d = sys.argv[1]
text = open(f"{d}/t.jsonl", "rb").read()
open(f"{d}/t.jsonl.gz", "wb").write(gzip.compress(text[:40]) + gzip.compress(text[40:]))
END
check "python3 wrote no gzip file" [ -s "$TMP/t.jsonl.gz" ]
run 0 'Done in' data.path="$TMP/t.jsonl.gz" output.dir="$TMP/gz"
packed=(gz)
if command -v zstd >/dev/null; then
    zstd -q "$TMP/t.txt" -o "$TMP/t.txt.zst"
    run 0 'Done in' data.path="$TMP/t.txt.zst" output.dir="$TMP/zst"
    packed+=(zst)
else
    echo 'SKIPPED: formats.sh::zst: the zstd program is not installed (unit tests cover the format)'
fi
for d in "${packed[@]}"; do
    check "the tensors of $d differ from those of text" cmp \
        <(data_part "$TMP/a/shard-000000.safetensors") <(data_part "$TMP/$d/shard-000000.safetensors")
done
head -c 60 "$TMP/t.jsonl.gz" >"$TMP/cut.jsonl.gz"
run 4 'cut.jsonl.gz: truncated: the file ends at byte 60' data.path="$TMP/cut.jsonl.gz" output.dir="$TMP/cut"

# Raw ids, each row ended by the end-of-sequence id: as JSONL to which it is appended.
python3 - "$TMP" <<'END'
import json, struct, sys
d = sys.argv[1]
rows = [json.loads(line)["ids"] for line in open(f"{d}/ids.jsonl")]
config = json.load(open("demo/teacher/tokenizer_config.json"))
tokens = json.load(open("demo/teacher/tokenizer.json"))["added_tokens"]
eos = next(t["id"] for t in tokens if t["content"] == config["eos_token"])
rows = [r if r and r[-1] == eos else r + [eos] for r in rows]
flat = [i for r in rows for i in r]
open(f"{d}/eos", "w").write(str(eos))
open(f"{d}/u16.bin", "wb").write(struct.pack(f"<{len(flat)}H", *flat))
open(f"{d}/u32.bin", "wb").write(struct.pack(f"<{len(flat)}I", *flat))
sizes = [len(r) for r in rows]
at = [2 * sum(sizes[:i]) for i in range(len(rows))]
n = len(rows)
open(f"{d}/mega.bin", "wb").write(struct.pack(f"<{len(flat)}H", *flat))
open(f"{d}/mega.idx", "wb").write(b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, n, n + 1) +
    struct.pack(f"<{n}i{n}q{n + 1}q", *sizes, *at, *range(n + 1)))
END
run 0 'Done in' data.path="$TMP/ids.jsonl" data.ids_field=ids data.append_eos=true output.dir="$TMP/eos-jsonl"
run 0 'Done in' data.path="$TMP/u16.bin" data.document_eos="$(cat "$TMP/eos")" output.dir="$TMP/u16"
run 0 'Done in' data.path="$TMP/u32.bin" data.document_eos="$(cat "$TMP/eos")" data.token_dtype=u32 output.dir="$TMP/u32"
run 0 'Done in' data.path="$TMP/mega.bin" output.dir="$TMP/mega"
for d in u16 u32 mega; do
    expect 0 '' "$TDGEN" verify "$TMP/$d"
    check "the tensors of $d differ from those of JSONL" cmp \
        <(data_part "$TMP/eos-jsonl/shard-000000.safetensors") <(data_part "$TMP/$d/shard-000000.safetensors")
done
run 0 'Done in' data.path="$TMP/u16.bin" data.max_length=8 output.dir="$TMP/blocks"
expect 0 '' "$TDGEN" verify "$TMP/blocks"
run 4 'token_dtype = u32' data.path="$TMP/u32.bin" output.dir="$TMP/none"
run 0 'estimated|rows' data.path="$TMP/t.jsonl.gz" output.dir="$TMP/none" --dry-run

# A token file as tools/prepare makes it says which tokenizer it was made with.
python3 - "$TMP" <<'END'
import json, struct, sys
d = sys.argv[1]
own = json.load(open(f"{d}/a/manifest.json"))
hashes = []
def find(o):
    for k, v in o.items() if isinstance(o, dict) else enumerate(o) if isinstance(o, list) else ():
        if k in ("tokenizer.hash", "tokenizer_hash") and isinstance(v, str):
            hashes.append(v)
        find(v)
find(own)
rows = [json.loads(line)["ids"] for line in open(f"{d}/ids.jsonl")]
flat = [i for r in rows for i in r]
offsets = [sum(map(len, rows[:i])) for i in range(len(rows) + 1)]
for name, h in (("prepared", hashes[0]), ("foreign", "0123456789abcdef")):
    n, t = len(offsets) * 8, len(flat) * 4
    head = json.dumps({"__metadata__": {"tokenizer_hash": h},
        "sample_offsets": {"dtype": "I64", "shape": [len(offsets)], "data_offsets": [0, n]},
        "input_ids": {"dtype": "I32", "shape": [len(flat)], "data_offsets": [n, n + t]}}).encode()
    head += b" " * (-len(head) % 8)
    open(f"{d}/{name}.safetensors", "wb").write(struct.pack("<Q", len(head)) + head +
        struct.pack(f"<{len(offsets)}q{len(flat)}i", *offsets, *flat))
END
run 0 'Done in' data.path="$TMP/prepared.safetensors" output.dir="$TMP/prepared"
check "the tensors of the prepared file differ from those of text" cmp \
    <(data_part "$TMP/a/shard-000000.safetensors") <(data_part "$TMP/prepared/shard-000000.safetensors")
run 4 'another tokenizer .*0123456789abcdef' data.path="$TMP/foreign.safetensors" output.dir="$TMP/none"

# A line end of CRLF belongs to the text neither here nor there.
check "tokenize keeps a CR" cmp <(printf 'x\r\ny\r\n' | "$TDGEN" tokenize --model demo/teacher) \
    <(printf 'x\ny\n' | "$TDGEN" tokenize --model demo/teacher)

# The shards of a run are a token dataset themselves.
run 0 'Done in' data.path="$TMP/a/shard-000000.safetensors" output.dir="$TMP/d"
expect 0 '' "$TDGEN" verify "$TMP/d"

# Prompt and completion: rows only for the completion; end of sequence appended.
run 0 'Done in' data.path=demo/qa.jsonl data.prompt_field=prompt data.completion_field=completion output.dir="$TMP/qa"
expect 0 '' "$TDGEN" verify "$TMP/qa"
run 0 'Done in' data.path=demo/qa.jsonl data.prompt_field=prompt data.completion_field=completion \
    data.append_eos=false output.dir="$TMP/qa2"
run 6 'append_eos' data.path=demo/qa.jsonl data.prompt_field=prompt data.completion_field=completion output.dir="$TMP/qa2"
# What is appended is the tokenizer's eos_token, whatever id config.json ends generation with.
cp -r demo/teacher "$TMP/other-eos"
sed -i 's/"eos_token_id": 1/"eos_token_id": 7/' "$TMP/other-eos/config.json"
run 0 'Done in' model.path="$TMP/other-eos" data.path=demo/qa.jsonl data.prompt_field=prompt \
    data.completion_field=completion output.dir="$TMP/qa3"
check "append_eos took config.json's id and not the tokenizer's" cmp \
    <(data_part "$TMP/qa/shard-000000.safetensors") <(data_part "$TMP/qa3/shard-000000.safetensors")

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
run 7 'Nothing was recorded' data.path="$TMP/short.jsonl" data.add_special_tokens=false output.dir="$TMP/short"
expect 0 '' "$TDGEN" verify "$TMP/short"
for _ in $(seq 500); do printf '{"text":""}\n'; done >"$TMP/none.jsonl"
run 7 'Done in.* 500 samples' data.path="$TMP/none.jsonl" output.dir="$TMP/none" output.shard_samples=2
expect 0 '' "$TDGEN" verify "$TMP/none"

# A padded vocabulary: the demo's teacher with 64 more rows of embedding. Masked, the padding changes
# nothing; not masked, it takes its share of the probability, as in Hugging Face's softmax.
mkdir "$TMP/padded"
cp demo/teacher/tokenizer*.json "$TMP/padded"
if python3 - demo/teacher "$TMP/padded" <<'P'; then
import json, struct, sys
src, dst = sys.argv[1:]
config = json.load(open(src + "/config.json"))
config["vocab_size"] += 64
json.dump(config, open(dst + "/config.json", "w"))
raw = open(src + "/model.safetensors", "rb").read()
(n,) = struct.unpack("<Q", raw[:8])
header, out = {}, bytearray()
for name, t in json.loads(raw[8 : 8 + n]).items():
    if name != "__metadata__":
        begin, end = t["data_offsets"]
        data = raw[8 + n + begin : 8 + n + end]
        if name == "model.embed_tokens.weight":
            row = t["shape"][1] * 2
            data += data[100 * row : 164 * row]
            t["shape"][0] += 64
        t["data_offsets"] = [len(out), len(out) + len(data)]
        out += data
    header[name] = t
text = json.dumps(header).encode()
text += b" " * (-len(text) % 8)
open(dst + "/model.safetensors", "wb").write(struct.pack("<Q", len(text)) + text + out)
P
    run 0 'Done in' output.dir="$TMP/unpadded"
    run 0 'Done in' model.path="$TMP/padded" output.dir="$TMP/masked" capture.mask_padded_vocab=true
    run 0 'Done in' model.path="$TMP/padded" output.dir="$TMP/open"
    expect 0 '' "$TDGEN" verify "$TMP/masked"
    check "masking the padding does not give the unpadded record" cmp \
        <(data_part "$TMP/unpadded/shard-000001.safetensors") \
        <(data_part "$TMP/masked/shard-000001.safetensors")
    if cmp -s <(data_part "$TMP/masked/shard-000001.safetensors") \
        <(data_part "$TMP/open/shard-000001.safetensors"); then
        fail "padding without a mask has no effect"
    else
        pass
    fi
    run 6 'capture.mask_padded_vocab' model.path="$TMP/padded" output.dir="$TMP/masked"
else
    echo "SKIPPED: no python3 to pad the teacher's vocabulary" >&2
fi

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
# A BOS in the text, and once more by the tokenizer: said once, with the row.
printf '{"text":"one"}\n{"text":"<|bos|>two"}\n{"text":"<|bos|>three"}\n' >"$TMP/bos.jsonl"
run 0 "bos.jsonl:2: the text begins with the BOS token \(id 0\) that the tokenizer adds" data.path="$TMP/bos.jsonl" output.dir="$TMP/bos"
check "the second BOS is told of twice" [ "$(grep -c 'the BOS token' "$TMP/out")" = 1 ]
run 0 '' data.path="$TMP/bos.jsonl" data.add_special_tokens=false output.dir="$TMP/bos2"
check "a BOS that stands once is told of" [ "$(grep -c 'the BOS token' "$TMP/out")" = 0 ]
finish
