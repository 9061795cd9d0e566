/* The byte format of a shard: tensor table and header. See layout.h. */
#include "record/layout.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Shapes are spelt in the letters of the manifest: n samples, N tokens, R rows, K, nT. */
static const td_tensor_doc docs[TD_T_COUNT] = {
    [TD_T_SAMPLE_OFFSETS] = {"sample_offsets", TD_I64, "n+1",
                             "token range of sample i: input_ids[o[i]:o[i+1]]", false},
    [TD_T_SAMPLE_INDEX] = {"sample_index", TD_I64, "n", "dataset row of the sample, from 0", false},
    [TD_T_SAMPLE_START] = {"sample_start", TD_I64, "n",
                           "token offset within the dataset row where the sample begins (split)",
                           false},
    [TD_T_ROW_OFFSETS] = {"row_offsets", TD_I64, "n+1",
                          "recorded rows of sample i: row tensors [o[i]:o[i+1]]", false},
    [TD_T_SAMPLE_ID_OFFSETS] = {"sample_id_offsets", TD_I64, "n+1",
                                "range of the sample's id in sample_id_bytes", false},
    [TD_T_INPUT_IDS] = {"input_ids", TD_I32, "N", "all tokens, samples in dataset order", false},
    [TD_T_ROW_POSITION] = {"row_position", TD_I32, "R",
                           "position t of the row within its sample; the row predicts token t+1",
                           true},
    [TD_T_TOPK_IDS] = {"topk_ids", TD_I32, "R, K",
                       "most probable tokens, by log-probability descending, ties by the lower id; "
                       "-1 in places left free",
                       true},
    [TD_T_TOPK_LOGPROBS_F32] = {"topk_logprobs", TD_F32, "R, K",
                                "log-probability of topk_ids over the full vocabulary", true},
    [TD_T_LOGSUMEXP] = {"logsumexp", TD_F32, "R",
                        "log sum exp of the raw logits: logit = log-probability + logsumexp", true},
    [TD_T_LOGSUMEXP_T] = {"logsumexp_t", TD_F32, "R, nT",
                          "log sum exp of logits / T for each of capture.temperatures", true},
    [TD_T_TAIL_MASS] = {"tail_mass", TD_F32, "R",
                        "probability of all tokens outside topk_ids, summed from its terms", true},
    [TD_T_TARGET_LOGPROB] = {"target_logprob", TD_F32, "R",
                             "log-probability of the token that follows in the data", true},
    [TD_T_TARGET_RANK] = {"target_rank", TD_I32, "R",
                          "rank of the token that follows, from 0, in the order of topk_ids", true},
    [TD_T_ENTROPY] = {"entropy", TD_F32, "R", "entropy of the full distribution, in nats", true},
    [TD_T_TOPK_LOGPROBS_F16] = {"topk_logprobs", TD_F16, "R, K",
                                "log-probability of topk_ids over the full vocabulary", true},
    [TD_T_LOSS_MASK] = {"loss_mask", TD_U8, "N",
                        "1 where the token is a training target; 0 at a sample's first token",
                        false},
    [TD_T_SAMPLE_DEVICE] = {"sample_device", TD_U8, "n",
                            "index into device_kinds of the shard's metadata", false},
    [TD_T_SAMPLE_STATUS] = {"sample_status", TD_U8, "n",
                            "0 recorded, 1 skipped because it could not be computed", false},
    [TD_T_SAMPLE_ID_BYTES] = {"sample_id_bytes", TD_U8, "B", "UTF-8 of the samples' ids", false},
};

const td_tensor_doc *td_layout_doc(td_tensor_id id) {
    return &docs[id];
}

const char *td_layout_dtype_name(td_dtype t) {
    static const char *const name[TD_DTYPE_COUNT] = {"F32", "BF16", "F16", "I32", "I64", "U8"};
    return name[t];
}

