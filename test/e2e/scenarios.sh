#!/usr/bin/env bash
# The scenarios of the specification, through the old script's command lines and the real program:
# the assignment block must be printed exactly as documented.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

# block TOTAL GPUS PER_MODEL WORKERS LINE... : the expected text
block() {
    printf '==================================================\n'
    printf 'Multi-GPU Teacher Logits Generation\n'
    printf '==================================================\n'
    printf 'Configuration:\n'
    printf '  Total GPUs available: %s (%s)\n' "$1" "$2"
    printf '  GPUs per model: %s\n' "$3"
    printf '  Number of workers: %s\n\n' "$4"
    printf 'Worker GPU assignments:\n'
    shift 4
    local i=0 line
    for line; do
        printf '  Worker %d: GPUs %s\n' "$i" "$line"
        i=$((i + 1))
    done
}

# scenario NAME MODEL INVENTORY ARGUMENTS... ; the expected block on stdin
scenario() {
    local name=$1 model=$2 inventory=$3
    shift 3
    cat >"$TMP/want"
    TDGEN_CONFIG=$TMP/run.ini tools/generate_teacher_logits_parallel.sh "$@" --dry-run \
        model.path="test/fixtures/configs/$model" devices.inventory="conf/inventory/$inventory.ini" \
        >"$TMP/got" 2>"$TMP/err"
    local code=$?
    head -n "$(wc -l <"$TMP/want")" "$TMP/got" >"$TMP/head"
    if [ $code -eq 0 ] && cmp -s "$TMP/want" "$TMP/head"; then
        pass
    else
        fail "$name (exit $code)"
        diff "$TMP/want" "$TMP/head" >&2
        cat "$TMP/err" >&2
    fi
}

config "$TMP/run.ini" '[data]'
sed -i '/^\[devices\]/d; /^gpus = cpu/d; $d' "$TMP/run.ini"
all=0,1,2,3,4,5,6,7

scenario "1: small model, 8 GPUs" llama-7b 8xa100-80gb 1 $all < <(block 8 $all 1 8 0 1 2 3 4 5 6 7)
scenario "2: 34B, 2 GPUs each" codellama-34b 8xa100-80gb 2 $all < <(block 8 $all 2 4 0,1 2,3 4,5 6,7)
scenario "3: 70B, 4 GPUs each" llama-70b 8xa100-80gb 4 $all < <(block 8 $all 4 2 0,1,2,3 4,5,6,7)
scenario "4: all 8 GPUs for one copy" llama-70b 8xa100-80gb 8 $all < <(block 8 $all 8 1 $all)
scenario "5: some GPUs" llama-7b 8xa100-80gb 1 1,3,5,7 < <(block 4 1,3,5,7 1 4 1 3 5 7)
scenario "6: auto-detect" llama-7b 8xa100-80gb 1 < <(block 8 $all 1 8 0 1 2 3 4 5 6 7)
scenario "test small batch first" llama-7b 8xa100-80gb 2 0,1,2,3 \
    distillation.dataset.max_samples=10 < <(block 4 0,1,2,3 2 2 0,1 2,3)
scenario "uneven distribution in one run" llama-8b 4xa100-4xv100 1 $all model.compute=f16 \
        'devices.groups=0|1|2|3|4,5|6,7' < <(block 8 $all "1 (4 workers), 2 (2 workers)" 6 0 1 2 3 4,5 6,7)

# 405B in bf16 does not fit on 8 x 80 GB, and the answer says what would.
expect 5 'does not fit on 8 x A100-80GB.*What would fit: [0-9]+ x A100-80GB' "$TDGEN" -c "$TMP/run.ini" --dry-run \
    model.path=test/fixtures/configs/llama-405b devices.inventory=conf/inventory/8xa100-80gb.ini \
    devices.gpus_per_model=8
expect 2 '9' "$TDGEN" -c "$TMP/run.ini" --dry-run model.path=test/fixtures/configs/llama-7b \
    devices.inventory=conf/inventory/8xa100-80gb.ini devices.gpus_per_model=9
# Devices left over are reported.
expect 0 'Left over: no group uses GPUs 6,7' "$TDGEN" -c "$TMP/run.ini" --dry-run \
    model.path=test/fixtures/configs/llama-7b devices.inventory=conf/inventory/8xa100-80gb.ini \
    devices.gpus_per_model=3
