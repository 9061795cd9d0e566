/* internal.h - what the files of the tokenizer share. Private to the room.
 *
 * The way of a text, as in Hugging Face's `tokenizers`:
 *
 *   text -> valid UTF-8 -> added tokens of the raw text cut out (tok_added) -> per remaining
 * section: normalisers (tok_norm) -> added tokens of the normalised text cut out -> pre-tokeniser
 * steps that cut it into pieces (tok_pretok) -> BPE of each piece (tok_model) -> template of the
 * post-processor
 *
 * Plain byte-level tokenizers (ByteLevel is the last pre-tokenizer, BPE without affixes) never
 * build the visible alphabet ("Ġ" for a space) while encoding: the vocabulary is indexed by the
 * bytes its entries stand for, and pieces stay raw bytes. The others, like Falcon's, do build it.
 *
 * Hazards: everything in tokenizer.json is untrusted; ids are bounded by TOK_MAX_ID so that tables
 * indexed by id stay small; strings may hold U+0000.
 */
#ifndef TDGEN_TOKENIZER_INTERNAL_H
#define TDGEN_TOKENIZER_INTERNAL_H

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <jansson.h>
#include "base/json.h"
#include "tokenizer/tokenizer.h"
#include "base/strbuf.h"

#define TOK_MAX_ID ((1 << 24) - 1)
#define TOK_NO_RANK UINT32_MAX
#define TOK_MAX_STEPS 32   /* of one pipeline stage; real ones have at most 5 */
#define TOK_MAX_NESTING 16 /* of Sequence inside Sequence, of classes in patterns */

/* --- steps of a pipeline stage (tok_load.c) --------------------------------------------------- */

typedef td_status (*tok_step_loader)(const json_t *v, const char *type, const char *where,
                                     void *out, td_error *err);
/* Calls `one` for the step v, or in order for every step of a "Sequence", whose list is under
 * list_key and may be nested. An absent or null v has no steps. */
td_status tok_each_step(const json_t *v, const char *list_key, const char *where,
                        tok_step_loader one, void *out, td_error *err);

/* --- UTF-8 (tok_utf8.c) ----------------------------------------------------------------------- */

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

/* --- the visible alphabet of byte-level tokenizers (tok_utf8.c) ------------------------------- */

/* Code point that stands for a byte ("Ġ" U+0120 for 0x20). */
uint32_t tok_byte_to_char(uint8_t byte);
/* The byte that a code point stands for, -1 for none. */
int tok_char_to_byte(uint32_t cp);

/* --- the text of tokenizer.json (json_text.c) ------------------------------------------------- */

typedef struct tok_text {
    const char *p;
    size_t n;
} tok_text;

/* Elements of an array or members of an object, in order. Keys stand as they are written: between
 * the quotes, with their escapes. */
typedef struct tok_text_walk {
    const char *at, *end;
    bool is_object;
} tok_text_walk;
tok_text_walk tok_text_parts(tok_text list);
bool tok_text_next(tok_text_walk *w, tok_text *key, tok_text *value); /* key: of objects */
/* False when the object has no key that is written so. */
bool tok_text_member(tok_text object, const char *name, tok_text *out);
/* A number as serde_json without its feature float_roundtrip reads it, which HF is built with: the
 * digits as an integer, times or divided by a power of ten. That is often one unit in the last
 * place beside the nearest double. Infinite when it is too large. */
double tok_text_number(tok_text t);

/* --- sets and maps of characters, by HF's tables (tok_char.c) --------------------------------- */

typedef struct tok_range {
    uint32_t first, last;
} tok_range;

bool tok_in_ranges(const tok_range *r, size_t n, uint32_t cp);
/* A script, "word" or another property that PCRE2 sees in another Unicode version; the name in
 * lower case without spaces, hyphens and underscores. NULL: none such. */
const tok_range *tok_property(const char *name, size_t *n);
/* Rust's \w, which is not that of patterns: single_word and Whitespace. */
const tok_range *tok_word_ranges(size_t *n);
/* What Punctuation and BertPreTokenizer split at. */
const tok_range *tok_punctuation_ranges(size_t *n);
/* What Digits splits at: Rust's own \p{N}, of a newer Unicode than that of patterns. */
const tok_range *tok_numeric_ranges(size_t *n);
bool tok_is_mark(uint32_t cp);         /* StripAccents removes it */
bool tok_is_bert_accent(uint32_t cp);  /* BertNormalizer's strip_accents removes it after NFD */
bool tok_is_bert_control(uint32_t cp); /* BertNormalizer's clean_text removes it */
/* Lower case of a code point; *second is a code point behind it, 0 for none. */
uint32_t tok_lowercase(uint32_t cp, uint32_t *second);
/* Not known to HF's normalisation to that form, or not to be touched by utf8proc: stays as it is
 * and where it is. */
