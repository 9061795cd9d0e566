/* Added tokens: strings that are cut out of the text before anything else sees it.
 *
 * Two tries, as in HF: tokens with normalized=false are searched in the raw text; the others, in
 * their normalised form, in the normalised sections between. Leftmost-longest.
 */
#include <stdlib.h>
#include <string.h>
#include "tokenizer/internal.h"
#include "base/log.h"
#include "base/memory.h"

/* --- trie ------------------------------------------------------------------------------------- */

static int32_t trie_child(const tok_trie *t, int32_t node, uint8_t byte) {
    int32_t c = t->node[node].child;
    while (c >= 0 && t->node[c].byte != byte)
        c = t->node[c].sibling;
    return c;
}

static bool trie_add(tok_trie *t, const char *s, size_t n, int32_t token) {
    int32_t at = 0;
    if (t->n == 0) {
        if (!td_grow((void **)&t->node, &t->cap, 1, sizeof *t->node))
            return false;
        t->node[t->n++] = (tok_trie_node){-1, -1, -1, 0};
    }
    for (size_t i = 0; i < n; i++) {
        uint8_t byte = (uint8_t)s[i];
        int32_t c = trie_child(t, at, byte);
        if (c < 0) {
            if (t->n >= INT32_MAX ||
                !td_grow((void **)&t->node, &t->cap, t->n + 1, sizeof *t->node))
                return false;
            c = (int32_t)t->n++;
            t->node[c] = (tok_trie_node){-1, t->node[at].child, -1, byte};
            t->node[at].child = c;
        }
        at = c;
    }
    /* Of two tokens with the same normalised form the first is found. */
    if (t->node[at].token < 0)
        t->node[at].token = token;
    return true;
}

static void trie_finish(tok_trie *t) {
    for (int b = 0; b < 256; b++) {
        t->first[b] = t->n ? trie_child(t, 0, (uint8_t)b) : -1;
        if (t->first[b] >= 0) {
            t->n_first++;
            t->only_first = (uint8_t)b;
        }
    }
}

/* Leftmost-longest match at or behind `from`: the token's index, or -1. */
static int32_t trie_next(const tok_trie *t, const char *text, size_t n, size_t from, size_t *begin,
                         size_t *end) {
    if (t->n_first == 0)
        return -1;
    for (size_t i = from; i < n; i++) {
        if (t->n_first == 1) {
            const char *hit = memchr(text + i, t->only_first, n - i);
            if (!hit)
                return -1;
            i = (size_t)(hit - text);
        }
        int32_t best = -1;
        int32_t at = t->first[(uint8_t)text[i]];
        for (size_t j = i + 1; at >= 0; j++) {
            if (t->node[at].token >= 0) {
                best = t->node[at].token;
                *end = j;
            }
            if (j >= n)
                break;
            at = trie_child(t, at, (uint8_t)text[j]);
        }
        if (best >= 0) {
            *begin = i;
            return best;
        }
    }
    return -1;
}

/* --- loading ---------------------------------------------------------------------------------- */

static td_status load_token(const json_t *v, const char *where, tok_added_token *t, int64_t *id,
                            td_error *err) {
    td_status rc = tok_json_dup(v, "content", where, &t->content, &t->n, err);
    if (rc == TD_OK)
        rc = td_json_get_int(v, "id", 0, TOK_MAX_ID, where, TD_E_MODEL, id, err);
    if (rc == TD_OK)
        rc = td_json_opt_bool(v, "single_word", where, TD_E_MODEL, &t->single_word, err);
    if (rc == TD_OK)
        rc = td_json_opt_bool(v, "lstrip", where, TD_E_MODEL, &t->lstrip, err);
    if (rc == TD_OK)
        rc = td_json_opt_bool(v, "rstrip", where, TD_E_MODEL, &t->rstrip, err);
    if (rc == TD_OK)
        rc = td_json_opt_bool(v, "special", where, TD_E_MODEL, &t->special, err);
    t->normalized = !t->special;
    if (rc == TD_OK)
        rc = td_json_opt_bool(v, "normalized", where, TD_E_MODEL, &t->normalized, err);
    return rc;
}

/* HF numbers an added token that the model does not know itself, from the size of the vocabulary
 * on, whatever the file says. */
static int32_t assign_id(const tok_added *a, const tok_model *model, const tok_added_token *t,
                         int32_t max_id) {
    int32_t id = tok_vocab_find(&a->names, t->content, t->n);
    if (id < 0)
        id = tok_vocab_find(&model->vocab, t->content, t->n);
    if (id >= 0)
        return id;
    return max_id >= (int32_t)model->n_vocab ? max_id + 1 : (int32_t)model->n_vocab;
}

static td_status add_to_trie(tok_added *a, int32_t i, const tok_norms *norms, const char *where,
                             td_tok_scratch *s, td_error *err) {
    const tok_added_token *t = &a->token[i];
    const char *text = t->content;
    size_t n = t->n;
    if (t->normalized) {
        bool at_start = true;
        td_status rc = tok_norms_apply(norms, s, t->content, t->n, &text, &n, &at_start, err);
        if (rc != TD_OK)
            return rc;
    }
    /* HF would split every text at each byte where such a token is, and fail beyond ASCII. */
    if (n == 0)
        return td_error_set(
            err, TD_E_MODEL,
            "%s: the normalizer leaves nothing of the token \"%.*s\" (id %d), which "
            "has normalized = true; set it to false, or remove the token",
            where, (int)TD_MIN(t->n, 64), t->content, t->id);
    if (!trie_add(t->normalized ? &a->normalized : &a->raw, text, n, i))
        return td_error_nomem(err, "the added tokens", a->raw.n * sizeof *a->raw.node);
    return TD_OK;
}

