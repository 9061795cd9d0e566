/* tok_internal.h - what the files of the tokenizer share. Private to src/model/tok_*.c.
 *
 * The way of a text, as in Hugging Face's `tokenizers`:
 *
 *   text -> valid UTF-8 -> added tokens of the raw text cut out (tok_added) -> per remaining
 * section: normalisers (tok_norm) -> added tokens of the normalised text cut out -> pre-tokeniser
 * steps that cut it into pieces (tok_pretok) -> BPE of each piece (tok_bpe) -> template of the
 * post-processor
 *
 * Byte-level tokenizers never build the visible alphabet ("Ġ" for a space) while encoding: the
 * vocabulary is indexed by the bytes its entries stand for, and pieces stay raw bytes.
 *
 * Hazards: everything in tokenizer.json is untrusted; ids are bounded by TOK_MAX_ID so that tables
 * indexed by id stay small; strings may hold U+0000.
 */
#ifndef TDGEN_TOK_INTERNAL_H
#define TDGEN_TOK_INTERNAL_H

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <jansson.h>
#include "tdgen/json.h"
#include "tdgen/tokenizer.h"
#include "tdgen/util.h"

#define TOK_MAX_ID ((1 << 24) - 1)
#define TOK_NO_RANK UINT32_MAX
#define TOK_MAX_STEPS 32   /* of one pipeline stage; real ones have at most 5 */
#define TOK_MAX_NESTING 16 /* of Sequence inside Sequence; messages say the number */

/* --- UTF-8 (tok_utf8.c) ------------------------------------------------------------------------
 */

/* Decodes the code point at p[0..n), n >= 1, of valid UTF-8; *len is its length. */
uint32_t tok_utf8_get(const char *p, size_t n, size_t *len);
/* Writes 1 to 4 bytes, returns their number. */
size_t tok_utf8_put(uint32_t cp, char out[4]);
/* Length of the longest valid prefix. */
size_t tok_utf8_valid_prefix(const char *p, size_t n);
/* Appends p[0..n) with each maximal invalid part replaced by U+FFFD (Unicode 3.9, as Python's
 * errors="replace" and Rust's from_utf8_lossy do). */
void tok_utf8_append_lossy(td_strbuf *out, const char *p, size_t n);
/* The White_Space property, which is also HF's \s. */
bool tok_is_space(uint32_t cp);

/* --- the visible alphabet of byte-level tokenizers (tok_utf8.c) --------------------------------
 */

/* Code point that stands for a byte ("Ġ" U+0120 for 0x20). */
uint32_t tok_byte_to_char(uint8_t byte);
/* The byte that a code point stands for, -1 for none. */
int tok_char_to_byte(uint32_t cp);

/* --- strings <-> ids (tok_vocab.c) -------------------------------------------------------------
 */

typedef struct tok_vocab {
    char *blob;
    size_t blob_len, blob_cap;
    size_t *offset;   /* by id; SIZE_MAX where the id has no string */
    uint32_t *length; /* by id, bytes */
    size_t n_ids, ids_cap;
    int32_t *slot;             /* open addressing, -1 empty; of the string's hash */
    uint32_t *tag;             /* upper half of the hash, beside each slot */
    size_t n_slots, n_strings; /* n_slots is a power of two */
} tok_vocab;

/* A string given twice keeps its last id; an id given to two strings is refused (TD_E_MODEL). */
td_status tok_vocab_add(tok_vocab *v, const char *s, size_t n, int32_t id, td_error *err);
int32_t tok_vocab_find(const tok_vocab *v, const char *s, size_t n); /* -1: not there */
/* NULL when the id has no string. */
const char *tok_vocab_text(const tok_vocab *v, int32_t id, size_t *n);
void tok_vocab_free(tok_vocab *v);

/* --- patterns (tok_regex.c) --------------------------------------------------------------------
 */

typedef struct tok_pattern {
    char *literal; /* String pattern, or NULL */
    size_t n_literal;
    pcre2_code *code; /* Regex pattern */
} tok_pattern;

/* Oniguruma syntax as tokenizer.json uses it; what PCRE2 would read differently is refused. */
td_status tok_pattern_compile(tok_pattern *p, const char *regex, size_t n, const char *where,
                              td_error *err);
td_status tok_pattern_literal(tok_pattern *p, const char *s, size_t n, td_error *err);
/* {"Regex": "..."} or {"String": "..."} at key "pattern" of obj. */
td_status tok_pattern_from_json(tok_pattern *p, const json_t *obj, const char *where,
                                td_error *err);
void tok_pattern_free(tok_pattern *p);
/* The first match in text[from..n): *found, *begin, *end. Matches are never empty. */
td_status tok_pattern_next(const tok_pattern *p, td_tok_scratch *s, const char *text, size_t n,
                           size_t from, bool *found, size_t *begin, size_t *end, td_error *err);

/* --- normalisers (tok_norm.c) ------------------------------------------------------------------
 */

