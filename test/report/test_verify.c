/* Verify finds every flipped bit; inspect shows what is there. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "test/record/fixture.h"
#include "record/layout.h"
#include "capture/capture.h"
#include "base/text.h"
#include "base/safetensors.h"
#include "base/hash.h"
#include "base/memory.h"
#include "base/strbuf.h"

static void must(td_status rc, const td_error *err) {
    cr_assert_eq(rc, TD_OK, "%s", err->text);
}

/* What verify prints, freed by the caller. */
static td_status verify_text(const char *dir, char **text) {
    size_t n;
    td_error err = {0};
    FILE *out = open_memstream(text, &n);
    td_status rc = td_verify(dir, out, false, &err);
    if (rc != TD_OK)
        fprintf(out, "error: %s\n", err.text);
    fclose(out);
    return rc;
}

static void overwrite(const char *path, const void *data, size_t n) {
    int fd = open(path, O_WRONLY | O_TRUNC);
    cr_assert(fd >= 0 && write(fd, data, n) == (ssize_t)n);
    close(fd);
}

/* Flips one bit in every byte (another bit from byte to byte) of a file, one at a time. */
static void flip_every_byte(const char *dir, const char *name) {
    size_t n = 0;
    char *data = td_fixture_read(dir, name, &n), *path = td_asprintf("%s/%s", dir, name);
    cr_assert(data && n);
    int fd = open(path, O_RDWR);
    for (size_t i = 0; i < n; i++) {
        char c = (char)(data[i] ^ (1 << (i % 8))), *text = NULL;
        cr_assert_eq(pwrite(fd, &c, 1, (off_t)i), 1);
        td_status rc = verify_text(dir, &text);
        cr_assert_eq(rc, TD_E_VERIFY, "bit %zu of byte %zu of %s went unnoticed (%d): %s", i % 8, i,
                     name, rc, text);
        cr_assert(strstr(text, name), "byte %zu of %s: %s", i, name, text);
        free(text);
        cr_assert_eq(pwrite(fd, &data[i], 1, (off_t)i), 1);
    }
    close(fd);
    free(path);
    free(data);
}

static void make_run(td_fixture *f, int64_t n_shards) {
    td_error err;
    td_fixture_init(f);
    f->cfg.capture.n_temperatures = 1;
    f->cfg.capture.temperatures[0] = 2;
    f->cfg.capture.top_k = 4;
    f->cfg.data.id_field = td_strdup("id");
    f->cfg.data.max_length = 24;
    must(td_fixture_run(f, n_shards, NULL, &err), &err);
}

Test(verify, any_flipped_bit_is_found_in_a_shard) {
    td_fixture f;
    make_run(&f, 1);
    flip_every_byte(f.cfg.output.dir, "shard-000000.safetensors");
    td_fixture_free(&f);
}

Test(verify, any_flipped_bit_is_found_in_index_and_manifest) {
    td_fixture f;
    make_run(&f, 2);
    flip_every_byte(f.cfg.output.dir, "shards.jsonl");
    flip_every_byte(f.cfg.output.dir, "manifest.json");
    char *text = NULL;
    cr_assert_eq(verify_text(f.cfg.output.dir, &text), TD_OK, "%s", text);
    cr_assert(strstr(text, "OK: manifest, index and 2 shards: 8 samples"), "%s", text);
    free(text);
    td_fixture_free(&f);
}

/* --- meaning: numbers changed and all hashes made right again --------------------------------- */

typedef struct forged {
    char *data;
    size_t n;
    td_layout layout;
    size_t header; /* bytes before the data part */
} forged;

static void *tensor(forged *s, td_tensor_id id) {
    cr_assert(s->layout.tensor[id].present);
    return s->data + s->header + s->layout.tensor[id].begin;
}

static void put_hex(forged *s, const char *key, size_t skip, uint64_t hash) {
    char hex[17], *at = memmem(s->data + 8, s->header - 8, key, strlen(key));
    cr_assert(at);
    td_hash_hex(hash, hex);
    memcpy(at + strlen(key) + skip, hex, 16);
}

