/* Bounded fuzz of the dataset readers: seeded mutations of good JSONL, text and token files.
 * Whatever comes in, each file either is refused with a message or gives shards that keep data.h's
 * promises, and scanning gives the shards that tokenising gives.
 *
 * fuzz_jsonl [TURNS [SEED]]; the seed of a failure is printed. Run it under AddressSanitizer.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "test/data/fixture.h"
#include "base/log.h"
#include "base/file.h"
#include "base/memory.h"
#include "base/strbuf.h"

static uint64_t g_seed;

#define CHECK(x)                                                                                   \
    do {                                                                                           \
        if (!(x)) {                                                                                \
            fprintf(stderr, "%s:%d: seed %llu: %s\n", __FILE__, __LINE__,                          \
                    (unsigned long long)g_seed, #x);                                               \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

static const char jsonl[] = "{\"text\":\"In the beginning\",\"id\":1}\n"
                            "{\"id\":\"b\\u00e9\", \"text\":\"\\ud83d\\ude00 \\\"quoted\\\" "
                            "\\u0000\",\"x\":[1,{\"y\":null}]}\r\n"
                            "\n"
                            "{\"prompt\":\"p\",\"completion\":\"c</"
                            "s>\",\"ids\":[1,2,3],\"mask\":[0,1,true],\"text\":\"\",\"id\":-3}\n"
                            "{\"ids\":[],\"mask\":[],\"text\":\"caf\xc3\xa9\",\"prompt\":\"\","
                            "\"completion\":\"\",\"id\":\"\"}";

static void mutate(td_strbuf *b, uint64_t *rnd) {
    static const char *const bits[] = {
        "\n",   "\r\n", "\"",  "\\u0000", "\\ud800",      "{",     "}",  "[",
        "]",    ",",    ":",   "\xff",    "\xef\xbb\xbf", "1e999", "-1", "99999999999999999999",
        "null", "text", "ids", "</s>",    "\t",           " "};
    int n = (int)(test_random(rnd) % 6);
    for (int i = 0; i < n; i++) {
        uint64_t r = test_random(rnd);
        size_t at = b->len ? (r >> 8) % b->len : 0;
        size_t len = (r >> 40) % 12;
        switch (r % 6) {
        case 0: /* flip */
            if (b->len)
                b->data[at] ^= (char)(1u << (r >> 60 & 7));
            break;
        case 1: /* any byte */
            if (b->len)
                b->data[at] = (char)(r >> 50);
            break;
        case 2: /* cut out */
            len = TD_MIN(len, b->len - at);
            memmove(b->data + at, b->data + at + len, b->len - at - len);
            b->len -= len;
            break;
        case 3: { /* put in */
            const char *bit = bits[(r >> 20) % TD_ARRAY_LEN(bits)];
            size_t k = strlen(bit);
            td_strbuf_append(b, bit, k);
            memmove(b->data + at + k, b->data + at, b->len - k - at);
            memcpy(b->data + at, bit, k);
            break;
        }
        case 4: /* end early */
            b->len = at;
            break;
        case 5: { /* again */
            char copy[16];
            len = TD_MIN(len, b->len - at);
            memcpy(copy, b->data + at, len);
            td_strbuf_append(b, copy, len);
            break;
        }
        }
    }
    CHECK(!b->oom);
}

static void seed_tokens(data_fixture *f, td_strbuf *b) {
    static const uint16_t ids[] = {1, 2, 3, 4, 5, 6, 7};
    static const int32_t off[] = {0, 3, 3, 5, 7};
    static const uint8_t mask[] = {0, 1, 1, 0, 1, 1, 1};
    const fixture_tensor t[] = {{"sample_offsets", "I32", off, 4, 5},
                                {"input_ids", "U16", ids, 2, 7},
                                {"loss_mask", "U8", mask, 1, 7}};
    fixture_tensors(f, "seed.safetensors", t, 3);
    char *data;
    size_t n;
    CHECK(td_file_read(f->path, 1 << 20, TD_E_DATA, &data, &n, NULL) == TD_OK);
    td_strbuf_append(b, data, n);
    free(data);
}

