/* WordPiece and WordLevel: a piece is a word. */
#include <stdlib.h>
#include <string.h>
#include "tokenizer/internal.h"
#include "base/memory.h"
#include "base/strbuf.h"

td_status tok_words_load(const json_t *v, const char *where, tok_model *m, td_error *err) {
    const char *unk = m->kind == TOK_MODEL_WORDPIECE ? "[UNK]" : "<unk>", *prefix = "##";
    int64_t max_chars = 100;
    td_status rc = td_json_opt_str(v, "unk_token", where, TD_E_MODEL, &unk, err);
    if (rc != TD_OK)
        return rc;
    m->unk_id = tok_vocab_find(&m->vocab, unk, strlen(unk));
    if (m->kind == TOK_MODEL_WORDLEVEL)
        return TD_OK;
    rc = td_json_opt_int(v, "max_input_chars_per_word", 0, INT32_MAX, where, TD_E_MODEL, &max_chars,
                         err);
    if (rc == TD_OK)
        rc = td_json_opt_str(v, "continuing_subword_prefix", where, TD_E_MODEL, &prefix, err);
    if (rc != TD_OK)
        return rc;
    m->max_word_chars = (size_t)max_chars;
    m->prefix.n = strlen(prefix);
    m->prefix.text = td_strndup(prefix, m->prefix.n);
    return m->prefix.text ? TD_OK : td_error_nomem(err, "a prefix", m->prefix.n);
}

static size_t count_chars(const char *p, size_t n) {
    size_t k = 0;
    for (size_t i = 0; i < n; i++)
        k += ((uint8_t)p[i] & 0xc0) != 0x80;
    return k;
}

/* The longest entry that p[from..n) begins with; *end is where it ends. */
static int32_t longest(const tok_model *m, td_tok_scratch *s, const char *p, size_t n, size_t from,
                       size_t *end) {
    const char *word = p + from;
    size_t extra = 0;
    if (from > 0) {
        td_strbuf_clear(&s->word);
        td_strbuf_append(&s->word, m->prefix.text, m->prefix.n);
        td_strbuf_append(&s->word, p + from, n - from);
        if (s->word.oom)
            return -1;
        word = s->word.data;
        extra = m->prefix.n;
    }
    for (*end = n; *end > from;) {
        int32_t id = tok_vocab_find(&m->vocab, word, extra + *end - from);
        if (id >= 0)
            return id;
        do
            --*end;
        while (*end > from && ((uint8_t)p[*end] & 0xc0) == 0x80);
    }
    return -1;
}

td_status tok_words_piece(const tok_model *m, td_tok_scratch *s, const char *p, size_t n,
                          size_t *n_ids, td_error *err) {
    size_t k = 0;
    bool known = true;
    if (m->kind == TOK_MODEL_WORDLEVEL) {
        int32_t id = tok_vocab_find(&m->vocab, p, n);
        known = id >= 0;
        s->sym_id[k++] = id;
    } else {
        known = count_chars(p, n) <= m->max_word_chars;
        for (size_t at = 0, end; known && at < n; at = end) {
            int32_t id = longest(m, s, p, n, at, &end);
            known = id >= 0;
            s->sym_id[k++] = id;
        }
        if (s->word.oom)
            return td_error_nomem(err, "a word", n);
    }
    if (!known) {
        if (m->unk_id < 0)
            return td_error_set(err, TD_E_DATA,
                                "the tokenizer knows no \"%.*s\" and has no unknown token",
                                (int)TD_MIN(n, 40), p);
        s->sym_id[0] = m->unk_id;
        k = 1;
    }
    *n_ids = k;
    return TD_OK;
}
