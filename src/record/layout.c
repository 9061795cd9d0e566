/* The byte format of a shard: tensor table and header. See layout.h. */
#include "record/layout.h"
#include "base/hash.h"
#include "base/memory.h"
#include "base/strbuf.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TOP_MEANING "most probable tokens, by log-probability descending, ties by the lower id"
#define PACKED_MEANING "little-endian bit order, id_bits each, all ones where there is no id"
#define Q8_MEANING                                                                                 \
    "q: log-probability = max - q / 254 * (max - min) with the row's q8_range; 255 = no token"

/* Shapes are spelt in the letters of the manifest: n samples, N tokens, R rows, K, nT, nA, E, V,
 * C. */
static const td_tensor_doc docs[TD_T_COUNT] = {
    [TD_T_SAMPLE_OFFSETS] = {"sample_offsets", TD_I64, "n+1",
                             "token range of sample i: input_ids[o[i]:o[i+1]]", false, false},
    [TD_T_SAMPLE_INDEX] = {"sample_index", TD_I64, "n", "dataset row of the sample, from 0", false,
                           false},
    [TD_T_SAMPLE_START] = {"sample_start", TD_I64, "n",
                           "token offset within the dataset row where the sample begins (split)",
                           false, false},
    [TD_T_ROW_OFFSETS] = {"row_offsets", TD_I64, "n+1",
                          "recorded rows of sample i: row tensors [o[i]:o[i+1]]", false, false},
    [TD_T_SAMPLE_ID_OFFSETS] = {"sample_id_offsets", TD_I64, "n+1",
                                "range of the sample's id in sample_id_bytes", false, false},
    [TD_T_TOPP_OFFSETS] = {"topp_offsets", TD_I64, "R+1",
                           "entries of row r: topp_ids[o[r]:o[r+1]], topp_logprobs likewise", false,
                           false},
    [TD_T_DRAW_OFFSETS] = {"draw_offsets", TD_I64, "R+1",
                           "entries of row r: draw_ids[o[r]:o[r+1]], the other draw_* likewise",
                           false, false},
    [TD_T_INPUT_IDS] = {"input_ids", TD_I32, "N", "all tokens, samples in dataset order", false,
                        false},
    [TD_T_ROW_POSITION] = {"row_position", TD_I32, "R",
                           "position t of the row within its sample; the row predicts token t+1",
                           true, false},
    [TD_T_TOPK_IDS] = {"topk_ids", TD_I32, "R, K", TOP_MEANING "; -1 in places left free", true,
                       false},
    [TD_T_TOPK_LOGPROBS_F32] = {"topk_logprobs", TD_F32, "R, K",
                                "log-probability of topk_ids over the full vocabulary", true,
                                false},
    [TD_T_LOGSUMEXP] = {"logsumexp", TD_F32, "R",
                        "log sum exp of the raw logits: logit = log-probability + logsumexp", true,
                        false},
    [TD_T_LOGSUMEXP_T] = {"logsumexp_t", TD_F32, "R, nT",
                          "log sum exp of logits / T for each of capture.temperatures", true,
                          false},
    [TD_T_TAIL_MASS] = {"tail_mass", TD_F32, "R",
                        "probability of all tokens that are not stored for the row (outside the "
                        "top set where there is one, else not drawn), summed from its terms",
                        true, false},
    [TD_T_TARGET_LOGPROB] = {"target_logprob", TD_F32, "R",
                             "log-probability of the token that follows in the data", true, false},
    [TD_T_TARGET_RANK] = {"target_rank", TD_I32, "R",
                          "rank of the token that follows, from 0: by log-probability descending, "
                          "ties by the lower id",
                          true, false},
    [TD_T_ENTROPY] = {"entropy", TD_F32, "R", "entropy of the full distribution, in nats", true,
                      false},
    [TD_T_ALWAYS_LOGPROBS] = {"always_logprobs", TD_F32, "R, nA",
                              "log-probability of each of capture.always_ids; -inf: impossible",
                              true, false},
    [TD_T_PROPOSAL_LOGSUMEXP] = {"proposal_logsumexp", TD_F32, "R",
                                 "log sum p^t, t = proposal_power: draws came from q with log q = "
                                 "t log p - this",
                                 true, false},
    [TD_T_TOPK_Q8_RANGE] = {"topk_logprobs_q8_range", TD_F32, "R, 2",
                            "max and min of the row's topk_logprobs", true, false},
    [TD_T_TOPP_Q8_RANGE] = {"topp_logprobs_q8_range", TD_F32, "R, 2",
                            "max and min of the row's topp_logprobs", true, false},
    [TD_T_DRAW_Q8_RANGE] = {"draw_logprobs_q8_range", TD_F32, "R, 2",
                            "max and min of the row's draw_logprobs", true, false},
    [TD_T_TOPP_IDS] = {"topp_ids", TD_I32, "E",
                       "smallest set of " TOP_MEANING
                       ", with mass top_p; at least min_k and at most top_k",
                       false, true},
    [TD_T_TOPP_LOGPROBS_F32] = {"topp_logprobs", TD_F32, "E",
                                "log-probability of topp_ids over the full vocabulary", false,
                                true},
    [TD_T_DRAW_IDS] = {"draw_ids", TD_I32, "E", "the different tokens drawn for a row, ascending",
                       false, true},
    [TD_T_DRAW_COUNTS] = {"draw_counts", TD_I32, "E",
                          "how often the token was drawn; n_draws a row in all", false, true},
    [TD_T_DRAW_LOGPROBS_F32] = {"draw_logprobs", TD_F32, "E",
                                "the teacher's log-probability of draw_ids", false, true},
    [TD_T_LOGITS_F32] = {"logits", TD_F32, "R, V", "logits of the whole vocabulary", true, false},
    [TD_T_HIDDEN_F32] = {"hidden", TD_F32, "R, C", "final-norm state that lm_head reads", true,
                         false},
    [TD_T_TOPK_LOGPROBS_F16] = {"topk_logprobs", TD_F16, "R, K",
                                "log-probability of topk_ids over the full vocabulary", true,
                                false},
    [TD_T_TOPP_LOGPROBS_F16] = {"topp_logprobs", TD_F16, "E",
                                "log-probability of topp_ids over the full vocabulary", false,
                                true},
    [TD_T_DRAW_LOGPROBS_F16] = {"draw_logprobs", TD_F16, "E",
                                "the teacher's log-probability of draw_ids", false, true},
    [TD_T_LOGITS_BF16] = {"logits", TD_BF16, "R, V", "logits of the whole vocabulary", true, false},
    [TD_T_LOGITS_F16] = {"logits", TD_F16, "R, V", "logits of the whole vocabulary", true, false},
    [TD_T_HIDDEN_BF16] = {"hidden", TD_BF16, "R, C", "final-norm state that lm_head reads", true,
                          false},
    [TD_T_HIDDEN_F16] = {"hidden", TD_F16, "R, C", "final-norm state that lm_head reads", true,
                         false},
    [TD_T_LOSS_MASK] = {"loss_mask", TD_U8, "N",
                        "1 where the token is a training target; 0 at a sample's first token",
                        false, false},
    [TD_T_SAMPLE_DEVICE] = {"sample_device", TD_U8, "n",
                            "index into device_kinds of the shard's metadata", false, false},
    [TD_T_SAMPLE_STATUS] = {"sample_status", TD_U8, "n",
                            "0 recorded, 1 skipped because it could not be computed", false, false},
    [TD_T_SAMPLE_ID_BYTES] = {"sample_id_bytes", TD_U8, "B", "UTF-8 of the samples' ids", false,
                              false},
    [TD_T_TOPK_IDS_PACKED] = {"topk_ids_packed", TD_U8, "R, ceil(K*id_bits/8)",
                              "topk_ids, each row from a byte's begin: " PACKED_MEANING, true,
                              false},
    [TD_T_TOPK_Q8] = {"topk_logprobs_q8", TD_U8, "R, K", Q8_MEANING, true, false},
    [TD_T_TOPP_IDS_PACKED] = {"topp_ids_packed", TD_U8, "ceil(E*id_bits/8)",
                              "topp_ids of all rows in one stream: " PACKED_MEANING, false, true},
    [TD_T_TOPP_Q8] = {"topp_logprobs_q8", TD_U8, "E", Q8_MEANING, false, true},
    [TD_T_DRAW_IDS_PACKED] = {"draw_ids_packed", TD_U8, "ceil(E*id_bits/8)",
                              "draw_ids of all rows in one stream: " PACKED_MEANING, false, true},
    [TD_T_DRAW_Q8] = {"draw_logprobs_q8", TD_U8, "E", Q8_MEANING, false, true},
};