/* Makes data_hash, tensor_hashes and header_hash those of the content. */
static void seal(forged *s) {
    uint64_t h;
    put_hex(s, "\"data_hash\":\"", 0, td_hash64(s->data + s->header, s->n - s->header));
    size_t k = 0;
    for (int i = 0; i < TD_T_COUNT; i++) {
        const td_layout_tensor *t = &s->layout.tensor[i];
        if (t->present)
            put_hex(s, "\"tensor_hashes\":\"", 17 * k++,
                    td_hash64(s->data + s->header + t->begin, t->end - t->begin));
    }
    cr_assert(td_layout_header_hash(s->data + 8, s->header - 8, &h));
    put_hex(s, "\"header_hash\":\"", 0, h);
}

typedef void (*forge)(forged *s);
static void f_offsets(forged *s) {
    ((int64_t *)tensor(s, TD_T_SAMPLE_OFFSETS))[1] = 1000000;
}
static void f_offsets_back(forged *s) {
    int64_t *o = tensor(s, TD_T_ROW_OFFSETS);
    o[1] = o[4];
    o[2] = -5;
}
static void f_ids_offsets(forged *s) {
    ((int64_t *)tensor(s, TD_T_SAMPLE_ID_OFFSETS))[4]++;
}
static void f_sample_index(forged *s) {
    ((int64_t *)tensor(s, TD_T_SAMPLE_INDEX))[2] = 4;
}
static void f_sample_start(forged *s) {
    ((int64_t *)tensor(s, TD_T_SAMPLE_START))[2] = -1;
}
static void f_input(forged *s) {
    ((int32_t *)tensor(s, TD_T_INPUT_IDS))[0] = 50;
}
static void f_position(forged *s) {
    ((int32_t *)tensor(s, TD_T_ROW_POSITION))[0]++;
}
static void f_mask(forged *s) {
    ((uint8_t *)tensor(s, TD_T_LOSS_MASK))[0] = 1;
}
static void f_mask_lost(forged *s) {
    ((uint8_t *)tensor(s, TD_T_LOSS_MASK))[1] = 0;
}
static void f_device(forged *s) {
    ((uint8_t *)tensor(s, TD_T_SAMPLE_DEVICE))[0] = 1;
}
static void f_status(forged *s) {
    ((uint8_t *)tensor(s, TD_T_SAMPLE_STATUS))[0] = 1;
}
static void f_topk_id(forged *s) {
    ((int32_t *)tensor(s, TD_T_TOPK_IDS))[5] = -7;
}
static void f_topk_twice(forged *s) {
    int32_t *ids = (int32_t *)tensor(s, TD_T_TOPK_IDS);
    uint16_t *lp = tensor(s, TD_T_TOPK_LOGPROBS_F16);
    ids[3] = ids[2];
    lp[3] = lp[2];
}
static void f_logprob(forged *s) {
    ((uint16_t *)tensor(s, TD_T_TOPK_LOGPROBS_F16))[1] = 0x3c00; /* 1.0 */
}
static void f_order(forged *s) {
    uint16_t *lp = tensor(s, TD_T_TOPK_LOGPROBS_F16);
    lp[0] = 0xcc00; /* -16 */
}
static void f_lse(forged *s) {
    ((uint32_t *)tensor(s, TD_T_LOGSUMEXP))[0] = 0x7fc00000;
}
static void f_lse_t(forged *s) {
    ((uint32_t *)tensor(s, TD_T_LOGSUMEXP_T))[0] = 0x7f800000;
}
static void f_tail(forged *s) {
    ((float *)tensor(s, TD_T_TAIL_MASS))[0] += 0.1f;
}
static void f_target(forged *s) {
    ((float *)tensor(s, TD_T_TARGET_LOGPROB))[0] = 0.5f;
}
static void f_rank(forged *s) {
    int32_t *rank = tensor(s, TD_T_TARGET_RANK);
    rank[0] = rank[0] < 4 ? 30 : 0;
}
static void f_entropy(forged *s) {
    ((float *)tensor(s, TD_T_ENTROPY))[0] = -1;
}

