/* fixture.c - tokenizers out of JSON texts: see fixture.h. */
#include "test/common.h"
#include "fixture.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include "base/memory.h"
#include "base/strbuf.h"

td_status fixture_load(const char *json, const char *config, td_tokenizer **out, td_error *err) {
    char *dir = test_temp_dir();
    if (json)
        test_write_file(dir, "tokenizer.json", json, strlen(json));
    if (config)
        test_write_file(dir, "tokenizer_config.json", config, strlen(config));
    td_status rc = td_tokenizer_load(dir, out, err);
    test_remove_tree(dir);
    return rc;
}

static const char *or_null(const char *s) {
    return s ? s : "null";
}

char *fixture_json(const fixture_parts *p) {
    return td_asprintf(
        "{\"version\":\"1.0\",\"truncation\":{\"max_length\":3},\"padding\":null,\"added_tokens\":%"
        "s,"
        "\"normalizer\":%s,\"pre_tokenizer\":%s,\"post_processor\":%s,\"decoder\":%s,\"model\":{"
        "\"type\":\"BPE\",\"vocab\":%s,\"merges\":%s%s}}",
        p->added ? p->added : "[]", or_null(p->normalizer), or_null(p->pre_tokenizer),
        or_null(p->post_processor), or_null(p->decoder), p->vocab ? p->vocab : "{}",
        p->merges ? p->merges : "[]", p->model_options ? p->model_options : "");
}

td_tokenizer *fixture_make(const fixture_parts *p) {
    td_tokenizer *tok = NULL;
    td_error err = {0};
    char *json = fixture_json(p);
    OK(fixture_load(json, NULL, &tok, &err));
    free(json);
    return tok;
}

char *fixture_byte_vocab(const char *more) {
    td_strbuf b = {0};
    int n_moved = 0;
    td_strbuf_puts(&b, "{");
    for (int i = 0; i < 256; i++) {
        bool printable = (i >= '!' && i <= '~') || (i >= 0xa1 && i <= 0xac) || i >= 0xae;
        td_strbuf_printf(&b, "%s\"\\u%04x\":%d", i ? "," : "", printable ? i : 256 + n_moved++, i);
    }
    td_strbuf_printf(&b, "%s}", more);
    return b.data;
}

const char *fixture_ids(const td_tokenizer *tok, const char *text, size_t n, bool special,
                        td_strbuf *out) {
    td_tok_scratch *s = NULL;
    td_ids ids = {0};
    td_error err = {0};
    OK(td_tok_scratch_create(tok, &s, &err));
    OK(td_tokenizer_encode(tok, s, text, n, special, &ids, &err));
    td_strbuf_clear(out);
    td_strbuf_puts(out, "");
    for (size_t i = 0; i < ids.n; i++)
        td_strbuf_printf(out, "%s%d", i ? " " : "", ids.ids[i]);
    td_ids_free(&ids);
    td_tok_scratch_free(s);
    return out->data;
}