const td_tensor_doc *td_layout_doc(td_tensor_id id) {
    return &docs[id];
}

const char *td_layout_dtype_name(td_dtype t) {
    static const char *const name[TD_DTYPE_COUNT] = {"F32", "BF16", "F16", "I32", "I64", "U8"};
    return name[t];
}

bool td_layout_has(const td_capture_spec *s, bool has_ids, td_tensor_id id) {
    bool topk = td_capture_has_topk_rows(s->mode), draws = td_capture_has_draws(s->mode);
    bool topp = td_capture_has_topp(s->mode), full = s->mode == TD_CAPTURE_FULL;
    bool hidden = s->mode == TD_CAPTURE_HIDDEN;
    bool f32 = !s->q8 && s->logprob_dtype == TD_F32, f16 = !s->q8 && s->logprob_dtype == TD_F16;
    switch (id) {
    case TD_T_SAMPLE_OFFSETS:
    case TD_T_SAMPLE_INDEX:
    case TD_T_SAMPLE_START:
    case TD_T_ROW_OFFSETS:
    case TD_T_INPUT_IDS:
    case TD_T_ROW_POSITION:
    case TD_T_LOSS_MASK:
    case TD_T_SAMPLE_DEVICE:
    case TD_T_SAMPLE_STATUS:
        return true;
    case TD_T_SAMPLE_ID_OFFSETS:
    case TD_T_SAMPLE_ID_BYTES:
        return has_ids;
    case TD_T_LOGSUMEXP:
    case TD_T_TAIL_MASS:
    case TD_T_TARGET_LOGPROB:
    case TD_T_TARGET_RANK:
    case TD_T_ENTROPY:
        return !hidden;
    case TD_T_LOGSUMEXP_T:
        return !hidden && s->n_temperatures > 0;
    case TD_T_ALWAYS_LOGPROBS:
        return !hidden && s->n_always > 0;
    case TD_T_PROPOSAL_LOGSUMEXP:
        return td_capture_has_proposal(s);
    case TD_T_TOPK_IDS:
        return topk && !s->pack_ids;
    case TD_T_TOPK_IDS_PACKED:
        return topk && s->pack_ids;
    case TD_T_TOPK_LOGPROBS_F32:
        return topk && f32;
    case TD_T_TOPK_LOGPROBS_F16:
        return topk && f16;
    case TD_T_TOPK_Q8:
    case TD_T_TOPK_Q8_RANGE:
        return topk && s->q8;
    case TD_T_TOPP_OFFSETS:
        return topp;
    case TD_T_TOPP_IDS:
        return topp && !s->pack_ids;
    case TD_T_TOPP_IDS_PACKED:
        return topp && s->pack_ids;
    case TD_T_TOPP_LOGPROBS_F32:
        return topp && f32;
    case TD_T_TOPP_LOGPROBS_F16:
        return topp && f16;
    case TD_T_TOPP_Q8:
    case TD_T_TOPP_Q8_RANGE:
        return topp && s->q8;
    case TD_T_DRAW_OFFSETS:
    case TD_T_DRAW_COUNTS:
        return draws;
    case TD_T_DRAW_IDS:
        return draws && !s->pack_ids;
    case TD_T_DRAW_IDS_PACKED:
        return draws && s->pack_ids;
    case TD_T_DRAW_LOGPROBS_F32:
        return draws && f32;
    case TD_T_DRAW_LOGPROBS_F16:
        return draws && f16;
    case TD_T_DRAW_Q8:
    case TD_T_DRAW_Q8_RANGE:
        return draws && s->q8;
    case TD_T_LOGITS_F32:
    case TD_T_LOGITS_BF16:
    case TD_T_LOGITS_F16:
        return full && docs[id].dtype == s->dense_dtype;
    case TD_T_HIDDEN_F32:
    case TD_T_HIDDEN_BF16:
    case TD_T_HIDDEN_F16:
        return hidden && docs[id].dtype == s->dense_dtype;
    case TD_T_COUNT:
        break;
    }
    return false;
}

