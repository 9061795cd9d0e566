/* From text to ids: the stages one after the other, and the memory they work in. */
#include <stdlib.h>
#include "tokenizer/internal.h"
#include "base/memory.h"
#include "base/strbuf.h"

enum { JIT_STACK_START_BYTES = 32 << 10, JIT_STACK_MAX_BYTES = 16 << 20 };

td_status tok_scratch_new(const td_tokenizer *tok, bool with_cache, td_tok_scratch **out,
                          td_error *err) {
    td_tok_scratch *s = td_calloc(1, sizeof *s);
    if (!s)
        return td_error_nomem(err, "the tokenizer's working memory", sizeof *s);
    s->tok = tok;
    /* Matches are read from the first pair of offsets only. */
    s->match_data = pcre2_match_data_create(1, NULL);
    s->match_context = pcre2_match_context_create(NULL);
    s->jit_stack = pcre2_jit_stack_create(JIT_STACK_START_BYTES, JIT_STACK_MAX_BYTES, NULL);
    if (with_cache)
        s->cache = td_calloc(TOK_CACHE_SLOTS, sizeof *s->cache);
    if (!s->match_data || !s->match_context || !s->jit_stack || (with_cache && !s->cache)) {
        td_tok_scratch_free(s);
        return td_error_nomem(err, "the tokenizer's working memory",
                              TOK_CACHE_SLOTS * sizeof *s->cache);
    }
    pcre2_jit_stack_assign(s->match_context, NULL, s->jit_stack);
    *out = s;
    return TD_OK;
}

td_status td_tok_scratch_create(const td_tokenizer *tok, td_tok_scratch **out, td_error *err) {
    return tok_scratch_new(tok, true, out, err);
}

void td_tok_scratch_free(td_tok_scratch *s) {
    if (!s)
        return;
    td_strbuf_free(&s->clean);
    for (int i = 0; i < 2; i++) {
        td_strbuf_free(&s->norm[i]);
        td_strbuf_free(&s->pre[i]);
        free(s->spans[i].at);
    }
    free(s->parts.at);
    free(s->inner.at);
    pcre2_match_data_free(s->match_data);
    pcre2_match_context_free(s->match_context);
    pcre2_jit_stack_free(s->jit_stack);
    free(s->cache);
    free(s->sym_id);
    free(s->sym_prev);
    free(s->sym_next);
    free(s->sym_rank);
    free(s->heap);
    free(s->best);
    free(s->node);
    free(s->waiting);
    free(s->first_waiting);
    td_strbuf_free(&s->word);
    free(s);
}

static td_status encode_text(td_tok_scratch *s, const char *text, size_t n, bool at_start,
                             td_ids *out, td_error *err) {
    const td_tokenizer *tok = s->tok;
    const tok_spans *pieces;
    const char *base;
    td_status rc = tok_pres_apply(&tok->pres, s, text, n, at_start, &base, &pieces, err);
    for (size_t i = 0; rc == TD_OK && i < pieces->n; i++) {
        const tok_span *p = &pieces->at[i];
        rc = tok_model_encode(&tok->model, s, base + p->begin, p->end - p->begin, out, err);
    }
    return rc;
}

/* A section between added tokens of the raw text. */
static td_status encode_section(td_tok_scratch *s, const char *text, size_t n, bool at_start,
                                td_ids *out, td_error *err) {
    const td_tokenizer *tok = s->tok;
    td_status rc = tok_norms_apply(&tok->norms, s, text, n, &text, &n, &at_start, err);
    if (rc != TD_OK || n == 0)
        return rc;
    if (tok->added.normalized.n_first == 0)
        return encode_text(s, text, n, at_start, out, err);
    rc = tok_added_split(&tok->added, true, text, n, &s->inner, err);
    for (size_t i = 0; rc == TD_OK && i < s->inner.n; i++) {
        const tok_part *p = &s->inner.at[i];
        if (p->id < 0)
            rc = encode_text(s, text + p->begin, p->end - p->begin, at_start && p->begin == 0, out,
                             err);
        else if (!tok_ids_push(out, p->id))
            rc = td_error_nomem(err, "token ids", out->n * sizeof *out->ids);
    }
    return rc;
}

static td_status push_all(const td_ids *ids, td_ids *out, td_error *err) {
    for (size_t i = 0; i < ids->n; i++)
        if (!tok_ids_push(out, ids->ids[i]))
            return td_error_nomem(err, "token ids", out->n * sizeof *out->ids);
    return TD_OK;
}

static td_status encode(const td_tokenizer *tok, td_tok_scratch *s, const char *text, size_t n,
                        bool add_special, td_ids *out, td_error *err) {
    td_status rc = TD_OK;
    if (tok_utf8_valid_prefix(text, n) < n) {
        td_strbuf_clear(&s->clean);
        tok_utf8_append_lossy(&s->clean, text, n);
        if (s->clean.oom)
            return td_error_nomem(err, "a text", n);
        text = s->clean.data;
        n = s->clean.len;
    }
    if (add_special)
        rc = push_all(&tok->post.prefix, out, err);
    if (rc == TD_OK)
        rc = tok_added_split(&tok->added, false, text, n, &s->parts, err);
    for (size_t i = 0; rc == TD_OK && i < s->parts.n; i++) {
        const tok_part *p = &s->parts.at[i];
        if (p->id < 0)
            rc = encode_section(s, text + p->begin, p->end - p->begin, p->begin == 0, out, err);
        else if (!tok_ids_push(out, p->id))
            rc = td_error_nomem(err, "token ids", out->n * sizeof *out->ids);
    }
    if (rc == TD_OK && add_special)
        rc = push_all(&tok->post.suffix, out, err);
    return rc;
}

td_status td_tokenizer_encode(const td_tokenizer *tok, td_tok_scratch *s, const char *text,
                              size_t n, bool add_special, td_ids *out, td_error *err) {
    size_t before = out->n;
    if (s->tok != tok)
        return td_error_set(err, TD_E_INTERNAL,
                            "td_tokenizer_encode: this scratch belongs to another tokenizer");
    td_status rc = encode(tok, s, text, n, add_special, out, err);
    if (rc != TD_OK)
        out->n = before;
    return rc;
}