Test(verify, meaning_is_checked_behind_the_hashes) {
    static const struct {
        forge forge;
        const char *word;
    } cases[] = {{f_offsets, "sample_offsets"},
                 {f_offsets_back, "row_offsets"},
                 {f_ids_offsets, "sample_id_off"},
                 {f_sample_index, "sample_index"},
                 {f_sample_start, "sample_start"},
                 {f_input, "input_ids"},
                 {f_position, "row_position"},
                 {f_mask, "loss_mask"},
                 {f_mask_lost, "loss_mask"},
                 {f_device, "sample_device"},
                 {f_status, "skipped"},
                 {f_topk_id, "topk_ids"},
                 {f_topk_twice, "tensor "},
                 {f_logprob, "topk_logprobs"},
                 {f_order, "topk_logprobs"},
                 {f_lse, "logsumexp"},
                 {f_lse_t, "logsumexp_t"},
                 {f_tail, "tail_mass"},
                 {f_target, "target_logprob"},
                 {f_rank, "target_rank"},
                 {f_entropy, "entropy"}};
    td_fixture f;
    make_run(&f, 1);
    td_error err;
    char *path = td_asprintf("%s/shard-000000.safetensors", f.cfg.output.dir), *text;
    td_shard *s = td_fixture_shard(&f, 0, 4);
    td_capture_spec spec = {
        .top_k = 4, .logprob_dtype = TD_F16, .n_temperatures = 1, .n_vocab = 50};
    td_layout_counts counts = {4, s->n_tokens, s->n_rows, s->id_offsets[4], 0};
    forged good = {0};
    good.data = td_fixture_read(f.cfg.output.dir, "shard-000000.safetensors", &good.n);
    cr_assert(td_layout_init(&good.layout, &spec, &counts));
    good.header = good.n - good.layout.data_size_bytes;
    for (size_t i = 0; i < TD_ARRAY_LEN(cases); i++) {
        forged bad = good;
        bad.data = malloc(good.n);
        memcpy(bad.data, good.data, good.n);
        cases[i].forge(&bad);
        seal(&bad);
        overwrite(path, bad.data, bad.n);
        cr_assert_eq(verify_text(f.cfg.output.dir, &text), TD_E_VERIFY, "case %zu: %s", i, text);
        cr_assert(strstr(text, cases[i].word), "case %zu (%s): %s", i, cases[i].word, text);
        cr_assert_not(strstr(text, "damaged"), "case %zu: %s", i, text);
        free(text);
        /* inspect must survive it, whatever it shows */
        FILE *sink = fopen("/dev/null", "w");
        td_inspect_options opt = {.sample = -1};
        td_inspect(f.cfg.output.dir, &opt, sink, &err);
        fclose(sink);
        free(bad.data);
    }
    forged same = good; /* sealing alone changes nothing: the cases above fail for their reason */
    seal(&same);
    overwrite(path, same.data, same.n);
    cr_assert_eq(verify_text(f.cfg.output.dir, &text), TD_OK, "%s", text);
    free(text);
    free(good.data);
    free(path);
    td_fixture_shard_free(s);
    td_fixture_free(&f);
}

Test(verify, names_the_damaged_tensor) {
    td_fixture f;
    make_run(&f, 2);
    size_t n = 0;
    char *data = td_fixture_read(f.cfg.output.dir, "shard-000001.safetensors", &n), *text;
    char *path = td_asprintf("%s/shard-000001.safetensors", f.cfg.output.dir);
    td_safetensors *st;
    td_error err;
    must(td_safetensors_open(path, TD_E_VERIFY, &st, &err), &err);
    size_t data_size;
    td_safetensors_data(st, &data_size);
    const td_st_tensor *t = td_safetensors_find(st, "sample_id_bytes");
    data[n - data_size + t->data_begin] ^= 1;
    td_safetensors_close(st);
    overwrite(path, data, n);
    cr_assert_eq(verify_text(f.cfg.output.dir, &text), TD_E_VERIFY);
    cr_assert(strstr(text, "shard-000001.safetensors: damaged: the hash of sample_id_bytes"), "%s",
              text);
    cr_assert_not(strstr(text, "shard-000000"), "%s", text);
    free(text);
    free(path);
    free(data);
    td_fixture_free(&f);
}

