#!/usr/bin/env bash
# Every error path a user can meet: its exit code and what the message names.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

config "$TMP/ok.ini"
run() { expect "$1" "$2" "$TDGEN" -c "$TMP/ok.ini" "${@:3}"; }

# --- usage: 2
expect 2 'usage: tdgen' "$TDGEN"
expect 2 'unknown command "inspekt".*|did you mean "inspect"' "$TDGEN" inspekt
expect 2 'a run needs -c' "$TDGEN" data.max_samples=3
expect 2 '-c needs the path' "$TDGEN" -c
expect 2 'unknown argument "--dryrun"' "$TDGEN" -c "$TMP/ok.ini" --dryrun
expect 2 'did you mean "--dry-run"' "$TDGEN" -c "$TMP/ok.ini" --dryrun
expect 2 'contradict' "$TDGEN" -c "$TMP/ok.ini" --quiet --verbose
expect 0 'usage: tdgen' "$TDGEN" --help
expect 0 'exit codes' "$TDGEN" --help
expect 0 'devices: cpu' "$TDGEN" --version
for command in devices inspect verify tokenize; do
    expect 0 "usage: tdgen $command" "$TDGEN" $command --help
    expect 0 '[Ee]xit code' "$TDGEN" $command --help
done
expect 0 'cpu:0' "$TDGEN" devices
# Output that is lost is no success.
expect 6 '' sh -c "$TDGEN --help >/dev/full"
expect 2 'no argument "x"' "$TDGEN" devices x

# --- configuration: 2, naming file, line, key, what was expected
expect 2 "$TMP/missing.ini" "$TDGEN" -c "$TMP/missing.ini"
bad() { # bad PATTERN LINE...: a configuration with these lines at its end
    local pattern=$1
    shift
    config "$TMP/bad.ini" "$@"
    expect 2 "$pattern" "$TDGEN" -c "$TMP/bad.ini" --dry-run
}
bad 'bad\.ini:[0-9]+.*batch_token.*batch_tokens' 'batch_token = 3'
bad 'bad\.ini:[0-9]+.*devises.*devices' '[devises]' 'gpus = cpu'
bad 'bad\.ini:[0-9]+.*seed.*integer|whole number' 'seed = many'
bad 'bad\.ini:[0-9]+.*worker_id' 'worker_id = 4'
bad 'bad\.ini:[0-9]+' "seed = $(printf '1%.0s' $(seq 400))"
bad 'bad\.ini:[0-9]+.*top_k.*1024' '[capture]' 'top_k = 5000' 
run 2 'top_k' capture.top_k=0 --dry-run
run 2 'top_k' capture.topk=5 --dry-run
run 2 '"?top_k=5"?.*(section\.key|\[capture\]|capture\.top_k)' top_k=5 --dry-run
run 2 'mask_field' data.mask_field=m --dry-run
run 2 'completion_field' data.prompt_field=p --dry-run
run 2 'logprob_dtype' capture.logprob_dtype=f64 --dry-run
run 2 'gpus' devices.gpus=cpu*x --dry-run
run 2 'temperatures' capture.temperatures=0 --dry-run
run 2 'inventory' devices.inventory=conf/inventory/1xh100.ini
run 2 'model\.compute = f16.*cpu:0|cpu:0.*f16' model.compute=f16

# --- model: 3
run 3 'folder .*none cannot be opened: No such file' model.path="$TMP/none"
mkdir "$TMP/m"
cp demo/teacher/* "$TMP/m/"
sed 's/LlamaForCausalLM/MambaForCausalLM/' demo/teacher/config.json >"$TMP/m/config.json"
run 3 'MambaForCausalLM' model.path="$TMP/m"
echo '{' >"$TMP/m/config.json"
run 3 'config\.json.*not valid JSON' model.path="$TMP/m"
cp demo/teacher/config.json "$TMP/m/"
head -c 100000 demo/teacher/model.safetensors >"$TMP/m/model.safetensors"
run 3 'model\.safetensors' model.path="$TMP/m" output.dir="$TMP/e1"
rm "$TMP/m/model.safetensors"
run 3 'safetensors' model.path="$TMP/m" output.dir="$TMP/e1"
run 0 'Worker device assignments' model.path="$TMP/m" --dry-run
printf '{"metadata":{},"weight_map":{"model.norm.weight":"../../etc/passwd"}}' \
    >"$TMP/m/model.safetensors.index.json"
run 3 'model.safetensors.index.json' model.path="$TMP/m" output.dir="$TMP/e1"
rm "$TMP/m/model.safetensors.index.json"
cp demo/teacher/model.safetensors "$TMP/m/"
rm "$TMP/m/tokenizer.json"
run 3 'tokenizer\.json' model.path="$TMP/m" output.dir="$TMP/e1"

run 2 'data\.max_length = 256, but GPT2LMHeadModel has learned [0-9]+ positions' --dry-run \
    model.path=test/fixtures/families/gpt2
# What contradicts the model is refused before anything is written.
run 2 'capture\.top_k = 1000, but the vocabulary of .*/llama has [0-9]+ tokens' \
    model.path=test/fixtures/families/llama capture.top_k=1000 data.max_length=20 output.dir="$TMP/early"
