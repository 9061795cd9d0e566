#!/usr/bin/env bash
# Paths as people write them, configurations from anywhere, and models that are not what they were taken for.
# shellcheck disable=SC2016 # the dollars are tdgen's
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
root=$PWD
case $TDGEN in /*) ;; *) TDGEN=$root/$TDGEN ;; esac
unset HF_HUB_CACHE HUGGINGFACE_HUB_CACHE HF_HOME XDG_CACHE_HOME

# --- a configuration and its folder: inputs beside it, then here; outputs beside it, unless a run is here
job="$TMP/my job"
mkdir -p "$job/data" "$TMP/else where"
cp -r demo/teacher "$job/teacher"
head -n 8 demo/demo.jsonl >"$job/data/a.jsonl"
cat >"$job/run.ini" <<'I'
[model]
path = teacher
[data]
path = data/a.jsonl
[devices]
gpus = cpu
[output]
dir = out/one
I
cd "$TMP/else where" || exit 1
expect 0 'Done in' "$TDGEN" "$job/run.ini"
check "the output is not beside the configuration" [ -s "$job/out/one/manifest.json" ]
expect 0 'is already complete' "$TDGEN" -c "$job/run.ini"
expect 0 'tdgen inspect ' "$TDGEN" "$job/run.ini" output.dir=here
check "an override is not relative to the working directory" [ -s here/manifest.json ]
mkdir -p out && cp -r "$job/out/one" out/one
rm -r "$job/out"
expect 0 'is already complete' "$TDGEN" "$job/run.ini"
check "the run of the working directory did not win" [ ! -e "$job/out" ]

# --- ~, variables, quotes
export TD_JOB=$job
HOME=$job expect 0 'already complete' "$TDGEN" "$job/run.ini" model.path='~/teacher' output.dir=here
expect 0 'already complete' "$TDGEN" "$job/run.ini" model.path='$TD_JOB/teacher' data.path='${TD_JOB}/data/*.jsonl' output.dir=here
expect 2 '\$TD_NOT_SET is not set' "$TDGEN" "$job/run.ini" model.path='$TD_NOT_SET/teacher'
expect 2 '\[model\] path: ~nobody-of-that-name' "$TDGEN" "$job/run.ini" model.path='~nobody-of-that-name/x'
expect 2 'is no \$\{NAME\}' "$TDGEN" "$job/run.ini" model.path='${TD_JOB/teacher'
cp -r "$job/teacher" '$TD_JOB ~x;'
expect 0 'Done in' "$TDGEN" "$job/run.ini" 'model.path="$TD_JOB ~x;"' output.dir='"odd $dir #1"'
check "quotes are not taken off" [ -s 'odd $dir #1/manifest.json' ]
expect 0 'already complete' "$TDGEN" -c 'odd $dir #1/run.ini'

# --- the effective configuration says the same from anywhere
mkdir deep && cd deep || exit 1
expect 0 'already complete' "$TDGEN" ../here/run.ini
cd ..

# --- a dry run says which paths it would take
expect 0 "Model folder: +$job/teacher" "$TDGEN" "$job/run.ini" --dry-run
expect 0 "Data: +$job/data/a.jsonl" "$TDGEN" "$job/run.ini" --dry-run
expect 0 "Output folder: +out/one is complete" "$TDGEN" "$job/run.ini" --dry-run

# --- pipes
expect 0 'already complete' sh -c "cd '$job' && cat run.ini | '$TDGEN' -c - output.dir='$PWD/here'"
expect 0 'already complete' bash -c "cd '$job' && '$TDGEN' -c <(cat run.ini) output.dir='$PWD/here'"
expect 0 'already complete' sh -c "cd '$job' && '$TDGEN' -c /dev/stdin output.dir='$PWD/here' <run.ini"
expect 2 'nothing came from standard input' sh -c "'$TDGEN' -c - </dev/null"
expect 2 'more than [0-9]+ bytes' sh -c "'$TDGEN' -c - </dev/zero"
expect 2 'unknown command "nonsense"' "$TDGEN" nonsense

# --- the Hugging Face cache, by name
cache=$TMP/cache/hub
repo=$cache/models--Some-Org--Tiny.1
commit=0123456789abcdef0123456789abcdef01234567
mkdir -p "$repo"/{blobs,refs} "$repo/snapshots/$commit"
printf %s "$commit" >"$repo/refs/main"
for f in "$job"/teacher/*; do
    cp "$f" "$repo/blobs/$(basename "$f").blob"
    ln -s "../../blobs/$(basename "$f").blob" "$repo/snapshots/$commit/$(basename "$f")"
done
model() { "$TDGEN" "$job/run.ini" output.dir=here model.path="$1"; }
HF_HOME=$TMP/cache expect 0 'already complete|complete already' model Some-Org/Tiny.1
HF_HUB_CACHE=$cache expect 0 'complete' model "Some-Org/Tiny.1@$commit"
XDG_CACHE_HOME=$TMP/x expect 3 'not in the Hugging Face cache .*/x/huggingface/hub.*hf download Some-Org/Tiny.1$' model Some-Org/Tiny.1
HF_HUB_CACHE=$cache expect 3 'hf download Some-Org/Other --revision v2' model Some-Org/Other@v2
printf '../../evil' >"$repo/refs/evil"
HF_HUB_CACHE=$cache expect 3 'not in the Hugging Face cache' model Some-Org/Tiny.1@evil
expect 3 'root of a model in the Hugging Face cache' model "$repo"

# --- what is no model, by name
mkdir lora gguf part bin empty lfs
echo '{}' >lora/adapter_config.json
printf 'GGUF\3\0\0\0' >gguf/m-Q4.gguf
touch part/model-00001.safetensors.incomplete
cp "$job/teacher/config.json" "$job/teacher/tokenizer.json" bin/
touch bin/pytorch_model.bin
expect 3 'adapter \(LoRA or the like\) and no model.*merge_and_unload' model lora
expect 3 'GGUF file \(m-Q4.gguf\), which llama.cpp reads' model gguf
expect 3 'is a GGUF file' model gguf/m-Q4.gguf
expect 3 'download that did not end' model part
expect 3 'pytorch_model.bin, which is not read; convert' model bin
expect 3 'is no model: it has no config.json' model empty
expect 3 'is a file of a model; give the folder' model "$job/teacher/model.safetensors"
expect 3 'is an output folder of tdgen' model out/one
expect 3 "folder no/such/place cannot be opened" model no/such/place
for f in config.json tokenizer.json model.safetensors; do
    cp "$job"/teacher/* lfs/
    printf 'version https://git-lfs%s\noid sha256:%064d\nsize 12345\n' .example/spec/v1 0 >"lfs/$f"
    expect 3 "lfs/$f is a Git LFS pointer.*git lfs pull" model lfs
done
cp lfs/model.safetensors data.jsonl
expect 4 'data.jsonl is a Git LFS pointer' "$TDGEN" "$job/run.ini" data.path=data.jsonl output.dir=other
finish
