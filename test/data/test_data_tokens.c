/* Datasets of token ids: every integer dtype, masks, and files that are not what they should be. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "suite.h"
#include "base/memory.h"

static void setup(void) {
    data_setup();
    F.lim = (td_source_limits){.n_vocab = 1000, .eos_id = 2, .batch_tokens = 8192};
}

TestSuite(data_tokens, .init = setup, .fini = data_teardown);

static td_status open_it(td_source **s, td_error *err) {
    return td_source_open(&F.cfg, NULL, &F.lim, s, err);
}

Test(data_tokens, every_integer_dtype) {
    static const uint8_t u8[] = {1, 2, 3, 4, 5, 6};
    static const uint16_t u16[] = {1, 2, 3, 4, 5, 6};
    static const uint32_t u32[] = {1, 2, 3, 4, 5, 6};
    static const uint64_t u64[] = {1, 2, 3, 4, 5, 6};
    static const int64_t off64[] = {0, 3, 3, 4, 6};
    static const int32_t off32[] = {0, 3, 3, 4, 6};
    const struct {
        const char *dtype;
        const void *data;
        size_t size;
    } kinds[] = {{"U8", u8, 1},   {"I8", u8, 1},   {"U16", u16, 2}, {"I16", u16, 2},
                 {"U32", u32, 4}, {"I32", u32, 4}, {"U64", u64, 8}, {"I64", u64, 8}};
    static const uint8_t mask[] = {1, 0, 1, 1, 1, 1};
    for (size_t k = 0; k < TD_ARRAY_LEN(kinds) * 4; k++) {
        bool wide = k & 1, masked = k & 2;
        size_t i = k / 4;
        const fixture_tensor t[] = {
            {"input_ids", kinds[i].dtype, kinds[i].data, kinds[i].size, 6},
            {wide ? "sample_offsets" : "offsets", wide ? "I64" : "I32",
             wide ? (const void *)off64 : off32, wide ? 8 : 4, 5},
            {"loss_mask", i % 2 ? "U8" : "BOOL", mask, 1, 6},
        };
        fixture_tensors(&F, "a.safetensors", t, masked ? 3 : 2);
        td_source *s = NULL;
        td_shard *h = NULL;
        td_error err;
        cr_assert_eq(open_it(&s, &err), TD_OK, "%s", err.text);
        cr_assert_eq(td_source_format(s), TD_FORMAT_TOKENS);
        cr_assert_eq(td_source_next(s, true, &h, &err), TD_OK, "%s", err.text);
        cr_assert_eq(h->n_samples, 4);
        cr_assert_eq(h->n_tokens, 6);
        for (int j = 0; j < 6; j++)
            cr_assert_eq(h->ids[j], j + 1);
        const uint8_t want[] = {0, !masked, 1, 0, 0, 1};
        cr_assert_arr_eq(h->loss_mask, want, 6);
        cr_assert_eq(h->samples[1].n_tokens, 0);
        td_shard_free(h);
        uint64_t read, total;
        td_source_progress(s, &read, &total);
        cr_assert_eq(read, 6 * (kinds[i].size + masked));
        cr_assert_eq(read, total);
        td_source_close(s);
    }
}

Test(data_tokens, shards_and_scans_agree) {
    enum { N = 20000 };
    int64_t *off = td_calloc(N + 1, 8);
    uint64_t rnd = 1;
    for (int i = 0; i < N; i++)
        off[i + 1] = off[i] + (int64_t)(test_random(&rnd) % 20);
    size_t n = (size_t)off[N];
    uint16_t *ids = td_calloc(n, 2);
    for (size_t i = 0; i < n; i++)
        ids[i] = (uint16_t)(test_random(&rnd) % 1000);
    const fixture_tensor t[] = {{"sample_offsets", "I64", off, 8, N + 1},
                                {"input_ids", "U16", ids, 2, n}};
    fixture_tensors(&F, "a.safetensors", t, 2);
    F.cfg.output.shard_samples = 777;
    F.cfg.data.max_samples = 19000;
    td_source *a = NULL, *b = NULL;
    cr_assert_eq(open_it(&a, NULL), TD_OK);
    cr_assert_eq(open_it(&b, NULL), TD_OK);
    int64_t rows = 0;
    for (;;) {
        td_shard *x, *y;
        cr_assert_eq(td_source_next(a, true, &x, NULL), TD_OK);
        cr_assert_eq(td_source_next(b, false, &y, NULL), TD_OK);
        cr_assert_eq(!x, !y);
        if (!x)
            break;
        cr_assert_eq(x->source_hash, y->source_hash);
        cr_assert_eq(x->row_begin, rows);
        cr_assert_eq(x->row_end, y->row_end);
        rows = x->row_end;
        for (int32_t i = 0; i < x->n_samples; i++) {
            const td_sample *p = &x->samples[i];
            cr_assert_eq(p->n_tokens, off[p->row + 1] - off[p->row]);
            for (int32_t k = 0; k < p->n_tokens; k++)
                cr_assert_eq(x->ids[p->token_offset + k], ids[off[p->row] + k]);
        }
        td_shard_free(x);
        td_shard_free(y);
    }
    cr_assert_eq(rows, 19000);
    td_source_close(a);
    td_source_close(b);
    free(off);
    free(ids);
}

Test(data_tokens, end_of_sequence_and_split) {
    static const uint8_t ids[] = {5, 6, 7, 8, 2};
    static const int32_t off[] = {0, 3, 5};
    const fixture_tensor t[] = {{"input_ids", "U8", ids, 1, 5}, {"offsets", "I32", off, 4, 3}};
    fixture_tensors(&F, "a.safetensors", t, 2);
    F.cfg.data.append_eos = true;
    F.cfg.data.max_length = 2;
    F.cfg.data.overflow = TD_OVERFLOW_SPLIT;
    td_source *s = NULL;
    td_shard *h = NULL;
    cr_assert_eq(open_it(&s, NULL), TD_OK);
    cr_assert_eq(td_source_next(s, true, &h, NULL), TD_OK);
    static const int32_t want[] = {5, 6, 7, 2, 8, 2};
    cr_assert_eq(h->n_samples, 3);
    cr_assert_arr_eq(h->ids, want, sizeof want);
    cr_assert_eq(h->samples[1].start, 2);
    td_shard_free(h);
    td_source_close(s);
}

Test(data_tokens, wrong_files) {
    static const uint8_t ids[] = {5, 6, 7, 8, 2, 1, 1, 1};
    static const int32_t off[] = {0, 3, 5}, off_high[] = {0, 3, 9}, off_down[] = {0, 3, 2};
    static const float f32[] = {0, 0};
    const struct {
        fixture_tensor t[3];
        size_t n;
        const char *says;
        bool at_open;
    } cases[] = {
        {{{"ids", "U8", ids, 1, 5}, {"offsets", "I32", off, 4, 3}},
         2,
         "the tensor input_ids",
         true},
        {{{"input_ids", "U8", ids, 1, 5}}, 1, "sample_offsets (or offsets)", true},
        {{{"input_ids", "F32", f32, 4, 2}, {"offsets", "I32", off, 4, 3}},
         2,
         "input_ids is F32",
         true},
        {{{"input_ids", "U8", ids, 1, 5}, {"offsets", "F32", f32, 4, 2}},
         2,
         "offsets is F32",
         true},
        {{{"input_ids", "U8", ids, 1, 5}, {"offsets", "I32", off, 4, 1}}, 2, "has no rows", true},
        {{{"input_ids", "U8", ids, 1, 5},
          {"offsets", "I32", off, 4, 3},
          {"loss_mask", "U8", ids, 1, 4}},
         3,
         "loss_mask is U8 with 4 elements",
         true},
        {{{"input_ids", "U8", ids, 1, 5}, {"offsets", "I32", off_high, 4, 3}},
         2,
         "from 3 to 9",
         false},
        {{{"input_ids", "U8", ids, 1, 5}, {"offsets", "I32", off_down, 4, 3}},
         2,
         "from 3 to 2",
         false},
    };
    F.cfg.run.on_bad_sample = TD_BAD_SKIP; /* a broken table is not a bad row */
    for (size_t i = 0; i < TD_ARRAY_LEN(cases); i++) {
        td_source *s = NULL;
        td_shard *h = NULL;
        td_error err;
        fixture_tensors(&F, "a.safetensors", cases[i].t, cases[i].n);
        td_status rc = open_it(&s, &err);
        cr_assert_eq(rc, cases[i].at_open ? TD_E_DATA : TD_OK, "case %zu", i);
        if (rc == TD_OK)
            cr_assert_eq(td_source_next(s, i % 2, &h, &err), TD_E_DATA, "case %zu", i);
        cr_assert(strstr(err.text, cases[i].says), "case %zu: %s", i, err.text);
        cr_assert(strstr(err.text, F.path), "%s", err.text);
        td_source_close(s);
    }
}

