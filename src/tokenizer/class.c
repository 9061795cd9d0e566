/* Where Hugging Face's AutoTokenizer does not do what tokenizer.json says.
 *
 * transformers 5 takes the class from tokenizer_config.json or from the type of the model. A class
 * with code of its own keeps the vocabulary, the merges and the post-processor of tokenizer.json,
 * but not its normalizer, its pre-tokenizer and the flags of its model: these the class brings.
 * tdgen follows tokenizer.json in all of this, so such a model's user must hear of it.
 *
 * By transformers 5.24: models/auto/tokenization_auto.py and tokenization_utils_tokenizers.py.
 */
#include <stdlib.h>
#include <string.h>
#include "tokenizer/internal.h"
#include "base/memory.h"
#include "base/strbuf.h"

enum { MAX_NAME = 96 };

/* --- which class ------------------------------------------------------------------------------ */

/* What AutoTokenizer registers for a type of model; "": tokenizer.json as it is. Types that are
 * not here have nothing registered. `forced`: whatever the folder says. */
static const struct {
    const char *model_type, *class;
    bool forced;
} registered[] = {
    {"qwen2", "Qwen2Tokenizer", true},
    {"qwen3", "Qwen2Tokenizer", false},
    {"qwen3_moe", "Qwen2Tokenizer", false},
    {"gemma", "GemmaTokenizer", false},
    {"gemma2", "GemmaTokenizer", false},
    {"gemma3_text", "GemmaTokenizer", false},
    {"gpt2", "GPT2Tokenizer", false},
    {"gpt_neox", "GPTNeoXTokenizer", false},
    {"mistral", "", false},
    {"mixtral", "", false},
    {"olmo2", "", false},
    {"granite", "", false},
    {"stablelm", "", false},
    {"phi3", "", true},
};

static bool names_byte_level(const json_t *v) {
    const json_t *e;
    const char *key;
    size_t i;
    const char *type = json_string_value(json_object_get(v, "type"));
    if (type && strcmp(type, "ByteLevel") == 0)
        return true;
    json_object_foreach((json_t *)v, key, e) if (names_byte_level(e)) return true;
    json_array_foreach((json_t *)v, i, e) if (names_byte_level(e)) return true;
    return false;
}

/* The name without "Fast" at its end; "" when there is none. */
static void class_name(const json_t *v, char out[MAX_NAME]) {
    const char *s = json_string_value(v);
    size_t n = s ? strlen(s) : 0;
    if (n > 4 && strcmp(s + n - 4, "Fast") == 0)
        n -= 4;
    n = n < MAX_NAME ? n : 0; /* no class of transformers has such a name */
    if (n)
        memcpy(out, s, n);
    out[n] = '\0';
}

static void find_class(const tok_class_sources *s, char out[MAX_NAME]) {
    const char *type = json_string_value(json_object_get(s->model_config, "model_type"));
    type = type ? type : "";
    size_t r = 0;
    while (r < TD_ARRAY_LEN(registered) && strcmp(registered[r].model_type, type) != 0)
        r++;
    bool has = r < TD_ARRAY_LEN(registered);
    class_name(json_object_get(s->config, "tokenizer_class"), out);
    if (!out[0])
        class_name(json_object_get(s->model_config, "tokenizer_class"), out);
    bool bytes = names_byte_level(json_object_get(s->root, "pre_tokenizer")) ||
                 names_byte_level(json_object_get(s->root, "decoder"));
    if (strcmp(out, "LlamaTokenizer") == 0 && bytes && !(has && registered[r].forced))
        out[0] = '\0';
    else if (has && (!out[0] || !registered[r].class[0] || registered[r].forced))
        strcpy(out, registered[r].class);
}

/* --- what a class makes ----------------------------------------------------------------------- */

#define LLAMA_PRE                                                                                  \
    "{\"type\":\"Metaspace\",\"replacement\":\"\\u2581\",\"prepend_scheme\":\"%s\",\"split\":false}"
#define BYTES(regex) "{\"type\":\"ByteLevel\",\"add_prefix_space\":%s,\"use_regex\":" regex "}"
#define QWEN_PRE(letter, not_other)                                                                 \
    "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(?i:'s" \
    "|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?" letter "+|\\\\p{N}| ?[^" not_other      \
    "]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+\"},\"behavior\":\"Isolated\","      \
    "\"invert\":false}," BYTES("false") "]}"

static const struct {
    const char *class, *normalizer, *pre_tokenizer; /* %s: see expected_pre */
    bool pieces;                                    /* byte_fallback and fuse_unk */
} known[] = {
    {"LlamaTokenizer", "null", LLAMA_PRE, true},
    {"CodeLlamaTokenizer", "null", LLAMA_PRE, true},
    {"GemmaTokenizer",
     "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"\\u2581\"}",
     "{\"type\":\"Split\",\"pattern\":{\"String\":\" "
     "\"},\"behavior\":\"MergedWithPrevious\",\"invert\":false}",
     true},
    {"Qwen2Tokenizer", "{\"type\":\"NFC\"}", QWEN_PRE("\\\\p{L}", "\\\\s\\\\p{L}\\\\p{N}"), false},
    {"Qwen3_5Tokenizer", "{\"type\":\"NFC\"}",
     QWEN_PRE("[\\\\p{L}\\\\p{M}]", "\\\\s\\\\p{L}\\\\p{M}\\\\p{N}"), false},
    {"GPT2Tokenizer", "null", BYTES("true"), false},
    {"GPTNeoXTokenizer", "{\"type\":\"NFC\"}", BYTES("true"), false},
    {"CohereTokenizer", "{\"type\":\"NFC\"}",
     "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Digits\",\"individual_digits\":true}," //
     BYTES("true") "]}",
     false},
};