/* Second dimension of a tensor; 0 when it has one dimension only. */
static int64_t columns_of(const td_capture_spec *s, td_tensor_id id) {
    switch (id) {
    case TD_T_TOPK_IDS:
    case TD_T_TOPK_LOGPROBS_F32:
    case TD_T_TOPK_LOGPROBS_F16:
    case TD_T_TOPK_Q8:
        return s->top_k;
    case TD_T_TOPK_IDS_PACKED:
        return ((int64_t)s->top_k * td_capture_id_bits(s) + 7) / 8;
    case TD_T_TOPK_Q8_RANGE:
    case TD_T_TOPP_Q8_RANGE:
    case TD_T_DRAW_Q8_RANGE:
        return 2;
    case TD_T_LOGSUMEXP_T:
        return s->n_temperatures;
    case TD_T_ALWAYS_LOGPROBS:
        return s->n_always;
    case TD_T_LOGITS_F32:
    case TD_T_LOGITS_BF16:
    case TD_T_LOGITS_F16:
        return s->n_vocab;
    case TD_T_HIDDEN_F32:
    case TD_T_HIDDEN_BF16:
    case TD_T_HIDDEN_F16:
        return s->n_hidden;
    default:
        return 0;
    }
}

static int64_t length_of(const td_capture_spec *s, const td_layout_counts *c, td_tensor_id id) {
    switch (id) {
    case TD_T_SAMPLE_OFFSETS:
    case TD_T_ROW_OFFSETS:
    case TD_T_SAMPLE_ID_OFFSETS:
        return c->n_samples + 1;
    case TD_T_TOPP_OFFSETS:
    case TD_T_DRAW_OFFSETS:
        return c->n_rows + 1;
    case TD_T_INPUT_IDS:
    case TD_T_LOSS_MASK:
        return c->n_tokens;
    case TD_T_SAMPLE_ID_BYTES:
        return c->n_id_bytes;
    case TD_T_TOPP_IDS_PACKED:
    case TD_T_DRAW_IDS_PACKED:
        return (c->n_entries * td_capture_id_bits(s) + 7) / 8;
    default:
        return docs[id].ragged ? c->n_entries : docs[id].row_tensor ? c->n_rows : c->n_samples;
    }
}

