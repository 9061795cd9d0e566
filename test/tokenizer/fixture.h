/* Small tokenizers for tests, written to a temporary folder and loaded. */
#ifndef TDGEN_TEST_TOK_FIXTURE_H
#define TDGEN_TEST_TOK_FIXTURE_H

#include "tokenizer/tokenizer.h"
#include "base/strbuf.h"

/* Loads a tokenizer from the text of a tokenizer.json and, when not NULL, of a
 * tokenizer_config.json. The folder is gone when this returns. */
td_status fixture_load(const char *json, const char *config, td_tokenizer **out, td_error *err);

/* The text of a tokenizer.json. Each argument is the JSON of a section, NULL for null;
 * model_options is put into the model object ("" for none, else starting with a comma). The caller
 * frees it. */
typedef struct fixture_parts {
    const char *added, *normalizer, *pre_tokenizer, *post_processor, *decoder;
    const char *vocab, *merges, *model_options;
} fixture_parts;
char *fixture_json(const fixture_parts *p);

/* As fixture_load(fixture_json(p)); fails the test when it does not load. */
td_tokenizer *fixture_make(const fixture_parts *p);

/* "vocab" object of byte-level BPE: the 256 visible characters in byte order, ids 0 to 255, then
 * `more` ("" or JSON members starting with a comma). By GPT-2's own rule, not by our table. */
char *fixture_byte_vocab(const char *more);

/* Ids of a text as "1 2 3", in a buffer of the caller's. */
const char *fixture_ids(const td_tokenizer *tok, const char *text, size_t n, bool special,
                        td_strbuf *out);

#endif
