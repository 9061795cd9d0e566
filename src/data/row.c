/* row.c - the row in hand: its buffers, and what all formats do with texts and ids. */
#include "data/row.h"

#include <stdlib.h>
#include <string.h>
#include "base/memory.h"
#include "base/strbuf.h"

/* What stands in front of a text with special tokens, and not without them. */
static td_status find_bos(td_row_maker *m, td_error *err) {
    td_ids plain = {0};
    td_status rc = td_tokenizer_encode(m->tok, m->scratch, "a", 1, true, &m->ids, err);
    if (rc == TD_OK)
        rc = td_tokenizer_encode(m->tok, m->scratch, "a", 1, false, &plain, err);
    if (rc == TD_OK && m->ids.n > plain.n && plain.n > 0 &&
        memcmp(m->ids.ids + 1, plain.ids, plain.n * sizeof *plain.ids) == 0)
        m->bos_id = m->ids.ids[0];
    td_ids_free(&plain);
    m->ids.n = 0;
    return rc;
}

td_status td_row_maker_init(td_row_maker *m, const td_config *cfg, const td_tokenizer *tok,
                            const td_source_limits *lim, td_error *err) {
    td_row_maker r = {.cfg = cfg, .tok = tok, .lim = *lim, .bos_id = -1};
    if (tok) {
        td_status rc = td_tok_scratch_create(tok, &r.scratch, err);
        if (rc == TD_OK && cfg->data.add_special_tokens)
            rc = find_bos(&r, err);
        if (rc != TD_OK) {
            td_row_maker_free(&r);
            return rc;
        }
    }
    *m = r;
    return TD_OK;
}

void td_row_maker_free(td_row_maker *m) {
    td_tok_scratch_free(m->scratch);
    td_strbuf_free(&m->text);
    td_strbuf_free(&m->id);
    td_ids_free(&m->ids);
    free(m->mask);
    *m = (td_row_maker){0};
}

void td_row_begin(td_row_maker *m) {
    m->ids.n = 0;
    td_strbuf_clear(&m->id);
}

td_status td_row_reserve(td_row_maker *m, size_t need, td_error *err) {
    need = TD_MAX(need, (size_t)1);
    if (!td_grow((void **)&m->ids.ids, &m->ids.cap, need, sizeof *m->ids.ids) ||
        !td_grow((void **)&m->mask, &m->mask_cap, need, 1))
        return td_error_nomem(err, "the tokens of a row", need);
    return TD_OK;
}

td_status td_row_encode(td_row_maker *m, const char *text, size_t n_bytes, bool special,
                        bool target, td_error *err) {
    size_t before = m->ids.n;
    if (m->tok) {
        td_status rc =
            td_tokenizer_encode(m->tok, m->scratch, text, n_bytes, special, &m->ids, err);
        if (rc == TD_OK)
            rc = td_row_reserve(m, m->ids.n, err);
        if (rc != TD_OK)
            return rc;
    } else {
        size_t n = n_bytes / 4 + (n_bytes % 4 != 0);
        td_status rc = td_row_reserve(m, before + n, err);
        if (rc != TD_OK)
            return rc;
        memset(m->ids.ids + before, 0, n * sizeof *m->ids.ids);
        m->ids.n += n;
    }
    memset(m->mask + before, target, m->ids.n - before);
    return TD_OK;
}

td_status td_row_end(td_row_maker *m, size_t own, td_error *err) {
    if (!m->cfg->data.append_eos)
        return TD_OK;
    int32_t eos = m->lim.eos_id < 0 ? 0 : m->lim.eos_id; /* < 0: only while estimating */
    if (m->ids.n > own && m->lim.eos_id >= 0 && m->ids.ids[m->ids.n - 1] == eos)
        return TD_OK;
    td_status rc = td_row_reserve(m, m->ids.n + 1, err);
    if (rc != TD_OK)
        return rc;
    m->mask[m->ids.n] = 1;
    m->ids.ids[m->ids.n++] = eos;
    return TD_OK;
}

td_status td_row_check_range(const td_row_maker *m, const char *where, td_error *err) {
    if (m->lim.n_vocab <= 0)
        return TD_OK;
    for (size_t i = 0; i < m->ids.n; i++)
        if (m->ids.ids[i] < 0 || m->ids.ids[i] >= m->lim.n_vocab)
            return td_error_set(
                err, TD_E_DATA,
                "%s: its token %zu is id %d, but the model's vocabulary ends at %d; "
                "does the tokenizer belong to this model?",
                where, i, (int)m->ids.ids[i], (int)m->lim.n_vocab - 1);
    return TD_OK;
}

td_status td_row_from_text(td_row_maker *m, const char *text, size_t n_bytes, const char *where,
                           td_error *err) {
    td_row_begin(m);
    td_status rc = td_row_encode(m, text, n_bytes, m->cfg->data.add_special_tokens, true, err);
    if (rc == TD_OK)
        rc = td_row_end(m, n_bytes ? 0 : m->ids.n, err);
    return rc == TD_OK ? td_row_check_range(m, where, err) : rc;
}

int64_t td_int_at(const void *data, td_int_kind kind, size_t i) {
    const unsigned char *p = data;
    switch (kind) {
    case TD_INT_U8:
        return p[i];
    case TD_INT_I8:
        return (int8_t)p[i];
    case TD_INT_U16: {
        uint16_t v;
        memcpy(&v, p + 2 * i, 2);
        return v;
    }
    case TD_INT_I16: {
        int16_t v;
        memcpy(&v, p + 2 * i, 2);
        return v;
    }
    case TD_INT_U32: {
        uint32_t v;
        memcpy(&v, p + 4 * i, 4);
        return v;
    }
    case TD_INT_I32: {
        int32_t v;
        memcpy(&v, p + 4 * i, 4);
        return v;
    }
    case TD_INT_U64: {
        uint64_t v;
        memcpy(&v, p + 8 * i, 8);
        return v > INT64_MAX ? INT64_MAX : (int64_t)v;
    }
    case TD_INT_I64: {
        int64_t v;
        memcpy(&v, p + 8 * i, 8);
        return v;
    }
    }
    return -1;
}

int64_t td_row_max_id(const td_row_maker *m) {
    return m->lim.n_vocab > 0 ? m->lim.n_vocab - 1 : INT32_MAX - 1;
}

td_status td_row_from_ids(td_row_maker *m, const void *data, td_int_kind kind, const uint8_t *mask,
                          size_t n, const char *where, td_error *err) {
    td_row_begin(m);
    td_status rc = td_row_reserve(m, n, err);
    if (rc != TD_OK)
        return rc;
    int64_t max = td_row_max_id(m);
    for (size_t i = 0; i < n; i++) {
        int64_t id = td_int_at(data, kind, i);
        if (id < 0 || id > max)
            return td_error_set(err, TD_E_DATA, "%s: input_ids[%zu] is %lld, expected 0 to %lld",
                                where, i, (long long)id, (long long)max);
        if (mask && mask[i] > 1)
            return td_error_set(err, TD_E_DATA, "%s: loss_mask[%zu] is %d, expected 0 or 1", where,
                                i, mask[i]);
        m->ids.ids[i] = (int32_t)id;
        m->mask[i] = mask ? mask[i] : 1;
    }
    m->ids.n = n;
    return td_row_end(m, 0, err);
}