td_status tok_added_load(const json_t *list, const tok_model *model, const tok_norms *norms,
                         td_tok_scratch *s, const char *where, tok_added *a, td_error *err) {
    size_t n = json_array_size(list), n_moved = 0;
    int32_t max_id = -1;
    td_status rc = TD_OK;
    if (list && !json_is_null(list) && !json_is_array(list))
        return td_error_set(err, TD_E_MODEL, "%s: it must be an array, but is %s", where,
                            td_json_type_name(list));
    a->token = td_calloc(n, sizeof *a->token);
    if (!a->token)
        return td_error_nomem(err, "the added tokens", n * sizeof *a->token);
    for (size_t i = 0; i < n && rc == TD_OK; i++) {
        tok_added_token *t = &a->token[a->n];
        int64_t file_id;
        rc = load_token(json_array_get(list, i), where, t, &file_id, err);
        if (rc != TD_OK || t->n == 0 || tok_vocab_find(&a->names, t->content, t->n) >= 0) {
            free(t->content); /* HF ignores empty ones, and the second of two equal ones */
            *t = (tok_added_token){0};
            continue;
        }
        t->id = assign_id(a, model, t, max_id);
        a->n++;
        n_moved += t->id != file_id;
        max_id = TD_MAX(max_id, t->id);
        rc = tok_vocab_add(&a->names, t->content, t->n, t->id, err);
        if (rc == TD_OK)
            rc = add_to_trie(a, (int32_t)a->n - 1, norms, where, s, err);
    }
    if (rc != TD_OK)
        return rc;
    if (n_moved)
        td_log_warn("%s: %zu added tokens have ids that do not follow the vocabulary; numbered as "
                    "Hugging Face's tokenizers does",
                    where, n_moved);
    trie_finish(&a->raw);
    trie_finish(&a->normalized);
    return TD_OK;
}

void tok_added_free(tok_added *a) {
    for (size_t i = 0; i < a->n; i++)
        free(a->token[i].content);
    free(a->token);
    free(a->raw.node);
    free(a->normalized.node);
    tok_vocab_free(&a->names);
    *a = (tok_added){0};
}

const tok_added_token *tok_added_by_id(const tok_added *a, int32_t id) {
    for (size_t i = 0; i < a->n; i++)
        if (a->token[i].id == id)
            return &a->token[i];
    return NULL;
}

/* --- splitting -------------------------------------------------------------------------------- */

static size_t last_char(const char *text, size_t n) {
    size_t i = n - 1;
    while (i > 0 && ((uint8_t)text[i] & 0xc0) == 0x80)
        i--;
    return i;
}

static bool word_at(const char *p, size_t n) {
    size_t len, n_ranges;
    const tok_range *r = tok_word_ranges(&n_ranges);
    return tok_in_ranges(r, n_ranges, tok_utf8_get(p, n, &len));
}

static bool stands_alone(const char *text, size_t n, size_t begin, size_t end) {
    if (begin > 0) {
        size_t i = last_char(text, begin);
        if (word_at(text + i, begin - i))
            return false;
    }
    return end == n || !word_at(text + end, n - end);
}

static bool push(tok_parts *l, size_t begin, size_t end, int32_t id) {
    if (begin >= end)
        return true;
    if (l->n == l->cap && !td_grow((void **)&l->at, &l->cap, l->n + 1, sizeof *l->at))
        return false;
    l->at[l->n++] = (tok_part){begin, end, id};
    return true;
}

td_status tok_added_split(const tok_added *a, bool normalized, const char *text, size_t n,
                          tok_parts *out, td_error *err) {
    const tok_trie *t = normalized ? &a->normalized : &a->raw;
    size_t done = 0, at = 0, begin = 0, end = 0, len;
    bool ok = true;
    int32_t i;
    out->n = 0;
    while (ok && (i = trie_next(t, text, n, at, &begin, &end)) >= 0) {
        const tok_added_token *tok = &a->token[i];
        at = end;
        if (tok->single_word && !stands_alone(text, n, begin, end))
            continue;
        if (tok->lstrip) {
            while (begin > done) {
                size_t p = last_char(text, begin);
                if (!tok_is_space(tok_utf8_get(text + p, begin - p, &len)))
                    break;
                begin = p;
            }
            /* The token before may have taken this one's spaces, and more. Of what it took all of,
             * nothing is left, and that is no token. */
            begin = TD_MAX(begin, done);
        }
        if (tok->rstrip)
            while (end < n && tok_is_space(tok_utf8_get(text + end, n - end, &len)))
                end += len;
        if (begin > end)
            continue; /* all of it went with the token before (HF panics here) */
        ok = push(out, done, begin, -1) && push(out, begin, end, tok->id);
        done = end;
    }
    if (!ok || !push(out, done, n, -1))
        return td_error_nomem(err, "the parts of a text", out->n * sizeof *out->at);
    return TD_OK;
}
