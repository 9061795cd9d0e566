#!/usr/bin/env bash
# Folders of every revision (test/fixtures/record): whole and readable; resumed to the same bytes at their own
# revision, refused at another.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

kind_here() { "$TDGEN" devices | sed -n 's/^cpu:0 .*\(cpu [^ ].*\)$/\1/p'; }

revision=$(sed -n 's/^#define TD_NUMERICS_REVISION //p' src/record/record.h)
n_folders=0
n_same_kind=0
for folder in test/fixtures/record/revision-*/*/; do
    folder=${folder%/}
    made=${folder%/*}
    made=${made##*-}
    name=$made-$(basename "$folder")
    mapfile -t settings <"$folder.args"
    n_folders=$((n_folders + 1))

    expect 0 '^OK: .* 2 shards: 6 samples' "$TDGEN" verify "$folder"
    expect 0 '"fingerprint"' "$TDGEN" inspect --json "$folder"
    expect 0 '6 samples, ' "$TDGEN" inspect "$folder"
    expect 0 '' "$TDGEN" inspect --html "$TMP/$name.html" "$folder"

    # One shard is missing, as after a kill: the same command completes the folder.
    cp -r "$folder" "$TMP/$name"
    chmod -R u+w "$TMP/$name"
    rm "$TMP/$name"/shard-000001.*
    sed -i '/"shard": 1,/d' "$TMP/$name/shards.jsonl"
    if [ "$made" != "$revision" ]; then
        expect 6 "is $made in the folder and $revision in this run" "$TDGEN" -c conf/demo.ini \
            output.dir="$TMP/$name" "${settings[@]}"
        check "$name: the manifest was touched" cmp "$folder/manifest.json" "$TMP/$name/manifest.json"
        check "$name: a shard was touched" cmp "$folder"/shard-000000.* "$TMP/$name"/shard-000000.*
        continue
    fi
    check "$name: the index still names the shard" [ "$(wc -l <"$TMP/$name/shards.jsonl")" = 1 ]
    expect 0 'Shards: 1 written, 1 already there' "$TDGEN" -c conf/demo.ini output.dir="$TMP/$name" "${settings[@]}"
    expect 0 '^OK: .* 2 shards: 6 samples' "$TDGEN" verify "$TMP/$name"
    # Only how much there is to be is new, which folders did not say before.
    for d in "$folder" "$TMP/$name"; do
        python3 -c 'import json, sys; m = json.load(open(sys.argv[1])); m.pop("extent", 0); m.pop("hash")
print(json.dumps(m, sort_keys=True))' "$d/manifest.json"
    done >"$TMP/manifests"
    check "$name: the manifest was touched" [ "$(sort -u "$TMP/manifests" | wc -l)" = 1 ]
    expect 0 'complete, 100% of 6 dataset rows' "$TDGEN" inspect "$TMP/$name"
    # The bits are those of the device kind that made the folder, in an optimised build.
    if [ -n "${TDGEN_TEST_BITS-}" ] && "$TDGEN" inspect "$folder" | grep -qF "$(kind_here)"; then
        n_same_kind=$((n_same_kind + 1))
        for file in shard-000000 shard-000001; do
            check "$name: $file differs" cmp "$folder/$file".* "$TMP/$name/$file".*
        done
        check "$name: the index differs" cmp "$folder/shards.jsonl" "$TMP/$name/shards.jsonl"
    else
        cmp -s "$folder"/shard-000000.* "$TMP/$name"/shard-000000.* || fail "$name: a finished shard was touched"
    fi
done
for ((r = 1; r <= revision; r++)); do
    n=$(find "test/fixtures/record/revision-$r" -mindepth 1 -maxdepth 1 -type d | wc -l)
    [ "$n" -eq 7 ] || fail "$n folders of revision $r instead of 7"
done
[ "$n_folders" -eq $((7 * revision)) ] || fail "$n_folders folders instead of $((7 * revision))"
[ "$n_same_kind" -gt 0 ] ||
    echo "SKIPPED: this build is not optimised, or this CPU is of another device kind than the committed folders: resumed shards were verified, not compared byte for byte"

# Another setting is another run, also to a folder of an earlier version.
cp -r "test/fixtures/record/revision-$revision/topk" "$TMP/other"
mapfile -t settings <"test/fixtures/record/revision-$revision/topk.args"
expect 6 'capture.top_k is 16 in the folder and 8 in this run' "$TDGEN" -c conf/demo.ini output.dir="$TMP/other" \
    "${settings[@]}" capture.top_k=8
finish
