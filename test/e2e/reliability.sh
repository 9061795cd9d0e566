#!/usr/bin/env bash
# What the system does to a run: signals, closed descriptors, file systems without locks, files that cannot be
# looked at or are cut while they are read. TD_SHIM: the library of shim.c (absent in sanitizer builds);
# TDGEN_TEST_RACES: how many races of two writers (default 8).
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

config "$TMP/one.ini"
expect 0 'Done in' "$TDGEN" -c "$TMP/one.ini"
run() { "$TDGEN" -c "$TMP/one.ini" --quiet "$@"; }

# --- signals: saved, exit 75, and the rerun gives the same bytes
for s in HUP USR1 USR2 XCPU TERM; do
    "$TDGEN" -c "$TMP/one.ini" --quiet output.dir="$TMP/$s" devices.cpu_speeds=0.2 run.batch_tokens=512 2>"$TMP/log" &
    pid=$!
    while [ -d "/proc/$pid" ] && ! [ -s "$TMP/$s/shards.jsonl" ]; do sleep 0.05; done
    kill -"$s" "$pid" && sleep 0.1 && kill -"$s" "$pid" 2>/dev/null # a scheduler sends several
    wait "$pid"
    code=$?
    check "SIG$s: exit $code" [ "$code" -eq 75 ]
    check "SIG$s: no word of the stop" grep -q 'stopped by a signal' "$TMP/$s/tdgen.log"
    expect 0 '' run output.dir="$TMP/$s" run.batch_tokens=512
    same_shards "$TMP/one-out" "$TMP/$s"
done
(trap '' HUP && run output.dir="$TMP/nohup" devices.cpu_speeds=0.3) &
pid=$!
while [ -d "/proc/$pid" ] && ! [ -s "$TMP/nohup/.lock" ]; do sleep 0.02; done
kill -HUP "$(cat "$TMP/nohup/.lock")"
wait "$pid"
code=$?
check "nohup was not respected: exit $code" [ "$code" -eq 0 ]
"$TDGEN" -c "$TMP/one.ini" --quiet output.dir="$TMP/int" devices.cpu_speeds=0.1 &
pid=$!
while [ -d "/proc/$pid" ] && ! [ -s "$TMP/int/.lock" ]; do sleep 0.02; done
kill -INT "$pid" && kill -INT "$pid"
wait "$pid"
code=$?
check "Ctrl-C twice: exit $code" [ "$code" -eq 75 ]

# --- descriptors: none of 0 to 2 becomes a shard's; a reader that is gone; a limit of the file size
run output.dir="$TMP/closed" 0<&- 1>&- 2>&-
code=$?
check "descriptors 0 to 2 closed: exit $code" [ "$code" -eq 0 ]
same_shards "$TMP/one-out" "$TMP/closed"
(
    "$TDGEN" -c "$TMP/one.ini" output.dir="$TMP/gone" 2>&1
    echo $? >"$TMP/code"
) | head -n 1 >/dev/null
check "stdout gone: exit $(cat "$TMP/code")" [ "$(cat "$TMP/code")" -eq 6 ]
same_shards "$TMP/one-out" "$TMP/gone"
(
    ulimit -f 50
    run output.dir="$TMP/limit" 2>"$TMP/log"
    echo $? >"$TMP/code"
)
check "file size limit: exit $(cat "$TMP/code")" [ "$(cat "$TMP/code")" -eq 6 ]
check "file size limit: no word" grep -q 'File too large' "$TMP/log"

