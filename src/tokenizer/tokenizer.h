/* tokenizer.h - Hugging Face tokenizer.json, exact.
 *
 * Order of use: td_tokenizer_load -> td_tok_scratch_create in each thread -> td_tokenizer_encode
 * for each text -> td_tok_scratch_free -> td_tokenizer_free.
 *
 * A td_tokenizer is read-only after load and shared by threads; each thread encodes through a
 * td_tok_scratch of its own, which must not outlive the tokenizer. A scratch holds 2 MB of cached
 * pieces and buffers that grow to about 40 bytes per byte of the longest text.
 *
 * Text may hold any byte, U+0000 included; invalid UTF-8 is replaced by U+FFFD as Python's
 * errors="replace" does. Results are those of `tokenizers` 0.22, whose Unicode tables (16 for
 * patterns, an older one for NFC) are followed where they differ from our libraries'.
 *
 * Implemented: models BPE (all options but dropout), WordPiece, WordLevel, Unigram; normalizers
 * NFC, NFD, NFKC, NFKD, Lowercase, StripAccents, Nmt, BertNormalizer, Precompiled, ByteLevel,
 * Prepend, Replace, Strip; pre-tokenizers Split, ByteLevel, Metaspace, Digits, Punctuation,
 * Whitespace, WhitespaceSplit, BertPreTokenizer, CharDelimiterSplit, FixedLength; post-processors
 * TemplateProcessing, ByteLevel, BertProcessing, RobertaProcessing; decoders ByteLevel, Replace,
 * ByteFallback, Fuse, Strip, Metaspace, WordPiece, CTC, BPEDecoder; sequences of all of them; added
 * tokens with all their flags. Anything else (the pre-tokenizer UnicodeScripts, for one) that
 * tokenizer.json asks for is refused by name at load (TD_E_MODEL). Its "truncation" and "padding"
 * are ignored: tdgen cuts samples itself (data.max_length) and never pads.
 */
#ifndef TDGEN_TOKENIZER_TOKENIZER_H
#define TDGEN_TOKENIZER_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/status.h"
#include "base/strbuf.h"

typedef struct td_tokenizer td_tokenizer;
typedef struct td_tok_scratch td_tok_scratch;

typedef struct td_ids {
    int32_t *ids;
    size_t n, cap;
} td_ids;
void td_ids_free(td_ids *ids);

/* Reads MODEL_DIR/tokenizer.json (and tokenizer_config.json beside it, when there, for bos/eos, and
 * config.json for td_tokenizer_note). */
td_status td_tokenizer_load(const char *model_dir, td_tokenizer **out, td_error *err);
void td_tokenizer_free(td_tokenizer *tok);

td_status td_tok_scratch_create(const td_tokenizer *tok, td_tok_scratch **out, td_error *err);
void td_tok_scratch_free(td_tok_scratch *s);

/* Appends the ids of text[0..n) to *out. add_special: run the post-processor's template; special
 * tokens written in the text are recognised in any case. On failure *out is as before: TD_E_DATA
 * when the split pattern gives up on this text, TD_E_INTERNAL when memory is exhausted. `s` must
 * have been created for `tok`. */
td_status td_tokenizer_encode(const td_tokenizer *tok, td_tok_scratch *s, const char *text,
                              size_t n, bool add_special, td_ids *out, td_error *err);

/* Appends the text of ids to *out through the decoder of tokenizer.json. Unknown ids give nothing.
 */
td_status td_tokenizer_decode(const td_tokenizer *tok, const int32_t *ids, size_t n,
                              bool skip_special, td_strbuf *out, td_error *err);
/* Appends the text of one token as it stands inside a line (leading space kept; control characters
 * and bytes that are no UTF-8 by themselves as \n, \r, \t, \xNN): for tables a person reads. An
 * unknown id gives nothing. */
void td_tokenizer_token_text(const td_tokenizer *tok, int32_t id, td_strbuf *out);

/* 1 + the highest id (added tokens included). */
int32_t td_tokenizer_n_vocab(const td_tokenizer *tok);
/* In which way Hugging Face's AutoTokenizer makes another tokenizer of the folder than its
 * tokenizer.json says, and what to do, for a warning; NULL when it does not. */
const char *td_tokenizer_note(const td_tokenizer *tok);
/* From tokenizer_config.json (string or object form), -1 when absent. */
int32_t td_tokenizer_bos_id(const td_tokenizer *tok);
int32_t td_tokenizer_eos_id(const td_tokenizer *tok);
/* xxh3 of tokenizer.json's bytes with null in the place of the values of "truncation" and
 * "padding", which change no id, and which a tokenizer that was used for training is saved with. */
uint64_t td_tokenizer_hash(const td_tokenizer *tok);
/* The same of a file's bytes, which need not be a tokenizer that tdgen can load. */
td_status td_tokenizer_text_hash(const char *text, size_t n, uint64_t *out, td_error *err);
/* xxh3 of all bytes of tokenizer.json: the hash that older versions wrote. What compares a hash of
 * a file with that of the tokenizer takes either. The two are the same where both blocks are null.
 */
uint64_t td_tokenizer_bytes_hash(const td_tokenizer *tok);

#endif