Test(verify, gaps_are_noted_and_renamed_shards_found) {
    td_fixture f;
    make_run(&f, 3);
    char *text, *a = td_asprintf("%s/shard-000001.safetensors", f.cfg.output.dir);
    char *b = td_asprintf("%s/shard-000007.safetensors", f.cfg.output.dir);
    cr_assert_eq(rename(a, b), 0);
    cr_assert_eq(verify_text(f.cfg.output.dir, &text), TD_E_VERIFY);
    cr_assert(strstr(text, "lists shard 1, which is not there"), "%s", text);
    cr_assert(strstr(text, "shard-000007.safetensors: says that it is shard 1"), "%s", text);
    cr_assert(strstr(text, "note: 5 shards below the last one are not"), "%s", text);
    free(text);
    free(a);
    free(b);
    td_fixture_free(&f);
}

Test(verify, a_folder_that_is_no_output_is_refused) {
    td_fixture f;
    td_fixture_init(&f);
    char *text;
    cr_assert_eq(verify_text(f.dir, &text), TD_E_OUTPUT);
    cr_assert(strstr(text, "no output folder of tdgen"), "%s", text);
    free(text);
    cr_assert_eq(verify_text(f.cfg.output.dir, &text), TD_E_OUTPUT);
    free(text);
    td_fixture_free(&f);
}

/* --- inspect ---------------------------------------------------------------------------------- */

static td_status inspect_text(const char *dir, const td_inspect_options *opt, char **text) {
    size_t n;
    td_error err = {0};
    FILE *out = open_memstream(text, &n);
    td_status rc = td_inspect(dir, opt, out, &err);
    if (rc != TD_OK)
        fprintf(out, "error: %s\n", err.text);
    fclose(out);
    return rc;
}

Test(inspect, shows_the_sample_asked_for_within_100_columns) {
    td_fixture f;
    make_run(&f, 2);
    char *text;
    td_inspect_options opt = {.sample = 6, .n_positions = 1, .n_candidates = 3};
    cr_assert_eq(inspect_text(f.cfg.output.dir, &opt, &text), TD_OK, "%s", text);
    cr_assert(strstr(text, "Sample 6 (shard 1, dataset row 6, id \"row-6\")"), "%s", text);
    cr_assert(strstr(text, "8 samples"), "%s", text);
    cr_assert(strstr(text, "top 4 of 50 tokens as f16"), "%s", text);
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
        if (!strstr(line, "/tmp/"))
            cr_assert_leq(td_text_width(line), 100, "%s", line);
    free(text);
    opt.sample = 1; /* one token: nothing to predict */
    cr_assert_eq(inspect_text(f.cfg.output.dir, &opt, &text), TD_OK, "%s", text);
    cr_assert(strstr(text, "no positions"), "%s", text);
    free(text);
    opt.sample = 8;
    cr_assert_eq(inspect_text(f.cfg.output.dir, &opt, &text), TD_E_CONFIG);
    cr_assert(strstr(text, "the folder has 8"), "%s", text);
    free(text);
    td_fixture_free(&f);
}

Test(inspect, lists_each_device_kind_once) {
    static const char *const kinds[] = {"gpu A2", "gpu A", "big gpu A", "gpu A"};
    td_fixture f;
    td_error err;
    td_output *o;
    char *text;
    td_fixture_init(&f);
    cr_assert_eq(td_fixture_open(&f, &o, &err), TD_OK, "%s", err.text);
    for (int64_t k = 0; k < 4; k++) {
        td_shard *s = td_fixture_shard(&f, k, 4);
        td_shard_writer *w;
        cr_assert_eq(td_shard_writer_open(o, s, &kinds[k], 1, &w, &err), TD_OK, "%s", err.text);
        for (int32_t i = 0; i < 4; i++) {
            td_captured c = td_fixture_capture(&f, s, i);
            cr_assert_eq(td_shard_writer_put(w, i, 0, &c, 0, &err), TD_OK, "%s", err.text);
            td_fixture_captured_free(&c);
        }
        cr_assert_eq(td_shard_writer_commit(w, &err), TD_OK, "%s", err.text);
        td_fixture_shard_free(s);
    }
    td_output_close(o);
    td_inspect_options opt = {.sample = -1};
    cr_assert_eq(inspect_text(f.cfg.output.dir, &opt, &text), TD_OK, "%s", text);
    cr_assert(strstr(text, "devices    gpu A2, gpu A, big gpu A\n"), "%s", text);
    free(text);
    td_fixture_free(&f);
}