bool td_layout_has(const td_capture_spec *spec, bool has_ids, td_tensor_id id) {
    switch (id) {
    case TD_T_SAMPLE_ID_OFFSETS:
    case TD_T_SAMPLE_ID_BYTES:
        return has_ids;
    case TD_T_TOPK_LOGPROBS_F32:
        return spec->logprob_dtype == TD_F32;
    case TD_T_TOPK_LOGPROBS_F16:
        return spec->logprob_dtype == TD_F16;
    case TD_T_LOGSUMEXP_T:
        return spec->n_temperatures > 0;
    default:
        return true;
    }
}

bool td_layout_init(td_layout *l, const td_capture_spec *spec, const td_layout_counts *c) {
    if (c->n_samples < 0 || c->n_tokens < 0 || c->n_rows < 0 || c->n_id_bytes < -1 ||
        spec->top_k < 1 || spec->n_temperatures < 0)
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
        switch ((td_tensor_id)i) {
        case TD_T_SAMPLE_OFFSETS:
        case TD_T_ROW_OFFSETS:
        case TD_T_SAMPLE_ID_OFFSETS:
            t->shape[0] = c->n_samples + 1;
            break;
        case TD_T_INPUT_IDS:
        case TD_T_LOSS_MASK:
            t->shape[0] = c->n_tokens;
            break;
        case TD_T_SAMPLE_ID_BYTES:
            t->shape[0] = c->n_id_bytes;
            break;
        default:
            t->shape[0] = docs[i].row_tensor ? c->n_rows : c->n_samples;
            break;
        }
        uint64_t size = (uint64_t)t->shape[0] * td_dtype_size(t->dtype);
        if ((uint64_t)t->shape[0] > UINT64_MAX / 2 / 8)
            return false;
        if (i == TD_T_TOPK_IDS || i == TD_T_TOPK_LOGPROBS_F16 || i == TD_T_TOPK_LOGPROBS_F32 ||
            i == TD_T_LOGSUMEXP_T) {
            t->n_dims = 2;
            t->shape[1] = i == TD_T_LOGSUMEXP_T ? spec->n_temperatures : spec->top_k;
            if (__builtin_mul_overflow(size, (uint64_t)t->shape[1], &size))
                return false;
        }
        if (__builtin_add_overflow(at, size, &at) || at > INT64_MAX)
            return false;
        t->end = at;
        l->n_present++;
    }
    l->data_size_bytes = at;
    return true;
}

void td_shard_name(int64_t number, char out[TD_SHARD_NAME_SIZE]) {
    snprintf(out, TD_SHARD_NAME_SIZE, "shard-%06lld.safetensors", (long long)number);
}

int64_t td_shard_name_parse(const char *name) {
    if (strncmp(name, "shard-", 6) != 0)
        return -1;
    size_t digits = strspn(name + 6, "0123456789");
    if (digits < 6 || digits > 18 || strcmp(name + 6 + digits, ".safetensors") != 0)
        return -1;
    long long n = strtoll(name + 6, NULL, 10);
    char canonical[TD_SHARD_NAME_SIZE];
    td_shard_name(n, canonical);
    return strcmp(canonical, name) == 0 ? n : -1;
}

/* --- header --------------------------------------------------------------------------------- */

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
    bool ok =
        o && set_text(o, "header_hash", zeros16) &&
        set_hash(o, "data_hash", hashes ? hashes->data : 0) && set_tensor_hashes(o, l, hashes) &&
        set_text(o, "schema", "tdgen-record-1") && set_hash(o, "fingerprint", m->fingerprint) &&
        set_number(o, "shard", m->number) && set_number(o, "row_begin", m->row_begin) &&
        set_number(o, "row_end", m->row_end) && set_hash(o, "source_hash", m->source_hash) &&
        set_number(o, "n_samples", l->counts.n_samples) &&
        set_number(o, "n_tokens", l->counts.n_tokens) &&
        set_number(o, "n_rows", l->counts.n_rows) && set_number(o, "n_skipped", m->n_skipped) &&
        set_number(o, "n_bad_rows", m->n_bad_rows) &&
        set_number(o, "n_overflow_rows", m->n_overflow_rows) && set_kinds(o, m) &&
        set_text(o, "alignment", TD_TEXT_ALIGNMENT) && set_text(o, "logarithm", TD_TEXT_LOGARITHM);
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