# --- hostile folders: escapes, links, FIFOs
mkdir "$TMP/evil"
cp demo/teacher/* "$TMP/evil"
python3 - "$TMP/evil/config.json" <<'P'
import json, sys
c = json.load(open(sys.argv[1]))
c["architectures"] = ["\x1b]0;owned\x07\x1b[2J"]
json.dump(c, open(sys.argv[1], "w"))
P
expect 3 'x1B' run model.path="$TMP/evil" output.dir="$TMP/o-evil"
check "an escape reached the terminal" [ "$(grep -c $'\x1b' "$TMP/out")" -eq 0 ]
for name in .lock tdgen.log; do
    mkdir "$TMP/link-$name"
    echo precious >"$TMP/precious"
    ln -s "$TMP/precious" "$TMP/link-$name/$name"
    expect 6 'symbolic link' run output.dir="$TMP/link-$name"
    check "$name was written through a link" [ "$(cat "$TMP/precious")" = precious ]
done
for name in config.json tokenizer.json model.safetensors; do
    rm -rf "$TMP/fifo"
    mkdir "$TMP/fifo"
    cp demo/teacher/* "$TMP/fifo"
    rm "$TMP/fifo/$name"
    mkfifo "$TMP/fifo/$name"
    expect 3 'not a regular file' timeout 20 "$TDGEN" -c "$TMP/one.ini" model.path="$TMP/fifo" output.dir="$TMP/o-fifo"
done
for name in manifest.json shards.jsonl shard-000000.safetensors .lock; do
    rm -rf "$TMP/fifo"
    cp -r "$TMP/one-out" "$TMP/fifo"
    rm -f "$TMP/fifo/$name"
    mkfifo "$TMP/fifo/$name"
    timeout 20 "$TDGEN" -c "$TMP/one.ini" --quiet output.dir="$TMP/fifo" >/dev/null 2>&1
    code=$?
    check "$name is a FIFO: exit $code" [ "$code" -ne 124 ]
    timeout 20 "$TDGEN" verify "$TMP/fifo" >/dev/null 2>&1
    code=$?
    check "verify, $name is a FIFO: exit $code" [ "$code" -ne 124 ]
done

if [ -z "${TD_SHIM-}" ]; then
    echo "SKIPPED: sanitizers do not go with LD_PRELOAD: locks, unpacking and cut files"
    finish
fi
shim() { LD_PRELOAD=$TD_SHIM env "$@"; }

# --- what could not be looked at is no damage: exit 6, nothing is computed again
expect 0 '' run output.dir="$TMP/zst" output.zstd=true
for dir in one-out zst; do
    stat -c '%n %i %Y' "$TMP/$dir"/shard-* >"$TMP/before"
    expect 6 'Too many open files' shim TD_SHIM_UNREADABLE=shard-000001 "$TDGEN" verify "$TMP/$dir"
    zstd=$([ "$dir" = zst ] && echo true || echo false)
    expect 6 'Too many open files' shim TD_SHIM_UNREADABLE=shard-000001 "$TDGEN" -c "$TMP/one.ini" \
        output.dir="$TMP/$dir" output.zstd="$zstd"
    rm "$TMP/$dir/shards.jsonl"
    expect 6 'Too many open files' shim TD_SHIM_UNREADABLE=shard-000001 "$TDGEN" -c "$TMP/one.ini" \
        output.dir="$TMP/$dir" output.zstd="$zstd"
    expect 0 '' run output.dir="$TMP/$dir" output.zstd="$zstd"
    stat -c '%n %i %Y' "$TMP/$dir"/shard-* >"$TMP/after"
    check "a shard of $dir was replaced" cmp "$TMP/before" "$TMP/after"
done
# Neither O_TMPFILE nor a temporary folder: a shard is unpacked in memory.
expect 0 '^OK' shim TD_SHIM_NOTMP=1 TMPDIR=/nonexistent "$TDGEN" verify "$TMP/zst"
# Nor memory: what needs any byte at any time says so; a resume only proves, and streams.
noroom() { shim TD_SHIM_NOTMP=1 TD_SHIM_NOMEMFD=1 TMPDIR=/nonexistent "$@"; }
expect 6 'no room to unpack' noroom "$TDGEN" verify "$TMP/zst"
rm "$TMP/zst/shards.jsonl"
expect 0 '' noroom "$TDGEN" -c "$TMP/one.ini" --quiet output.dir="$TMP/zst" output.zstd=true
stat -c '%n %i %Y' "$TMP/zst"/shard-* >"$TMP/after"
check "a shard of zst was replaced" cmp "$TMP/before" "$TMP/after"
for cut in 100 -1 +1; do
    cp -r "$TMP/zst" "$TMP/zst$cut"
    f=$TMP/zst$cut/shard-000001.safetensors.zst
    if [ "$cut" = +1 ]; then printf X >>"$f"; else truncate -s "$cut" "$f"; fi
    expect 0 'computed again' run output.dir="$TMP/zst$cut" output.zstd=true
    check "zst$cut was not mended" cmp "$f" "$TMP/zst/shard-000001.safetensors.zst"
done
# Content is another thing.
cp -r "$TMP/one-out" "$TMP/bad"
printf X | dd of="$TMP/bad/shard-000001.safetensors" bs=1 seek=20000 conv=notrunc 2>/dev/null
expect 8 'hash of' "$TDGEN" verify "$TMP/bad"
expect 0 'computed again' run output.dir="$TMP/bad"
same_shards "$TMP/one-out" "$TMP/bad"

# --- a checkpoint that is cut while it is mapped
rm -rf "$TMP/evil" && cp -r demo/teacher "$TMP/evil"
expect 3 'evil/model.safetensors: .*(cut short|shorter)' shim TD_SHIM_CUT="$TMP/evil/model.safetensors" \
    "$TDGEN" -c "$TMP/one.ini" model.path="$TMP/evil" output.dir="$TMP/cut"

# --- a disk that does not answer is named, and waited for
expect 0 'shard 0: it is being written to disk for [0-9]+ s' shim TD_SHIM_SLOW=3 TDGEN_DEBUG_WATCHDOG_S=2 \
    "$TDGEN" -c "$TMP/one.ini" --quiet output.dir="$TMP/slow" data.max_samples=8
expect 0 'main thread is held for [0-9]+ s now: status.json' shim TD_SHIM_SLOW_STATUS="4 4" TDGEN_DEBUG_WATCHDOG_S=2 \
    "$TDGEN" -c "$TMP/one.ini" --quiet output.dir="$TMP/slow2" devices.cpu_speeds=0.2
same_shards "$TMP/one-out" "$TMP/slow2"
expect 0 'status.json is being written for [0-9]+ s now' shim TD_SHIM_SLOW_STATUS="4 1" TDGEN_DEBUG_WATCHDOG_S=2 \
    "$TDGEN" -c "$TMP/one.ini" --quiet output.dir="$TMP/slow3" data.max_samples=8

# --- no locks: the holder's file. One that is gone is replaced, one elsewhere is not.
expect 0 '' shim TD_SHIM_NOLOCK=1 "$TDGEN" -c "$TMP/one.ini" --quiet output.dir="$TMP/nolock"
same_shards "$TMP/one-out" "$TMP/nolock"
check "the holder's file stays" [ ! -e "$TMP/nolock/.lock-holder" ]
echo "$(hostname) $(cat /proc/sys/kernel/random/boot_id) $$ 1" >"$TMP/nolock/.lock-holder"
expect 0 '' shim TD_SHIM_NOLOCK=1 "$TDGEN" -c "$TMP/one.ini" --quiet output.dir="$TMP/nolock"
echo "elsewhere x 1 1" >"$TMP/nolock/.lock-holder"
expect 6 'process 1 on elsewhere.*remove .*lock-holder' shim TD_SHIM_NOLOCK=1 "$TDGEN" -c "$TMP/one.ini" \
    output.dir="$TMP/nolock"
expect 6 'process 1 on elsewhere' shim TD_SHIM_NOLOCK=1 "$TDGEN" merge "$TMP/merged" "$TMP/nolock"

# --- two writers that do not know of each other: whatever happens to them, no shard is bad
races=${TDGEN_TEST_RACES:-8}
for i in $(seq "$races"); do
    rm -rf "$TMP/race"
    for k in 1 2; do
        LD_PRELOAD=$TD_SHIM TD_SHIM_NOLOCK=1 TD_SHIM_PRIVATE=1 "$TDGEN" -c "$TMP/one.ini" --quiet \
            output.dir="$TMP/race" run.batch_tokens=$((256 * k)) >/dev/null 2>&1 &
        sleep "0.0$((RANDOM % 10))"
    done
    wait
    for f in "$TMP/race"/shard-*.safetensors; do
        [ ! -e "$f" ] || cmp -s "$f" "$TMP/one-out/$(basename "$f")" || fail "race $i: $(basename "$f") is bad"
    done
    expect 0 '' run output.dir="$TMP/race"
    same_shards "$TMP/one-out" "$TMP/race"
    expect 0 '^OK' "$TDGEN" verify "$TMP/race"
done
echo "$races races of two writers"
finish