bool td_layout_init(td_layout *l, const td_capture_spec *spec, const td_layout_counts *c) {
    static const int64_t max =
        INT64_MAX / 64; /* no product below overflows with 8 bytes, 32 bits */
    if (c->n_samples < 0 || c->n_tokens < 0 || c->n_rows < 0 || c->n_id_bytes < -1 ||
        c->n_entries < 0 || c->n_samples > max || c->n_tokens > max || c->n_rows > max ||
        c->n_id_bytes > max || c->n_entries > max || spec->n_temperatures < 0 ||
        (td_capture_has_topk_rows(spec->mode) && spec->top_k < 1))
        return false;
    *l = (td_layout){.spec = *spec, .counts = *c};
    uint64_t at = 0;
    for (int i = 0; i < TD_T_COUNT; i++) {
        td_layout_tensor *t = &l->tensor[i];
        t->name = docs[i].name;
        t->dtype = docs[i].dtype;
        t->present = td_layout_has(spec, c->n_id_bytes >= 0, (td_tensor_id)i);
        t->begin = t->end = at;
        t->n_dims = 1;
        if (!t->present)
            continue;
        t->shape[0] = length_of(spec, c, (td_tensor_id)i);
        t->shape[1] = columns_of(spec, (td_tensor_id)i);
        t->n_dims = t->shape[1] ? 2 : 1;
        uint64_t size = (uint64_t)t->shape[0] * td_dtype_size(t->dtype);
        if (t->n_dims == 2 && __builtin_mul_overflow(size, (uint64_t)t->shape[1], &size))
            return false;
        if (__builtin_add_overflow(at, size, &at) || at > INT64_MAX)
            return false;
        t->end = at;
        l->n_present++;
    }
    l->data_size_bytes = at;
    return true;
}