# More devices than layers to place: the surplus stays empty, with a warning.
expect 0 'embed' "$TDGEN" -c "$TMP/run.ini" --dry-run devices.gpus=cpu*8 devices.gpus_per_model=8
expect 0 'warning|Warning|Notes' "$TDGEN" -c "$TMP/run.ini" --dry-run devices.gpus=cpu*8 \
    devices.gpus_per_model=8
# A machine without GPUs can still show the assignment.
block 4 0,1,2,3 2 2 0,1 2,3 >"$TMP/want"
"$TDGEN" -c "$TMP/run.ini" --dry-run devices.gpus=0,1,2,3 devices.gpus_per_model=2 2>/dev/null |
    head -n "$(wc -l <"$TMP/want")" >"$TMP/got"
check "assignment without a GPU" cmp "$TMP/want" "$TMP/got"

# --- "In worker log, you'll see: Worker 2/4", and what this worker has
narrow() { awk 'length($0) > 100 { print; wide = 1 } END { exit wide }' "$1"; }
config "$TMP/worker.ini" 'worker_id = 2' 'total_workers = 4'
run=("$TDGEN" -c "$TMP/worker.ini" data.max_length=64 output.shard_samples=25)
expect 0 'Done in' "${run[@]}" 'devices.gpus=cpu*4' devices.gpus_per_model=2
check "the banner has no Worker 2/4" grep -qx '  Worker 2/4' "$TMP/out"
check "the groups of the worker" grep -qx '  Group 1: cpu:2,cpu:3' "$TMP/out"
check "a CPU is a GPU" eval "! grep -q GPU '$TMP/out'"
check "lines over 100 columns: $(narrow "$TMP/out")" narrow "$TMP/out"
log=$TMP/worker-out/tdgen.log
for line in 'Worker 2/4' 'Device cpu:3: .+' '  Group 1: cpu:2,cpu:3' 'Groups: +2, .*' \
    'This process: +worker 2 of 4, .*' 'Done in .*' 'Truncation: .*' 'Look at it with: .*'; do
    check "tdgen.log has no \"$line\"" grep -qxE "[0-9TZ:-]{20} $line" "$log"
done
# It is there without a word on the terminal, and for one process too.
expect 0 '' "${run[@]}" --quiet run.worker_id=0 run.total_workers=1 output.dir="$TMP/quiet"
check "--quiet said something" [ ! -s "$TMP/out" ]
check "tdgen.log of a quiet run" grep -qE ' Worker 0/1$' "$TMP/quiet/tdgen.log"
expect 0 'devices available: 64' "$TDGEN" -c "$TMP/worker.ini" --dry-run 'devices.gpus=cpu*64' \
    output.dir="$TMP/new"
check "lines over 100 columns: $(narrow "$TMP/out")" narrow "$TMP/out"
# On a terminal of 80 columns nothing is broken within a word (but paths, which have none).
cat >"$TMP/terminal.py" <<'E'
import fcntl, os, pty, struct, sys, termios
pid, fd = pty.fork()
if pid == 0:
    fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 80, 0, 0))
    os.execvp(sys.argv[1], sys.argv[1:])
text = b""
while True:
    try:
        piece = os.read(fd, 65536)
    except OSError:
        break
    if not piece:
        break
    text += piece
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
lines = text.decode().replace("\r\n", "\n").split("\n")
wide = [line for line in lines if "\r" not in line and len(line) > 80 and "/" not in line]
print(*lines, *("WIDE: " + line for line in wide), sep="\n")
sys.exit(code or (3 if wide else 0))
E
expect 0 '^Look at it with' python3 "$TMP/terminal.py" "${run[@]}" 'devices.gpus=cpu*4' output.dir="$TMP/tty"
expect 0 'Estimated rate' python3 "$TMP/terminal.py" "${run[@]}" --dry-run 'devices.gpus=cpu*4' \
    output.dir="$TMP/tty2" run.total_workers=1 run.worker_id=0
expect 5 'Devices hold weights in bf16; FP8 ones are dequantised' "$TDGEN" -c "$TMP/run.ini" --dry-run \
    model.path=test/fixtures/configs/llama-405b devices.inventory=conf/inventory/8xa100-80gb.ini
finish