typedef enum tok_norm_kind {
    TOK_NORM_NFC,
    TOK_NORM_PREPEND,
    TOK_NORM_REPLACE,
    TOK_NORM_STRIP
} tok_norm_kind;

typedef struct tok_norm {
    tok_norm_kind kind;
    tok_pattern pattern; /* REPLACE */
    char *content;       /* PREPEND, REPLACE */
    size_t n_content;
    bool left, right; /* STRIP */
} tok_norm;

typedef struct tok_norms {
    tok_norm step[TOK_MAX_STEPS];
    size_t n;
} tok_norms;

td_status tok_norms_load(const json_t *v, const char *where, tok_norms *out, td_error *err);
void tok_norms_free(tok_norms *s);
/* *out and *n_out point into the input or into the scratch's buffers. *at_start stays true when the
 * result's first character comes from the input's first one. */
td_status tok_norms_apply(const tok_norms *steps, td_tok_scratch *s, const char *text, size_t n,
                          const char **out, size_t *n_out, bool *at_start, td_error *err);

/* --- pre-tokenisers (tok_pretok.c) -------------------------------------------------------------
 */

typedef struct tok_span {
    size_t begin, end;
} tok_span;

typedef struct tok_spans {
    tok_span *at;
    size_t n, cap;
} tok_spans;

typedef enum tok_behavior {
    TOK_REMOVED,
    TOK_ISOLATED,
    TOK_MERGED_WITH_PREVIOUS,
    TOK_MERGED_WITH_NEXT,
    TOK_CONTIGUOUS
} tok_behavior;

typedef enum tok_prepend { TOK_PREPEND_FIRST, TOK_PREPEND_ALWAYS, TOK_PREPEND_NEVER } tok_prepend;

typedef enum tok_pre_kind {
    TOK_PRE_SPLIT,
    TOK_PRE_PREFIX_SPACE, /* ByteLevel's add_prefix_space */
    TOK_PRE_METASPACE     /* without its split, which is a SPLIT step of its own */
} tok_pre_kind;

typedef struct tok_pre {
    tok_pre_kind kind;
    tok_pattern pattern;
    tok_behavior behavior;
    bool invert;
    tok_prepend prepend;
    char replacement[4]; /* METASPACE: one code point */
    size_t n_replacement;
} tok_pre;

typedef struct tok_pres {
    tok_pre step[TOK_MAX_STEPS];
    size_t n;
    bool byte_level;
} tok_pres;

td_status tok_pres_load(const json_t *v, const char *where, tok_pres *out, td_error *err);
void tok_pres_free(tok_pres *p);
/* The pieces are spans of *out_text. at_start: the text begins where the whole input begins. */
td_status tok_pres_apply(const tok_pres *p, td_tok_scratch *s, const char *text, size_t n,
                         bool at_start, const char **out_text, const tok_spans **pieces,
                         td_error *err);

/* --- BPE (tok_bpe.c, tok_bpe_load.c) -----------------------------------------------------------
 */

typedef struct tok_merge {
    uint64_t pair; /* left id << 32 | right id; UINT64_MAX: empty slot */
    uint32_t rank;
    int32_t new_id;
} tok_merge;

typedef struct tok_bpe {
    tok_vocab vocab;   /* strings as written in the file, added tokens not included */
    size_t n_vocab;    /* entries, which is where HF starts to number added tokens */
    tok_vocab bytes;   /* byte-level with ignore_merges: the bytes of each entry */
    tok_merge *merges; /* open addressing, n_merge_slots a power of two */
    size_t n_merge_slots;
    int32_t *rank_id; /* new id by rank */
    size_t n_ranks;
    int32_t byte_id[256];  /* byte-level: symbol of a byte. else: id of "<0xNN>". -1: none */
    int32_t ascii_id[128]; /* not byte-level: symbol of an ASCII character, -1: none */
    int32_t unk_id;        /* -1: none, unknown characters vanish */
    bool byte_level, byte_fallback, fuse_unk, ignore_merges;
    /* Not byte-level: no merge result has U+2581 after another character, so a text may be cut
     * before each U+2581 that follows something else without changing the result. */
    bool cut_at_meta;
} tok_bpe;

td_status tok_bpe_load(const json_t *model, bool byte_level, const char *where, tok_bpe *out,
                       td_error *err);
void tok_bpe_free(tok_bpe *m);
td_status tok_bpe_encode(const tok_bpe *m, td_tok_scratch *s, const char *piece, size_t n,
                         td_ids *out, td_error *err);
const tok_merge *tok_bpe_find_merge(const tok_bpe *m, int32_t left, int32_t right);

/* --- added tokens (tok_added.c) ----------------------------------------------------------------
 */

typedef struct tok_trie_node {
    int32_t child, sibling; /* -1: none */
    int32_t token;          /* index into tok_added.token, -1: no token ends here */
    uint8_t byte;
} tok_trie_node;

typedef struct tok_trie {
    tok_trie_node *node; /* [0] is the root */
    size_t n, cap;
    int32_t first[256]; /* node of each first byte, -1: none */
    int n_first;
    uint8_t only_first; /* n_first == 1: that byte, searched with memchr */
} tok_trie;