uint64_t td_layout_row_bytes(const td_layout *l, td_tensor_id id) {
    const td_layout_tensor *t = &l->tensor[id];
    return td_dtype_size(t->dtype) * (t->n_dims == 2 ? (uint64_t)t->shape[1] : UINT64_C(1));
}

void td_shard_name(int64_t number, bool packed, char out[TD_SHARD_NAME_SIZE]) {
    snprintf(out, TD_SHARD_NAME_SIZE, "shard-%06lld.safetensors%s", (long long)number,
             packed ? ".zst" : "");
}

int64_t td_shard_name_parse(const char *name, bool *packed) {
    if (strncmp(name, "shard-", 6) != 0)
        return -1;
    size_t digits = strspn(name + 6, "0123456789");
    const char *rest = name + 6 + digits;
    if (digits < 6 || digits > 18)
        return -1;
    bool zst = strcmp(rest, ".safetensors.zst") == 0;
    if (!zst && strcmp(rest, ".safetensors") != 0)
        return -1;
    long long n = strtoll(name + 6, NULL, 10);
    char canonical[TD_SHARD_NAME_SIZE];
    td_shard_name(n, zst, canonical);
    if (strcmp(canonical, name) != 0)
        return -1;
    if (packed)
        *packed = zst;
    return n;
}

/* --- header ----------------------------------------------------------------------------------- */

static const char zeros16[] = "0000000000000000";

static bool set_text(json_t *o, const char *key, const char *text) {
    return json_object_set_new(o, key, json_string(text)) == 0;
}

static bool set_number(json_t *o, const char *key, int64_t v) {
    char s[24];
    snprintf(s, sizeof s, "%lld", (long long)v);
    return set_text(o, key, s);
}

static bool set_hash(json_t *o, const char *key, uint64_t h) {
    char s[17];
    td_hash_hex(h, s);
    return set_text(o, key, s);
}

/* __metadata__ holds strings only, so the list of device kinds is JSON within a string. */
static bool set_kinds(json_t *o, const td_shard_meta *m) {
    json_t *a = json_array();
    for (int32_t i = 0; a && i < m->n_kinds; i++)
        if (json_array_append_new(a, json_string(m->device_kinds[i])) != 0)
            goto fail;
    char *text = a ? json_dumps(a, JSON_COMPACT) : NULL;
    bool ok = text && set_text(o, "device_kinds", text);
    free(text);
    json_decref(a);
    return ok;
fail:
    json_decref(a);
    return false;
}

static bool set_tensor_hashes(json_t *o, const td_layout *l, const td_shard_hashes *hashes) {
    char s[TD_T_COUNT * 17 + 1] = "";
    for (int32_t i = 0; i < l->n_present; i++) {
        td_hash_hex(hashes ? hashes->tensor[i] : 0, s + i * 17);
        s[i * 17 + 16] = i + 1 < l->n_present ? ',' : '\0';
    }
    return set_text(o, "tensor_hashes", s);
}