typedef enum tok_form { TOK_NFC, TOK_NFD, TOK_NFKC, TOK_NFKD } tok_form;
bool tok_is_inert(tok_form form, uint32_t cp);
/* Appends the ranges as items of a PCRE2 character class. */
void tok_put_ranges(td_strbuf *out, const tok_range *r, size_t n);

/* --- strings <-> ids (tok_vocab.c) ------------------------------------------------------------ */

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

/* --- patterns (tok_regex.c) ------------------------------------------------------------------- */

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
/* One of a set of characters. */
td_status tok_pattern_ranges(tok_pattern *p, const tok_range *r, size_t n, td_error *err);
void tok_pattern_free(tok_pattern *p);
/* Appends the text with every match replaced by `content`. */
td_status tok_pattern_replace(const tok_pattern *p, td_tok_scratch *s, const char *content,
                              size_t n_content, const char *text, size_t n, td_strbuf *out,
                              td_error *err);
/* The first match in text[from..n): *found, *begin, *end. Matches are never empty. */
td_status tok_pattern_next(const tok_pattern *p, td_tok_scratch *s, const char *text, size_t n,
                           size_t from, bool *found, size_t *begin, size_t *end, td_error *err);

/* --- sets of code points, for classes of a pattern (tok_set.c) -------------------------------- */

enum { TOK_SET_WORDS = 0x110000 / 64 };
typedef struct tok_set {
    uint64_t *bits; /* TOK_SET_WORDS */
} tok_set;

td_status tok_set_init(tok_set *s, td_error *err); /* empty */
void tok_set_free(tok_set *s);
void tok_set_complement(tok_set *s);
void tok_set_unite(tok_set *s, const tok_set *other);
void tok_set_intersect(tok_set *s, const tok_set *other);
/* Adds what the PCRE2 class [items] matches. */
td_status tok_set_add_class(tok_set *s, const td_strbuf *items, const char *where, td_error *err);
/* Appends the set as items of a PCRE2 class; nothing when it is empty. */
void tok_set_put(const tok_set *s, td_strbuf *out);

/* --- normalisers (tok_norm.c, tok_norm_chars.c, tok_charsmap.c)
 * ------------------------------------------------------------------
 */

typedef enum tok_norm_kind {
    TOK_NORM_FORM,
    TOK_NORM_PREPEND,
    TOK_NORM_REPLACE,
    TOK_NORM_STRIP,
    TOK_NORM_LOWERCASE,
    TOK_NORM_STRIP_ACCENTS,
    TOK_NORM_NMT,
    TOK_NORM_BYTE_LEVEL,
    TOK_NORM_BERT_CLEAN, /* BertNormalizer becomes up to five steps */
    TOK_NORM_BERT_CHINESE,
    TOK_NORM_BERT_ACCENTS,
    TOK_NORM_PRECOMPILED
} tok_norm_kind;

/* SentencePiece's character map: a double-array trie of byte strings whose values are offsets of
 * NUL-terminated replacements. */
typedef struct tok_charsmap {
    uint32_t *unit;
    size_t n_units;
    char *text;
    size_t n_text;
} tok_charsmap;

td_status tok_charsmap_load(const json_t *v, const char *where, tok_charsmap *out, td_error *err);
void tok_charsmap_free(tok_charsmap *m);
void tok_charsmap_apply(const tok_charsmap *m, const char *text, size_t n, td_strbuf *out);

typedef struct tok_norm {
    tok_norm_kind kind;
    tok_form form;       /* FORM */
    tok_pattern pattern; /* REPLACE */
    char *content;       /* PREPEND, REPLACE */
    size_t n_content;
    bool left, right; /* STRIP */
    tok_charsmap map; /* PRECOMPILED */
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

/* The kinds from LOWERCASE to BERT_ACCENTS, which look at one character at a time. *first_gone: the
 * text's first character was removed. */
void tok_norm_chars(tok_norm_kind kind, const char *text, size_t n, td_strbuf *out,
                    bool *first_gone);

/* --- pre-tokenisers (tok_pretok.c) ------------------------------------------------------------ */

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
    TOK_PRE_METASPACE,    /* without its split, which is a SPLIT step of its own */
    TOK_PRE_VISIBLE       /* ByteLevel's alphabet */
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
    bool byte_level; /* the last step, VISIBLE, was left out: pieces are raw bytes */
} tok_pres;

td_status tok_pres_load(const json_t *v, const char *where, tok_pres *out, td_error *err);
/* Takes back byte_level, for models that need the visible alphabet. */
void tok_pres_make_visible(tok_pres *p);
void tok_pres_free(tok_pres *p);
/* The pieces are spans of *out_text. at_start: the text begins where the whole input begins. */
td_status tok_pres_apply(const tok_pres *p, td_tok_scratch *s, const char *text, size_t n,
                         bool at_start, const char **out_text, const tok_spans **pieces,
                         td_error *err);