Test(inspect, token_texts_come_from_the_runs_own_tokenizer_only) {
    static const char demo[] = TD_SOURCE_DIR "/demo/teacher";
    td_tokenizer *tok;
    td_error err;
    char *text;
    must(td_tokenizer_load(demo, &tok, &err), &err);
    td_fixture f;
    td_fixture_init(&f);
    f.id.tokenizer_hash = td_tokenizer_hash(tok);
    must(td_fixture_run(&f, 1, NULL, &err), &err);
    td_shard *s = td_fixture_shard(&f, 0, 4);
    td_strbuf raw = {0}, shown = {0};
    td_tokenizer_token_text(tok, s->ids[1], &raw);
    td_text_printable(raw.data, raw.len, &shown);
    td_inspect_options opt = {.sample = 0, .n_positions = 1, .model_dir = demo};
    cr_assert_eq(inspect_text(f.cfg.output.dir, &opt, &text), TD_OK, "%s", text);
    char *row = strstr(text, "     0  ");
    char *number = td_asprintf("#%d ", s->ids[1]);
    cr_assert(row && strstr(row, shown.data) && !strstr(row, number), "%s", text);
    free(number);
    free(text);
    opt.model_dir = NULL; /* the run's model folder is gone: ids, and a word on why */
    cr_assert_eq(inspect_text(f.cfg.output.dir, &opt, &text), TD_OK, "%s", text);
    cr_assert(strstr(text, "#N are token ids") && strstr(text, "--model"), "%s", text);
    free(text);
    td_fixture_free(&f);

    td_fixture_init(&f); /* of another tokenizer */
    must(td_fixture_run(&f, 1, NULL, &err), &err);
    opt.model_dir = demo;
    cr_assert_eq(inspect_text(f.cfg.output.dir, &opt, &text), TD_E_MODEL);
    cr_assert(strstr(text, "not the tokenizer that this run used"), "%s", text);
    free(text);
    td_strbuf_free(&raw);
    td_strbuf_free(&shown);
    td_tokenizer_free(tok);
    td_fixture_shard_free(s);
    td_fixture_free(&f);
}

Test(inspect, text_is_safe_for_a_terminal_and_measured) {
    td_strbuf b = {0};
    static const char raw[] = "a\x1b[31m\n\t\0\xff\xe2\x80\xae\xd8\x9c\xe4\xb8\xad";
    td_text_printable(raw, sizeof raw - 1, &b);
    cr_assert_str_eq(b.data, "a\\x1B[31m\\n\\t\\x00\\xFF\\u202E\\u061C\xe4\xb8\xad");
    cr_assert_eq(td_text_width("abc"), 3);
    cr_assert_eq(td_text_width("\xe4\xb8\xad\xe6\x96\x87"), 4); /* two wide characters */
    cr_assert_eq(td_text_width("e\xcc\x81"), 1);                /* e + combining acute */
    cr_assert_eq(td_text_width("\xf0\x9f\x98\x80"), 2);         /* an emoji */
    for (int w = 1; w < 8; w++) {
        td_strbuf_clear(&b);
        td_text_cell("\xe4\xb8\xad\xe6\x96\x87x", w, &b);
        cr_assert_eq(td_text_width(b.data), w, "%d: %s", w, b.data);
    }
    td_strbuf_free(&b);
}

Test(record, f16_rounding_clamps_finite_values_only) {
    cr_assert_eq(td_logprob_to_f16(-1e30f), 0xfbff);
    cr_assert_eq(td_logprob_to_f16(-65520.0f), 0xfbff);
    cr_assert_eq(td_logprob_to_f16(-(float)INFINITY), 0xfc00);
    cr_assert_eq(td_logprob_to_f16(-0.5f), 0xb800);
}