/* The others that bring code of their own, or are no wrapper of tokenizer.json at all. */
static const char others[] =
    " Albert Bart Barthez Bartpho Bert BertGeneration BertJapanese Bertweet BigBird BioGpt "
    "Blenderbot BlenderbotSmall ByT5 CLIP CTRL Camembert Canine Clvp Cpm CpmAnt DPRQuestionEncoder "
    "Deberta DebertaV2 Dia Esm Esmc FSMT Flaubert Funnel GPTNeoXJapanese GPTSw3 Herbert LED Lasr "
    "LayoutLMv2 LayoutLMv3 LayoutXLM Luke Lxmert M2M100 MBart MBart50 MLuke MPNet Marian MarkupLM "
    "Mgpstr MobileBert Mvp MyT5 Nllb Nougat OpenAIGPT PLBart Pegasus Perceiver Phobert ProphetNet "
    "Rag Reformer RemBert RoCBert RoFormer Roberta SeamlessM4T Siglip Siglip2 Speech2Text SpeechT5 "
    "Splinter T5 Tapas Tipsv2 Udop VideoPrism Vits Wav2Vec2CTC Wav2Vec2PhonemeCTC Whisper XGLM XLM "
    "XLMRoberta XLNet ";

static bool is_other(const char *class) {
    char word[MAX_NAME + 2];
    const char *end = strstr(class, "Tokenizer");
    if (!end || strcmp(end, "Tokenizer") != 0)
        return false;
    snprintf(word, sizeof word, " %.*s ", (int)(end - class), class);
    return strstr(others, word) != NULL;
}

/* A section without what changes no id: trim_offsets, and a sequence around one step. */
static json_t *plain(const json_t *v) {
    const char *type = json_string_value(json_object_get(v, "type"));
    if (type && strcmp(type, "Sequence") == 0) {
        json_t *list = json_object_get(v, "pretokenizers");
        list = list ? list : json_object_get(v, "normalizers");
        if (json_array_size(list) == 1)
            return plain(json_array_get(list, 0));
    }
    json_t *copy = v ? json_deep_copy(v) : json_null(), *e;
    json_t *steps = json_object_get(copy, "pretokenizers");
    size_t i;
    (void)json_object_del(copy, "trim_offsets");
    json_array_foreach(steps, i, e)(void) json_object_del(e, "trim_offsets");
    return copy;
}

/* Both are put in where the class's pre-tokenizer has a %s: what Llama prepends, and ByteLevel's
 * add_prefix_space. */
static json_t *expected_pre(const tok_class_sources *s, size_t k) {
    const json_t *prefix = json_object_get(s->config, "add_prefix_space");
    const char *llama = json_is_false(prefix)                                ? "never"
                        : json_is_true(json_object_get(s->config, "legacy")) ? "always"
                                                                             : "first";
    const char *format = known[k].pre_tokenizer, *at = strstr(format, "%s");
    const char *value = strstr(format, "Metaspace") ? llama
                        : json_is_true(prefix)      ? "true"
                                                    : "false";
    char *text =
        at ? td_asprintf("%.*s%s%s", (int)(at - format), format, value, at + 2) : td_strdup(format);
    json_t *v = text ? json_loads(text, 0, NULL) : NULL;
    free(text);
    return v;
}

static bool same(const json_t *v, json_t *want) {
    json_t *have = plain(v);
    bool equal = want && have && json_equal(have, want);
    json_decref(have);
    json_decref(want);
    return equal;
}

static void name(td_strbuf *list, const char *what) {
    td_strbuf_printf(list, "%s%s", list->len ? ", " : "", what);
}

/* What of a tokenizer.json the class replaces by something else. */
static void differences(const tok_class_sources *s, const char *class, td_strbuf *out) {
    const json_t *model = json_object_get(s->root, "model");
    size_t k = 0;
    while (k < TD_ARRAY_LEN(known) && strcmp(known[k].class, class) != 0)
        k++;
    if (k == TD_ARRAY_LEN(known)) {
        if (is_other(class))
            name(out, "all but the vocabulary");
        return;
    }
    if (!same(json_object_get(s->root, "normalizer"),
              json_loads(known[k].normalizer, JSON_DECODE_ANY, NULL)))
        name(out, "normalizer");
    if (!same(json_object_get(s->root, "pre_tokenizer"), expected_pre(s, k)))
        name(out, "pre_tokenizer");
    const char *flags[] = {"byte_fallback", "fuse_unk"};
    for (size_t i = 0; known[k].pieces && i < TD_ARRAY_LEN(flags); i++)
        if (!json_is_true(json_object_get(model, flags[i])))
            name(out, flags[i]);
    if (json_is_true(json_object_get(model, "ignore_merges")))
        name(out, "ignore_merges");
}

char *tok_class_note(const tok_class_sources *s) {
    char class[MAX_NAME];
    td_strbuf parts = {0}, note = {0};
    find_class(s, class);
    differences(s, class, &parts);
    if (parts.len)
        td_strbuf_printf(&note,
                         "transformers 5 makes a %s of this folder, which replaces of "
                         "tokenizer.json: %s; tdgen follows tokenizer.json, and some texts may get "
                         "other ids than AutoTokenizer gives. To have one for all, set "
                         "\"tokenizer_class\" to \"TokenizersBackend\" in tokenizer_config.json, "
                         "or make token files with tools/prepare --tokenizer-from auto",
                         class, parts.data);
    td_strbuf_free(&parts);
    if (note.len && !note.oom)
        return note.data; /* the caller's from here on */
    td_strbuf_free(&note);
    return NULL;
}