static void check_shard(const data_fixture *f, const td_shard *s) {
    int64_t tokens = 0, rows = 0, packed = 0, with_rows = 0;
    for (int32_t i = 0; i < s->n_samples; i++) {
        const td_sample *p = &s->samples[i];
        CHECK(p->token_offset == tokens && p->row_offset == rows);
        CHECK(p->n_tokens >= 0 && p->n_tokens <= f->cfg.data.max_length);
        CHECK(p->row >= s->row_begin && p->row < s->row_end);
        for (int32_t t = 0; t < p->n_tokens; t++) {
            int32_t id = s->ids[tokens + t];
            CHECK(id >= 0 && id < f->lim.n_vocab);
            CHECK(s->loss_mask[tokens + t] <= (t > 0));
            rows += s->loss_mask[tokens + t];
        }
        CHECK(rows - p->row_offset == p->n_rows);
        tokens += p->n_tokens;
        with_rows += p->n_rows > 0;
    }
    CHECK(tokens == s->n_tokens && rows == s->n_rows);
    for (int32_t i = 0; i < s->n_batches; i++)
        packed += s->batches[i].n_samples;
    CHECK(packed == with_rows);
    CHECK(s->n_bad_rows <= s->row_end - s->row_begin);
    if (s->id_offsets)
        for (int32_t i = 0; i < s->n_samples; i++)
            CHECK(s->id_offsets[i] <= s->id_offsets[i + 1]);
}

/* Returns true when the whole file was read. */
static bool read_all(const data_fixture *f) {
    td_error err = {0};
    td_source *a = NULL, *b = NULL;
    td_dataset_stats st;
    (void)td_dataset_stats_sample(&f->cfg, f->tok, &f->lim, &st, &err);
    td_status rc = td_source_open(&f->cfg, f->tok, &f->lim, &a, &err);
    if (rc != TD_OK) {
        CHECK(rc == TD_E_DATA || rc == TD_E_CONFIG);
        CHECK(err.text[0] && !a);
        return false;
    }
    CHECK(td_source_open(&f->cfg, f->tok, &f->lim, &b, NULL) == TD_OK);
    bool whole = false;
    for (;;) {
        td_shard *x = NULL, *y = NULL;
        rc = td_source_next(a, true, &x, &err);
        if (rc != TD_OK) {
            CHECK(rc == TD_E_DATA && err.text[0] && !x);
            break;
        }
        CHECK(td_source_next(b, false, &y, NULL) == TD_OK);
        CHECK(!x == !y);
        if (!x) {
            whole = true;
            break;
        }
        check_shard(f, x);
        CHECK(x->row_end == y->row_end && x->source_hash == y->source_hash);
        td_shard_free(x);
        td_shard_free(y);
    }
    td_source_close(a);
    td_source_close(b);
    return whole;
}

int main(int argc, char **argv) {
    long turns = argc > 1 ? atol(argv[1]) : 3000;
    uint64_t first = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    data_fixture f;
    td_strbuf tokens = {0};
    long n_whole = 0;
    td_log_set_level(TD_LOG_ERROR);
    fixture_open(&f);
    seed_tokens(&f, &tokens);
    const td_config plain = f.cfg;
    for (long i = 0; i < turns; i++) {
        g_seed = first + (uint64_t)i;
        uint64_t rnd = g_seed, r = test_random(&rnd);
        td_strbuf b = {0};
        bool as_tokens = r % 4 == 0;
        td_strbuf_append(&b, as_tokens ? tokens.data : jsonl,
                         as_tokens ? tokens.len : sizeof jsonl - 1);
        mutate(&b, &rnd);
        f.cfg = plain;
        f.cfg.run.on_bad_sample = r & 16 ? TD_BAD_SKIP : TD_BAD_FAIL;
        f.lim.batch_tokens = 8;
        f.cfg.output.shard_samples = 1 + (int64_t)((r >> 8) % 4);
        f.cfg.data.max_length = 1 + (int32_t)((r >> 12) % 9);
        f.cfg.data.overflow = (td_overflow)((r >> 20) % 3);
        f.cfg.data.append_eos = r & 32;
        f.cfg.data.add_special_tokens = r & 64;
        f.cfg.data.max_samples = (int64_t)((r >> 30) % 4);
        static const char *const names[] = {"a", "a.jsonl", "a.txt", "a.json"};
        if (!as_tokens && (r >> 40) % 4 != 2) {
            f.cfg.data.id_field = r & 128 ? "id" : NULL;
            if ((r >> 44) % 3 == 0) {
                f.cfg.data.ids_field = "ids";
                f.cfg.data.mask_field = r & 8 ? "mask" : NULL;
            } else if ((r >> 44) % 3 == 1) {
                f.cfg.data.prompt_field = "prompt";
                f.cfg.data.completion_field = "completion";
            }
        }
        fixture_file(&f, as_tokens ? "a.safetensors" : names[(r >> 40) % 4], b.data, b.len);
        n_whole += read_all(&f);
        td_strbuf_free(&b);
    }
    td_strbuf_free(&tokens);
    fixture_close(&f);
    printf("%ld files, %ld read to the end\n", turns, n_whole);
    /* All refused, or none, would mean that the mutations miss their aim. */
    return turns < 100 || (n_whole > turns / 20 && n_whole < turns) ? 0 : 1;
}
