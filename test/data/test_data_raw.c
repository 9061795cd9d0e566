/* Raw token files: nanoGPT's stream in blocks and in documents, Megatron's indexed dataset; and
 * which tokenizer a token file was made with. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "suite.h"
#include "base/hash.h"
#include "base/memory.h"
#include "base/strbuf.h"

static void setup(void) {
    data_setup();
    F.lim = (td_source_limits){.n_vocab = 50304, .eos_id = 2, .batch_tokens = 8192};
}

TestSuite(data_raw, .init = setup, .fini = data_teardown);

static td_source *open_it(void) {
    td_source *s = NULL;
    td_error err;
    cr_assert_eq(td_source_open(&F.cfg, NULL, &F.lim, &s, &err), TD_OK, "%s", err.text);
    cr_assert_eq(td_source_format(s), TD_FORMAT_TOKENS);
    return s;
}

/* Opening or reading fails with `code` and a text that holds `says`. */
static void refused(td_status code, const char *says) {
    td_source *s = NULL;
    td_shard *h = NULL;
    td_error err = {0};
    td_status rc = td_source_open(&F.cfg, NULL, &F.lim, &s, &err);
    if (rc == TD_OK)
        rc = td_source_next(s, true, &h, &err);
    cr_assert_eq(rc, code, "'%s': %s", says, err.text);
    cr_assert(strstr(err.text, says), "not '%s': %s", says, err.text);
    td_source_close(s);
}

Test(data_raw, blocks_of_max_length) {
    static const uint16_t u16[] = {1, 2, 3, 4, 5, 50000, 7};
    static const uint32_t u32[] = {1, 2, 3, 4, 5, 50000, 7};
    F.cfg.data.max_length = 3;
    for (int wide = 0; wide < 2; wide++) {
        fixture_file(&F, "train.bin", wide ? (const void *)u32 : u16, wide ? 28 : 14);
        F.cfg.data.token_dtype = wide ? TD_TOKEN_U32 : TD_TOKEN_AUTO;
        td_source *s = open_it();
        td_shard *h = next_shard(s, true);
        static const int32_t want[] = {1, 2, 3, 4, 5, 50000, 7};
        static const uint8_t mask[] = {0, 1, 1, 0, 1, 1, 0};
        cr_assert_eq(h->row_end, 3);
        cr_assert_eq(h->n_samples, 3);
        cr_assert_eq(h->n_overflow_rows, 0);
        cr_assert_eq(h->samples[2].n_tokens, 1);
        cr_assert_arr_eq(h->ids, want, sizeof want);
        cr_assert_arr_eq(h->loss_mask, mask, sizeof mask);
        td_shard_free(h);
        cr_assert_null(next_shard(s, true));
        uint64_t read, total;
        td_source_progress(s, &read, &total);
        cr_assert_eq(read, total);
        cr_assert_eq(total, wide ? 28 : 14);
        td_source_close(s);
    }
    /* Above 65536 ids auto means u32; and a name needs no .bin when the key says what it is. */
    F.lim.n_vocab = 100000;
    F.cfg.data.token_dtype = TD_TOKEN_AUTO;
    td_source *s = open_it();
    td_shard *h = next_shard(s, true);
    cr_assert_eq(h->n_tokens, 7);
    td_shard_free(h);
    td_source_close(s);
    F.cfg.data.token_dtype = TD_TOKEN_U16;
    fixture_file(&F, "ids", u16, 14);
    s = open_it();
    td_source_close(s);
}