/* --- models (tok_model.c) --------------------------------------------------------------------- */

typedef enum tok_model_kind {
    TOK_MODEL_BPE,
    TOK_MODEL_WORDPIECE,
    TOK_MODEL_WORDLEVEL,
    TOK_MODEL_UNIGRAM
} tok_model_kind;

/* A hash table from (number, number) to a number: merges of BPE, edges of Unigram's trie. */
typedef struct tok_merge {
    uint64_t pair; /* left id << 32 | right id; UINT64_MAX: empty slot */
    uint32_t rank;
    int32_t new_id;
} tok_merge;

typedef struct tok_affix {
    char *text; /* NULL: none */
    size_t n;
} tok_affix;

typedef struct tok_model {
    tok_model_kind kind;
    tok_vocab vocab; /* strings as written in the file, added tokens not included */
    size_t n_vocab;  /* entries, which is where HF starts to number added tokens */
    int32_t unk_id;  /* -1: none; BPE: unknown characters vanish */
    bool byte_level; /* pieces are raw bytes; BPE only */
    bool byte_fallback, fuse_unk;
    int32_t byte_id[256];  /* byte-level: symbol of a byte. else: id of "<0xNN>". -1: none */
    int32_t ascii_id[128]; /* not byte-level: symbol of an ASCII character, -1: none */
    tok_affix prefix;      /* of symbols inside a word */
    /* BPE */
    tok_affix suffix;  /* of the symbol that ends a word */
    tok_vocab bytes;   /* byte-level with ignore_merges: the bytes of each entry */
    tok_merge *merges; /* open addressing, n_merge_slots a power of two */
    size_t n_merge_slots;
    int32_t *rank_id; /* new id by rank */
    size_t n_ranks;
    bool ignore_merges;
    /* Not byte-level: no merge result has U+2581 after another character, so a text may be cut
     * before each U+2581 that follows something else without changing the result. */
    bool cut_at_meta;
    /* WORDPIECE */
    size_t max_word_chars;
    /* UNIGRAM: the trie's edges are in `merges`: (node, byte) -> new_id, the next node. */
    double *score;      /* by id */
    int32_t *node_id;   /* by node: the token that ends there, -1: none */
    int32_t first[256]; /* node of each first byte, -1: none */
    double unk_score;
} tok_model;

/* `text`: that of `model`. */
td_status tok_model_load(const json_t *model, tok_text text, bool byte_level, const char *where,
                         tok_model *out, td_error *err);
/* Whether a model of this JSON can work on raw bytes. */
bool tok_model_takes_bytes(const json_t *model);
void tok_model_free(tok_model *m);
td_status tok_model_encode(const tok_model *m, td_tok_scratch *s, const char *piece, size_t n,
                           td_ids *out, td_error *err);

/* Room for n symbols and their ranks in the scratch; refuses pieces that int32_t cannot count. */
td_status tok_reserve_symbols(td_tok_scratch *s, size_t n, td_error *err);
/* Writes the ids of the bytes p[0..len) and true, or false when one has none. */
bool tok_byte_fallback(const tok_model *m, int32_t *sym, size_t *k, const char *p, size_t len);
/* The hash table; put replaces. `merges` must have room. */
td_status tok_merges_alloc(tok_model *m, size_t n, td_error *err);
const tok_merge *tok_merges_find(const tok_model *m, int32_t left, int32_t right);
void tok_merges_put(tok_model *m, int32_t left, int32_t right, uint32_t rank, int32_t new_id);

/* Both merge the *n symbols of s->sym_id, with the same result: one pair after the other, or all
 * pairs of a rank in one sweep, which is faster on very long pieces. */
td_status tok_bpe_merge_by_heap(const tok_model *m, td_tok_scratch *s, size_t *n, td_error *err);
td_status tok_bpe_merge_by_rank(const tok_model *m, td_tok_scratch *s, size_t *n, td_error *err);
/* The scratch's heap: least (rank << 32 | position) first. push: false when out of memory. */
bool tok_heap_push(td_tok_scratch *s, uint64_t x);
uint64_t tok_heap_pop(td_tok_scratch *s);

/* Each model: what it reads beside the vocabulary, and a piece's ids into s->sym_id[0 .. *n_ids).
 */
td_status tok_bpe_load(const json_t *v, const char *where, tok_model *m, td_error *err);
td_status tok_bpe_piece(const tok_model *m, td_tok_scratch *s, const char *p, size_t n,
                        size_t *n_ids, td_error *err);
td_status tok_unigram_load(const json_t *v, tok_text text, const char *where, tok_model *m,
                           td_error *err);