typedef struct tok_added_token {
    char *content;
    size_t n;
    int32_t id;
    bool single_word, lstrip, rstrip, normalized, special;
} tok_added_token;

typedef struct tok_added {
    tok_added_token *token;
    size_t n;
    tok_trie raw, normalized;
    tok_pattern word; /* \w as single_word needs it; compiled only when a token asks for it */
    tok_vocab names;  /* content <-> id */
} tok_added;

/* A part of a text: an added token (id >= 0) or text between them (id -1). */
typedef struct tok_part {
    size_t begin, end;
    int32_t id;
} tok_part;

typedef struct tok_parts {
    tok_part *at;
    size_t n, cap;
} tok_parts;

td_status tok_added_load(const json_t *list, const tok_bpe *bpe, const tok_norms *norms,
                         td_tok_scratch *s, const char *where, tok_added *out, td_error *err);
void tok_added_free(tok_added *a);
/* Replaces *out with the parts of the text, without empty ones. */
td_status tok_added_split(const tok_added *a, bool normalized, td_tok_scratch *s, const char *text,
                          size_t n, tok_parts *out, td_error *err);
const tok_added_token *tok_added_by_id(const tok_added *a, int32_t id);

/* --- decoders (tok_decode.c) -------------------------------------------------------------------
 */

typedef enum tok_dec_kind {
    TOK_DEC_BYTE_LEVEL,
    TOK_DEC_REPLACE,
    TOK_DEC_BYTE_FALLBACK,
    TOK_DEC_FUSE,
    TOK_DEC_STRIP,
    TOK_DEC_METASPACE
} tok_dec_kind;

typedef struct tok_dec {
    tok_dec_kind kind;
    tok_pattern pattern; /* REPLACE */
    char *content;       /* REPLACE; STRIP and METASPACE: one code point */
    size_t n_content;
    size_t start, stop;  /* STRIP */
    tok_prepend prepend; /* METASPACE */
} tok_dec;

typedef struct tok_decs {
    tok_dec step[TOK_MAX_STEPS];
    size_t n;
    bool present; /* without a decoder HF joins tokens with spaces */
} tok_decs;

td_status tok_decs_load(const json_t *v, const char *where, tok_decs *out, td_error *err);
void tok_decs_free(tok_decs *d);

/* --- post-processor (tok_post.c) ---------------------------------------------------------------
 */

typedef struct tok_post {
    td_ids prefix, suffix;
} tok_post;

td_status tok_post_load(const json_t *v, const char *where, tok_post *out, td_error *err);
void tok_post_free(tok_post *p);

/* --- the whole ---------------------------------------------------------------------------------
 */

struct td_tokenizer {
    tok_bpe bpe;
    tok_added added;
    tok_norms norms;
    tok_pres pres;
    tok_decs decs;
    tok_post post;
    int32_t n_vocab, bos_id, eos_id;
    uint64_t hash;
};

/* One thread's working memory. Buffers keep their size between calls. */
enum { TOK_CACHE_SLOTS = 1 << 15, TOK_CACHE_BYTES = 26, TOK_CACHE_IDS = 8 };

/* 64 bytes: one line of the processor's cache per lookup. */
typedef struct tok_cache_entry {
    uint32_t tag;
    uint8_t n_bytes, n_ids; /* n_bytes == 0: empty */
    char bytes[TOK_CACHE_BYTES];
    int32_t ids[TOK_CACHE_IDS];
} tok_cache_entry;

struct td_tok_scratch {
    const td_tokenizer *tok;
    td_strbuf clean;   /* the text with invalid UTF-8 replaced */
    td_strbuf norm[2]; /* normalisers write to one while reading the other */
    td_strbuf pre[2];  /* pre-tokenisers that change the text */
    tok_spans spans[2];
    tok_parts parts, inner;
    pcre2_match_data *match_data;
    pcre2_match_context *match_context;
    pcre2_jit_stack *jit_stack;
    tok_cache_entry *cache; /* NULL: none */
    /* BPE of one piece: symbols and, for long ones, links and the heap */
    int32_t *sym_id;
    int32_t *sym_prev, *sym_next;
    uint32_t *sym_rank; /* rank of the pair (symbol, next one) */
    uint64_t *heap;     /* rank << 32 | position */
    size_t sym_cap, link_cap;
    size_t heap_n, heap_cap;
};

/* Pushes one id; false when out of memory. */
bool tok_ids_push(td_ids *ids, int32_t id);
/* A scratch without a cache and tokenizer, for matching while loading. */
td_status tok_scratch_new(const td_tokenizer *tok, bool with_cache, td_tok_scratch **out,
                          td_error *err);
/* Copies a JSON string (U+0000 included) at `key`; a missing key is an error. */
td_status tok_json_dup(const json_t *obj, const char *key, const char *where, char **out, size_t *n,
                       td_error *err);

#endif