static json_t *metadata(const td_layout *l, const td_shard_meta *m, const td_shard_hashes *hashes) {
    json_t *o = json_object();
    char *capture = td_spec_text(&l->spec);
    bool ok =
        o && capture && set_text(o, "capture", capture) && set_text(o, "header_hash", zeros16) &&
        set_hash(o, "data_hash", hashes ? hashes->data : 0) && set_tensor_hashes(o, l, hashes) &&
        set_text(o, "schema", TD_SHARD_SCHEMA) && set_hash(o, "fingerprint", m->fingerprint) &&
        set_number(o, "shard", m->number) && set_number(o, "row_begin", m->row_begin) &&
        set_number(o, "row_end", m->row_end) && set_hash(o, "source_hash", m->source_hash) &&
        set_number(o, "n_samples", l->counts.n_samples) &&
        set_number(o, "n_tokens", l->counts.n_tokens) &&
        set_number(o, "n_rows", l->counts.n_rows) &&
        set_number(o, "n_entries", l->counts.n_entries) &&
        set_number(o, "n_skipped", m->n_skipped) && set_number(o, "n_bad_rows", m->n_bad_rows) &&
        set_number(o, "n_overflow_rows", m->n_overflow_rows) && set_kinds(o, m) &&
        set_text(o, "alignment", TD_TEXT_ALIGNMENT) && set_text(o, "logarithm", TD_TEXT_LOGARITHM);
    free(capture);
    if (!ok) {
        json_decref(o);
        return NULL;
    }
    return o;
}

static bool add_tensor(json_t *root, const td_layout_tensor *t) {
    json_t *shape = t->n_dims == 2
                        ? json_pack("[I,I]", (json_int_t)t->shape[0], (json_int_t)t->shape[1])
                        : json_pack("[I]", (json_int_t)t->shape[0]);
    json_t *o =
        shape ? json_pack("{s:s,s:o,s:[I,I]}", "dtype", td_layout_dtype_name(t->dtype), "shape",
                          shape, "data_offsets", (json_int_t)t->begin, (json_int_t)t->end)
              : NULL;
    return o && json_object_set_new(root, t->name, o) == 0;
}

static const char header_hash_key[] = "\"header_hash\":\"";

bool td_layout_header_hash(char *header, size_t n, uint64_t *out) {
    char *f = memmem(header, n, header_hash_key, sizeof header_hash_key - 1);
    if (!f)
        return false;
    f += sizeof header_hash_key - 1;
    if ((size_t)(header + n - f) < 17)
        return false;
    char saved[16];
    memcpy(saved, f, 16);
    memcpy(f, zeros16, 16);
    *out = td_hash64(header, n);
    memcpy(f, saved, 16);
    return true;
}

td_status td_layout_header(const td_layout *l, const td_shard_meta *m,
                           const td_shard_hashes *hashes, td_strbuf *out, td_error *err) {
    td_status rc = TD_OK;
    size_t start = out->len;
    char *text = NULL;
    json_t *root = json_object(), *meta = metadata(l, m, hashes);
    if (!root || !meta || json_object_set(root, "__metadata__", meta) != 0)
        goto nomem;
    for (int i = 0; i < TD_T_COUNT; i++)
        if (l->tensor[i].present && !add_tensor(root, &l->tensor[i]))
            goto nomem;
    text = json_dumps(root, JSON_COMPACT);
    if (!text)
        goto nomem;
    size_t n = strlen(text), padded = (n + 8 + 63) / 64 * 64 - 8;
    uint8_t len[8];
    for (int i = 0; i < 8; i++)
        len[i] = (uint8_t)((uint64_t)padded >> (8 * i));
    td_strbuf_append(out, len, 8);
    td_strbuf_append(out, text, n);
    for (size_t i = n; i < padded; i++)
        td_strbuf_append(out, " ", 1);
    if (out->oom)
        goto nomem;
    if (hashes) {
        uint64_t h = 0;
        char *header = out->data + start + 8, hex[17];
        td_layout_header_hash(header, padded, &h);
        td_hash_hex(h, hex);
        memcpy((char *)memmem(header, padded, header_hash_key, sizeof header_hash_key - 1) +
                   sizeof header_hash_key - 1,
               hex, 16);
    }
    goto done;
nomem:
    rc = td_error_nomem(err, "the header of a shard", 0);
done:
    free(text);
    json_decref(meta);
    json_decref(root);
    return rc;
}