td_status tok_unigram_piece(const tok_model *m, td_tok_scratch *s, const char *p, size_t n,
                            size_t *n_ids, td_error *err);
td_status tok_words_load(const json_t *v, const char *where, tok_model *m, td_error *err);
td_status tok_words_piece(const tok_model *m, td_tok_scratch *s, const char *p, size_t n,
                          size_t *n_ids, td_error *err);

/* --- added tokens (tok_added.c) --------------------------------------------------------------- */

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
    tok_vocab names; /* content <-> id */
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

td_status tok_added_load(const json_t *list, const tok_model *model, const tok_norms *norms,
                         td_tok_scratch *s, const char *where, tok_added *out, td_error *err);
void tok_added_free(tok_added *a);
/* Replaces *out with the parts of the text, without empty ones. */
td_status tok_added_split(const tok_added *a, bool normalized, const char *text, size_t n,
                          tok_parts *out, td_error *err);
const tok_added_token *tok_added_by_id(const tok_added *a, int32_t id);

/* --- decoders (tok_decode.c) ------------------------------------------------------------------ */

typedef enum tok_dec_kind {
    TOK_DEC_BYTE_LEVEL,
    TOK_DEC_REPLACE,
    TOK_DEC_BYTE_FALLBACK,
    TOK_DEC_FUSE,
    TOK_DEC_STRIP,
    TOK_DEC_METASPACE,
    TOK_DEC_WORDPIECE,
    TOK_DEC_CTC,
    TOK_DEC_BPE
} tok_dec_kind;

typedef struct tok_dec {
    tok_dec_kind kind;
    tok_pattern pattern; /* REPLACE */
    /* REPLACE; STRIP and METASPACE: one code point; WORDPIECE: prefix; CTC: pad; BPE: suffix */
    char *content;
    size_t n_content;
    char *delimiter; /* CTC */
    size_t n_delimiter;
    bool cleanup;        /* WORDPIECE, CTC */
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

/* --- post-processor (tok_post.c) -------------------------------------------------------------- */

typedef struct tok_post {
    td_ids prefix, suffix;
} tok_post;

td_status tok_post_load(const json_t *v, const char *where, tok_post *out, td_error *err);
void tok_post_free(tok_post *p);

/* --- the whole -------------------------------------------------------------------------------- */

struct td_tokenizer {
    tok_model model;
    bool visible; /* the vocabulary is written in ByteLevel's alphabet */
    tok_added added;
    tok_norms norms;
    tok_pres pres;
    tok_decs decs;
    tok_post post;
    int32_t n_vocab, bos_id, eos_id;
    uint64_t hash, bytes_hash;
    char *note; /* NULL: none */
};

/* --- what AutoTokenizer makes of the folder (class.c) ----------------------------------------- */

/* tokenizer.json, tokenizer_config.json and config.json; NULL for one that is not there. */
typedef struct tok_class_sources {
    const json_t *root, *config, *model_config;
} tok_class_sources;
/* A sentence for the log, to be freed; NULL when it makes what tokenizer.json says. */
char *tok_class_note(const tok_class_sources *s);

/* One thread's working memory. Buffers keep their size between calls. */
enum { TOK_CACHE_SLOTS = 1 << 15, TOK_CACHE_BYTES = 26, TOK_CACHE_IDS = 8 };

/* 64 bytes: one line of the processor's cache per lookup. */
typedef struct tok_cache_entry {
    uint32_t tag;
    uint8_t n_bytes, n_ids; /* n_bytes == 0: empty */
    char bytes[TOK_CACHE_BYTES];
    int32_t ids[TOK_CACHE_IDS];
} tok_cache_entry;

/* A symbol of a very long piece; positions are those of its first byte or character. */
typedef struct tok_node {
    int32_t id;
    uint32_t rank;      /* of the pair (this symbol, the next one) */
    int32_t prev, next; /* -1: none */
} tok_node;

/* A pair that waits for its rank's turn. */
typedef struct tok_waiting {
    int32_t at;
    int32_t next; /* of the same rank, -1: none */
} tok_waiting;

struct td_tok_scratch {
    const td_tokenizer *tok;
    td_strbuf clean;   /* the text with invalid UTF-8 replaced */
    td_strbuf norm[2]; /* normalisers write to one while reading the other */
    td_strbuf pre[2];  /* pre-tokenisers that change the text */
    td_strbuf word;    /* a symbol with its affixes */
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
    /* BPE of a very long piece */
    tok_node *node;
    tok_waiting *waiting;
    int32_t *first_waiting; /* by rank */
    size_t node_cap, waiting_n, waiting_cap, first_cap;
    double *best; /* Unigram: score of the best way to each byte offset */
    size_t best_cap;
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