run 2 'always_ids names id 999999, but the vocabulary of .*/llama has ids 0 to' \
    model.path=test/fixtures/families/llama capture.always_ids=2,999999 data.max_length=20 \
    capture.top_k=4 output.dir="$TMP/early"
check "a refused run left its output folder" [ ! -e "$TMP/early" ]
# --- data: 4
run 4 'none\.jsonl' data.path="$TMP/none.jsonl" output.dir="$TMP/e1"
: >"$TMP/empty.jsonl"
run 4 'empty' data.path="$TMP/empty.jsonl" output.dir="$TMP/e1"
printf '{"text":"a"}\n{"txt":"b"}\n' >"$TMP/d.jsonl"
run 4 'd\.jsonl:2.*text' data.path="$TMP/d.jsonl" output.dir="$TMP/e2"
printf '{"text":"a b c"}\n{"text":7}\n' >"$TMP/d.jsonl"
run 4 'd\.jsonl:2.*string' data.path="$TMP/d.jsonl" output.dir="$TMP/e3"
printf '{"text":"a b c"}\nnot json\n{"text":"d e f"}\n' >"$TMP/d.jsonl"
run 4 'd\.jsonl:2' data.path="$TMP/d.jsonl" output.dir="$TMP/e4"
run 7 'Skipped samples: 1' data.path="$TMP/d.jsonl" output.dir="$TMP/e5" run.on_bad_sample=skip
expect 0 '' "$TDGEN" verify "$TMP/e5"
printf '{"ids":[1,2,3]}\n{"ids":[1,99999]}\n' >"$TMP/d.jsonl"
run 4 'd\.jsonl:2.*99999' data.path="$TMP/d.jsonl" data.ids_field=ids output.dir="$TMP/e6"

# --- devices: 2 and 5
run 2 'needs 3 devices|3 devices' devices.gpus=cpu*2 devices.gpus_per_model=3
run 5 'GPU' devices.gpus=0,1
run 2 'groups.*7|7.*groups|device 7' devices.gpus=cpu*2 'devices.groups=0|7'

# --- output: 6
run 0 'Done in' output.dir="$TMP/o" data.max_samples=5
run 6 'top_k' output.dir="$TMP/o" data.max_samples=5 capture.top_k=8
run 6 'max_length' output.dir="$TMP/o" data.max_samples=5 data.max_length=100
run 6 'shard_samples' output.dir="$TMP/o" data.max_samples=5 output.shard_samples=7
touch "$TMP/file"
run 6 "$TMP/file" output.dir="$TMP/file"
expect 6 '' "$TDGEN" inspect "$TMP/none"
expect 2 '' "$TDGEN" inspect
expect 2 '' "$TDGEN" verify

# A teacher whose logits are not finite: refused, or skipped and said so.
cp demo/teacher/* "$TMP/m/"
# bf16 NaN into the whole final norm: every logit of every sample.
python3 - "$TMP/m/model.safetensors" <<'P' 2>/dev/null || touch "$TMP/nopython"
import json, struct, sys
f = open(sys.argv[1], "r+b")
n = struct.unpack("<Q", f.read(8))[0]
b, e = json.loads(f.read(n))["model.norm.weight"]["data_offsets"]
f.seek(8 + n + b)
f.write(b"\xc0\x7f" * ((e - b) // 2))
P
if [ -e "$TMP/nopython" ]; then
    echo "SKIPPED: no python3 to make a teacher with NaN weights" >&2
else
    run 3 'not finite' model.path="$TMP/m" output.dir="$TMP/n1" data.max_samples=3
    run 7 'Skipped samples: 3' model.path="$TMP/m" output.dir="$TMP/n2" data.max_samples=3 \
        run.on_bad_sample=skip
    expect 0 '' "$TDGEN" verify "$TMP/n2"
fi
# The commands of the Python package: from the source tree, and by name where there is none of it.
expect 0 'usage: tdgen-prepare' "$TDGEN" prepare --help
expect 2 'unrecognized arguments: --nonsense' "$TDGEN" export hf "$TMP" "$TMP/x" --nonsense
mkdir "$TMP/bin"
cp "$TDGEN" "$TMP/bin/tdgen"
expect 2 'pip install "tdgen\[plot\]"' "$TMP/bin/tdgen" plot x
printf '#!/bin/sh\necho "prepared $*"\nexit 5\n' >"$TMP/bin/tdgen-prepare"
chmod +x "$TMP/bin/tdgen-prepare"
expect 5 '^prepared a  b --out c$' "$TMP/bin/tdgen" prepare 'a  b' --out c
finish
