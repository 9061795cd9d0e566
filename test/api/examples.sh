#!/usr/bin/env bash
# The example programs over libtdgen.so: what read_record says of a demo run is what tdgen inspect
# says, and score computes the numbers of the record again, bit for bit.
# Environment: TDGEN, READ_RECORD, SCORE (programs), TD_SOURCE_DIR (the repository).
# shellcheck source=../e2e/lib.sh
. "$(dirname "$0")/../e2e/lib.sh"
: "${READ_RECORD:?}" "${SCORE:?}"

dir=$TMP/demo
expect 0 'Done in' "$TDGEN" -c conf/demo.ini data.max_samples=8 output.dir="$dir"

# "position target logprob rank entropy tail" of the rows of `tdgen inspect --json`
json_rows() {
    awk '
        $1 == "\"position\":" { if (n++) print row; row = $2 + 0; in_target = 0 }
        $1 == "\"target\":" { in_target = 1 }
        !n { next }
        in_target && $1 == "\"id\":" { row = row " " $2 + 0 }
        in_target && $1 == "\"logprob\":" { sub(/,$/, "", $2); row = row " " $2 }
        in_target && $1 == "\"rank\":" { row = row " " $2 + 0; in_target = 0 }
        $1 == "\"entropy\":" || $1 == "\"tail_mass\":" { sub(/,$/, "", $2); row = row " " $2 }
        END { if (n) print row }' "$1"
}
# the ids of its tokens
json_ids() {
    awk '$1 == "\"tokens\":" && $2 == "[" { on = 1 } $1 == "\"rows\":" && on { exit } on && $1 == "\"id\":" { print $2 + 0 }' "$1"
}
# The rows of an example's output, exponents as JSON writes them.
rows_of() { grep -E '^[0-9]+ [0-9]+ ' "$1" | sed 's/e-0/e-/g'; }
count() { sed -n "s/^ \"$2\": \([0-9]*\),$/\1/p" "$1"; }

n_rows=0
for sample in 0 5 7; do
    expect 0 '' "$TDGEN" inspect "$dir" --json --sample "$sample"
    cp "$TMP/out" "$TMP/json"
    json_rows "$TMP/json" >"$TMP/want"
    mapfile -t ids < <(json_ids "$TMP/json")
    check "sample $sample has no rows in the JSON" [ -s "$TMP/want" ]
    check "sample $sample has not one token more than rows" \
        [ "${#ids[@]}" -eq $(($(wc -l <"$TMP/want") + 1)) ]

    "$READ_RECORD" "$dir" "$sample" >"$TMP/read" 2>"$TMP/noise"
    check "read_record failed on sample $sample" [ $? -eq 0 ]
    rows_of "$TMP/read" >"$TMP/read_rows"
    check "read_record and inspect differ on sample $sample" cmp "$TMP/want" "$TMP/read_rows"
    check "the counts of read_record and inspect differ" \
        grep -qx "shards $(count "$TMP/json" shards) samples $(count "$TMP/json" samples) tokens $(count "$TMP/json" tokens) rows $(count "$TMP/json" rows)" "$TMP/read"
    check "not 16 candidates" [ "$(grep -c '^candidate' "$TMP/read")" -eq 16 ]

    "$SCORE" demo/teacher cpu "${ids[@]}" >"$TMP/score" 2>>"$TMP/noise"
    check "score failed on sample $sample" [ $? -eq 0 ]
    rows_of "$TMP/score" >"$TMP/score_rows"
    check "score and the record differ on sample $sample" cmp "$TMP/want" "$TMP/score_rows"
    check "an example wrote to stderr" [ ! -s "$TMP/noise" ]
    n_rows=$((n_rows + $(wc -l <"$TMP/want")))
done
check "hardly any row was compared: $n_rows" [ "$n_rows" -gt 50 ]

expect 1 'no output folder' "$READ_RECORD" "$TMP"
expect 1 'sample 8: .* has 8' "$READ_RECORD" "$dir" 8
expect 1 'token 1 has the id 99999' "$SCORE" demo/teacher cpu 1 99999
expect 1 'no device is called "tpu"' "$SCORE" demo/teacher tpu 1 2
finish