Test(data_tokens, bad_rows) {
    static const uint16_t ids[] = {5, 6, 1000, 8, 2};
    static const int32_t off[] = {0, 2, 4, 5};
    static const uint8_t mask[] = {1, 1, 1, 1, 7};
    const fixture_tensor t[] = {{"input_ids", "U16", ids, 2, 5},
                                {"offsets", "I32", off, 4, 4},
                                {"loss_mask", "U8", mask, 1, 5}};
    fixture_tensors(&F, "a.safetensors", t, 3);
    td_source *s = NULL;
    td_shard *h = NULL;
    td_error err;
    cr_assert_eq(open_it(&s, &err), TD_OK);
    cr_assert_eq(td_source_next(s, true, &h, &err), TD_E_DATA);
    cr_assert(strstr(err.text, "row 1: input_ids[0] is 1000, expected 0 to 999"), "%s", err.text);
    td_source_close(s);
    F.cfg.run.on_bad_sample = TD_BAD_SKIP;
    cr_assert_eq(open_it(&s, &err), TD_OK);
    cr_assert_eq(td_source_next(s, true, &h, &err), TD_OK);
    cr_assert_eq(h->n_bad_rows, 2);
    cr_assert_eq(h->n_samples, 1);
    td_shard_free(h);
    td_source_close(s);
}

Test(data_tokens, statistics) {
    enum { N = 1 << 20, EACH = 20 };
    int64_t *off = td_calloc(N + 1, 8);
    uint8_t *ids = td_calloc(N * EACH, 1);
    for (int64_t i = 0; i <= N; i++)
        off[i] = i * EACH;
    for (int big = 0; big < 2; big++) {
        size_t n = big ? N : 1000;
        const fixture_tensor t[] = {{"sample_offsets", "I64", off, 8, n + 1},
                                    {"input_ids", "U8", ids, 1, n * EACH}};
        fixture_tensors(&F, "a.safetensors", t, 2);
        td_dataset_stats st;
        td_error err;
        cr_assert_eq(td_dataset_stats_sample(&F.cfg, NULL, &F.lim, &st, &err), TD_OK, "%s",
                     err.text);
        cr_assert_eq(st.estimated, big);
        cr_assert_eq(st.n_dataset_rows, (int64_t)n);
        cr_assert_eq(st.n_tokens, (int64_t)n * EACH);
        cr_assert_eq(st.n_record_rows, (int64_t)n * (EACH - 1));
        cr_assert_eq(st.max_tokens, EACH);
        cr_assert_not(st.tokens_from_bytes);
    }
    free(off);
    free(ids);
}