/* Ids whose bytes are those that a compressed file, an archive or a text begins with. */
Test(data_raw, ids_may_begin_as_another_file) {
    static const char *const heads[] = {"\x1f\x8b\x08\x01", "\x28\xb5\x2f\xfd", "PK\x03\x04",
                                        "{\"a\":"};
    F.lim.n_vocab = 65536;
    for (size_t i = 0; i < TD_ARRAY_LEN(heads); i++) {
        uint16_t ids[12] = {0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
        memcpy(ids, heads[i], 4);
        fixture_file(&F, "train.bin", ids, sizeof ids);
        td_source *s = open_it();
        td_shard *h = next_shard(s, true);
        cr_assert_eq(h->n_tokens, 12);
        for (int k = 0; k < 12; k++)
            cr_assert_eq(h->ids[k], ids[k]);
        td_shard_free(h);
        td_source_close(s);
    }
}

Test(data_raw, documents_end_at_an_id) {
    enum { N = 300000, EOS = 7 };
    uint16_t *ids = td_calloc(N, 2);
    int64_t *end = td_calloc(N, 8);
    int64_t n_rows = 0;
    uint64_t rnd = 1;
    for (int64_t i = 0; i < N; i++) {
        ids[i] = (uint16_t)(test_random(&rnd) % 60);
        if (i > 100000 && i < 200000 && ids[i] == EOS)
            ids[i] = 8; /* one document longer than any buffer */
        if (ids[i] == EOS)
            end[n_rows++] = i + 1;
    }
    ids[N - 1] = 9; /* the last one has no end */
    if (n_rows == 0 || end[n_rows - 1] != N)
        end[n_rows++] = N;
    end[n_rows - 1] = N;
    fixture_file(&F, "train.bin", ids, N * 2);
    F.cfg.data.document_eos = EOS;
    F.cfg.data.max_length = 1 << 20;
    F.cfg.output.shard_samples = 700;
    td_source *a = open_it(), *b = open_it();
    int64_t row = 0;
    for (int k = 0;; k++) {
        td_shard *x = next_shard(a, true), *y = next_shard(b, false);
        cr_assert_eq(!x, !y);
        if (!x)
            break;
        cr_assert_eq(x->source_hash, y->source_hash);
        cr_assert_eq(x->row_end, y->row_end);
        td_shard_free(y);
        if (k % 2 == 1) {
            cr_assert_eq(td_source_step_back(b, NULL), TD_OK);
            y = next_shard(b, true);
            cr_assert_eq(x->source_hash, y->source_hash);
            cr_assert_eq(x->n_tokens, y->n_tokens);
            cr_assert_arr_eq(x->ids, y->ids, (size_t)x->n_tokens * 4);
            td_shard_free(y);
        }
        for (int32_t i = 0; i < x->n_samples; i++, row++) {
            int64_t begin = row ? end[row - 1] : 0;
            const td_sample *p = &x->samples[i];
            cr_assert_eq(p->row, row);
            cr_assert_eq(p->n_tokens, end[row] - begin);
            for (int32_t j = 0; j < p->n_tokens; j++)
                cr_assert_eq(x->ids[p->token_offset + j], ids[begin + j]);
        }
        td_shard_free(x);
    }
    cr_assert_eq(row, n_rows);
    td_source_close(a);
    td_source_close(b);
    td_dataset_stats st;
    cr_assert_eq(td_dataset_stats_sample(&F.cfg, NULL, &F.lim, &st, NULL), TD_OK);
    cr_assert_eq(st.n_dataset_rows, n_rows);
    cr_assert_eq(st.n_tokens, N);
    cr_assert_not(st.estimated);
    free(ids);
    free(end);
}

Test(data_raw, statistics_of_large_streams_are_near) {
    enum { N = 12 << 20, EACH = 97 };
    uint16_t *ids = td_calloc(N, 2);
    for (int64_t i = 0; i < N; i++)
        ids[i] = i % EACH == EACH - 1 ? 0 : 5;
    fixture_file(&F, "train.bin", ids, (size_t)N * 2);
    td_dataset_stats st;
    td_error err;
    cr_assert_eq(td_dataset_stats_sample(&F.cfg, NULL, &F.lim, &st, &err), TD_OK, "%s", err.text);
    cr_assert_eq(st.n_dataset_rows, N / 2048);
    cr_assert_eq(st.n_tokens, N);
    F.cfg.data.document_eos = 0;
    cr_assert_eq(td_dataset_stats_sample(&F.cfg, NULL, &F.lim, &st, &err), TD_OK, "%s", err.text);
    cr_assert(st.estimated);
    cr_assert(llabs(st.n_dataset_rows - N / EACH) < N / EACH / 50, "%lld",
              (long long)st.n_dataset_rows);
    cr_assert(llabs(st.n_tokens - N) < N / 50, "%lld", (long long)st.n_tokens);
    cr_assert_eq(st.max_tokens, EACH);
    free(ids);
}

Test(data_raw, wrong_streams) {
    static const uint16_t u16[] = {1, 2, 3, 4, 5, 50304, 7};
    static const uint32_t small[] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
    fixture_file(&F, "a.bin", u16, 13);
    refused(TD_E_DATA, "no whole number of ids of 2 bytes");
    fixture_file(&F, "a.bin", u16, 14);
    refused(TD_E_DATA, "row 0: input_ids[5] is 50304");
    fixture_file(&F, "a.bin", small, sizeof small);
    refused(TD_E_DATA, "data.token_dtype = u32");
    F.cfg.data.token_dtype = TD_TOKEN_U16; /* it was said: then it is so */
    td_source_close(open_it());
    F.cfg.data.append_eos = true;
    refused(TD_E_CONFIG, "data.append_eos = true");
    F.cfg.data.document_eos = 3;
    td_source_close(open_it());
    F.cfg.data.append_eos = false;
    F.cfg.data.format = TD_FORMAT_TEXT;
    refused(TD_E_CONFIG, "data.token_dtype");
    F.cfg.data.token_dtype = TD_TOKEN_AUTO;
    refused(TD_E_CONFIG, "data.document_eos");
    fixture_file(&F, "a.safetensors", small, sizeof small);
    F.cfg.data.format = TD_FORMAT_AUTO;
    refused(TD_E_CONFIG, "read as safetensors");
}

/* ---- Megatron ---- */

typedef struct {
    int32_t sizes[8];
    int64_t pointers[8], documents[8];
    uint64_t n_seq, n_doc;
    uint8_t dtype;
    bool modes;
} index_file;

static void write_index(const index_file *x) {
    td_strbuf b = {0};
    uint64_t version = 1;
    char bin[128];
    td_strbuf_append(&b, "MMIDIDX\0\0", 9);
    td_strbuf_append(&b, &version, 8);
    td_strbuf_append(&b, &x->dtype, 1);
    td_strbuf_append(&b, &x->n_seq, 8);
    td_strbuf_append(&b, &x->n_doc, 8);
    size_t s = x->n_seq < 8 ? x->n_seq : 8, d = x->n_doc < 8 ? x->n_doc : 8;
    td_strbuf_append(&b, x->sizes, 4 * s);
    td_strbuf_append(&b, x->pointers, 8 * s);
    td_strbuf_append(&b, x->documents, 8 * d);
    if (x->modes)
        td_strbuf_append(&b, "\0\0\0\0\0\0\0", s);
    memcpy(bin, F.path, sizeof bin);
    fixture_file(&F, "m.idx", b.data, b.len);
    memcpy(F.path, bin, sizeof bin);
    td_strbuf_free(&b);
}

static const index_file GOOD = {.sizes = {2, 0, 3, 1},
                                .pointers = {0, 4, 4, 10},
                                .documents = {0, 1, 3, 3, 4},
                                .n_seq = 4,
                                .n_doc = 5,
                                .dtype = 8};
static const uint16_t STREAM[] = {10, 11, 20, 21, 22, 40};

Test(data_raw, megatron_rows_are_documents) {
    static const struct {
        uint8_t dtype;
        int64_t bytes;
    } kinds[] = {{1, 1}, {2, 1}, {3, 2}, {4, 4}, {5, 8}, {8, 2}};
    for (size_t k = 0; k < TD_ARRAY_LEN(kinds); k++) {
        int64_t n = kinds[k].bytes;
        unsigned char bin[48] = {0};
        index_file x = GOOD;
        for (int i = 0; i < 6; i++)
            bin[i * n] = (unsigned char)STREAM[i];
        for (int i = 0; i < 4; i++)
            x.pointers[i] = x.pointers[i] / 2 * n;
        x.dtype = kinds[k].dtype;
        x.modes = k % 2;
        fixture_file(&F, "m.bin", bin, (size_t)(6 * n));
        write_index(&x);
        td_source *s = open_it();
        td_shard *h = next_shard(s, true);
        cr_assert_eq(h->row_end, 4);
        cr_assert_eq(h->n_samples, 4);
        static const int32_t lengths[] = {2, 3, 0, 1}, want[] = {10, 11, 20, 21, 22, 40};
        for (int i = 0; i < 4; i++)
            cr_assert_eq(h->samples[i].n_tokens, lengths[i]);
        cr_assert_arr_eq(h->ids, want, sizeof want);
        td_shard_free(h);
        td_source_close(s);
    }
}

Test(data_raw, damaged_indices) {
    fixture_file(&F, "m.bin", STREAM, sizeof STREAM);
    index_file x = GOOD;
    x.dtype = 6;
    write_index(&x);
    refused(TD_E_DATA, "dtype code 6");
    x = GOOD;
    x.n_seq = UINT64_MAX / 4;
    write_index(&x);
    refused(TD_E_DATA, "do not make a file of");
    x = GOOD;
    x.n_doc = UINT64_MAX;
    write_index(&x);
    refused(TD_E_DATA, "do not make a file of");
    x = GOOD;
    x.n_doc = 1;
    write_index(&x);
    refused(TD_E_DATA, "has no rows");
    x = GOOD;
    x.documents[2] = 5;
    write_index(&x);
    refused(TD_E_DATA, "goes from sequence 1 to 5");
    x = GOOD;
    x.documents[1] = -1;
    write_index(&x);
    refused(TD_E_DATA, "goes from sequence 0 to -1");
    x = GOOD;
    x.sizes[3] = 2;
    write_index(&x);
    refused(TD_E_DATA, "sequence 3 has 2 tokens from byte 10");
    x = GOOD;
    x.sizes[0] = -1;
    write_index(&x);
    refused(TD_E_DATA, "sequence 0 has -1 tokens");
    x = GOOD;
    x.pointers[0] = INT64_MIN;
    write_index(&x);
    refused(TD_E_DATA, "sequence 0 has 2 tokens from byte -9");
    x = GOOD;
    x.pointers[0] = INT64_MAX - 1;
    write_index(&x);
    refused(TD_E_DATA, "sequence 0 has 2 tokens");
    x = GOOD;
    x.pointers[3] = 9;
    write_index(&x);
    refused(TD_E_DATA, "sequence 3 has 1 tokens from byte 9");
    x = GOOD;
    x.pointers[2] = 6;
    write_index(&x);
    refused(TD_E_DATA, "documents in pieces");
    write_index(&GOOD);
    F.cfg.data.token_dtype = TD_TOKEN_U32;
    refused(TD_E_CONFIG, "data.token_dtype = u32");
    F.cfg.data.token_dtype = TD_TOKEN_U16;
    td_source_close(open_it());
    F.cfg.data.document_eos = 4;
    refused(TD_E_CONFIG, "data.document_eos");
    F.cfg.data.document_eos = -1;
    char bin[128];
    memcpy(bin, F.path, sizeof bin);
    fixture_text(&F, "m.idx", "TNTIDX");
    memcpy(F.path, bin, sizeof bin);
    refused(TD_E_DATA, "has 6 bytes");
    fixture_text(&F, "m.idx", "TNTIDX, as it was written long ago, or any text");
    memcpy(F.path, bin, sizeof bin);
    refused(TD_E_DATA, "no Megatron index");
}

/* ---- the tokenizer of a token file ---- */

static void write_prepared(const char *hash) {
    td_strbuf b = {0};
    char head[400];
    int n = snprintf(head, sizeof head,
                     "{\"__metadata__\":{\"tokenizer_hash\":\"%s\"},\"input_ids\":{\"dtype\":"
                     "\"I32\",\"shape\":[2],\"data_offsets\":[0,8]},\"offsets\":{\"dtype\":\"I32\","
                     "\"shape\":[2],\"data_offsets\":[8,16]}}",
                     hash);
    while (n % 8)
        head[n++] = ' ';
    uint64_t head_bytes = (uint64_t)n;
    static const int32_t data[] = {5, 6, 0, 2};
    td_strbuf_append(&b, &head_bytes, 8);
    td_strbuf_append(&b, head, (size_t)n);
    td_strbuf_append(&b, data, sizeof data);
    fixture_file(&F, "prepared.safetensors", b.data, b.len);
    td_strbuf_free(&b);
}

Test(data_raw, a_token_file_of_another_tokenizer_is_refused) {
    char own[17], path[128];
    td_hash_hex(td_tokenizer_hash(F.tok), own);
    F.cfg.model.path = F.dir;
    write_prepared(own);
    td_source_close(open_it());
    write_prepared("0123456789abcdef");
    refused(TD_E_DATA, "0123456789abcdef");
    refused(TD_E_DATA, own);
    refused(TD_E_DATA, "prepared.safetensors");
    td_dataset_stats st;
    cr_assert_eq(td_dataset_stats_sample(&F.cfg, NULL, &F.lim, &st, NULL), TD_E_DATA);
    /* Without a tokenizer.json there is nothing to compare. */
    snprintf(path, sizeof path, "%s/tokenizer.json", F.dir);
    cr_assert_eq(remove(path), 0);
    td_source_close(open_it());
}

/* The blocks truncation and padding change no id; what older versions wrote is the hash of all
 * bytes. */
Test(data_raw, a_token_file_of_the_tokenizer_with_other_blocks) {
    static const char *const texts[] = {
        "{\"truncation\":null,\"padding\":null,\"a\":1}",
        "{\"truncation\":{\"max_length\":3},\"padding\":{},\"a\":1}",
        "{\"truncation\":null,\"padding\":null,\"a\":2}"};
    char clean[17], bytes[17];
    td_hash_hex(td_hash64(texts[0], strlen(texts[0])), clean);
    td_hash_hex(td_hash64(texts[1], strlen(texts[1])), bytes);
    F.cfg.model.path = F.dir;
    fixture_file(&F, "tokenizer.json", texts[1], strlen(texts[1]));
    write_prepared(clean);
    td_source_close(open_it());
    write_prepared(bytes);
    td_source_close(open_it());
    fixture_file(&F, "tokenizer.json", texts[2], strlen(texts[2]));
    write_prepared(clean);
    refused(TD_E_DATA, clean);
}
