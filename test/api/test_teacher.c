/* tdgen/teacher.h, through libtdgen.so itself, on the demo teacher and the CPU. */
#include <criterion/criterion.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/memory.h"
#include "base/safetensors.h"
#include "tdgen/teacher.h"
#include "test/common.h"
#include "test/record/fixture.h"

#define TEACHER TD_SOURCE_DIR "/demo/teacher"

_Static_assert(TDGEN_COMPUTE_AUTO == 0 && TDGEN_COMPUTE_F32 == 1 && TDGEN_COMPUTE_BF16 == 2 &&
                   TDGEN_COMPUTE_F16 == 3 && TDGEN_LOG_SILENT == 0 && TDGEN_LOG_DEBUG == 3,
               "values are fixed");

enum { V = 2048, MAX_ROWS = 512, MAX_SEQUENCES = 16 };

#define FAILS(want, part, call)                                                                    \
    do {                                                                                           \
        tdgen_error failure = {0};                                                                 \
        tdgen_status got = (call);                                                                 \
        cr_assert_eq(got, want, "%s: %s, %s", #call, tdgen_status_name(got), failure.text);        \
        cr_assert_eq(failure.code, want);                                                          \
        cr_assert(strstr(failure.text, part), "no \"%s\" in: %s", part, failure.text);             \
    } while (0)

static tdgen_teacher *open_teacher(int32_t max_tokens, int32_t top_k, int32_t n_valid) {
    tdgen_teacher_options o = TDGEN_TEACHER_OPTIONS_INIT;
    tdgen_teacher *t = NULL;
    tdgen_error err = {0};
    o.device = "cpu";
    o.max_tokens = max_tokens;
    o.top_k = top_k;
    o.n_valid_ids = n_valid;
    cr_assert_eq(tdgen_teacher_open(TEACHER, &o, &t, &err), TDGEN_OK, "%s", err.text);
    return t;
}

/* Copies of all that was handed out. */
typedef struct taken {
    size_t n;
    struct {
        int32_t n_rows, positions[MAX_ROWS], targets[MAX_ROWS], ranks[MAX_ROWS];
        float logprobs[MAX_ROWS], logsumexps[MAX_ROWS], entropies[MAX_ROWS], tails[MAX_ROWS];
        int32_t top_ids[MAX_ROWS][4];
        float top_logprobs[MAX_ROWS][4];
    } s[MAX_SEQUENCES];
    size_t stop_at;       /* asks to stop at this sequence; SIZE_MAX: never */
    tdgen_teacher *again; /* scores from within the callback */
} taken;

static int take(const tdgen_scores *s, void *user) {
    taken *t = user;
    cr_assert_eq(s->sequence, t->n, "in order");
    if (t->n == t->stop_at)
        return 1;
    if (t->again)
        cr_assert_eq(tdgen_teacher_score(t->again, NULL, 0, take, NULL, NULL), TDGEN_E_ARGUMENT);
    size_t i = t->n++;
    cr_assert_eq(s->top_k, 4);
    t->s[i].n_rows = s->n_rows;
    for (int32_t r = 0; r < s->n_rows; r++) {
        t->s[i].positions[r] = s->positions[r];
        t->s[i].targets[r] = s->targets[r];
        t->s[i].ranks[r] = s->target_ranks[r];
        t->s[i].logprobs[r] = s->target_logprobs[r];
        t->s[i].logsumexps[r] = s->logsumexps[r];
        t->s[i].entropies[r] = s->entropies[r];
        t->s[i].tails[r] = s->tail_masses[r];
        memcpy(t->s[i].top_ids[r], s->top_ids + 4 * r, 16);
        memcpy(t->s[i].top_logprobs[r], s->top_logprobs + 4 * r, 16);
    }
    return 0;
}

static taken *score(tdgen_teacher *t, const tdgen_sequence *sequences, size_t n) {
    taken *all = td_calloc(1, sizeof *all);
    tdgen_error err = {0};
    all->stop_at = SIZE_MAX;
    cr_assert_eq(tdgen_teacher_score(t, sequences, n, take, all, &err), TDGEN_OK, "%s", err.text);
    cr_assert_eq(all->n, n);
    return all;
}

/* Sequences of 40, 1, 0, 17, 64, 2, 33 and 64 tokens. */
static const int32_t LENGTHS[] = {40, 1, 0, 17, 64, 2, 33, 64};
enum { N = TD_ARRAY_LEN(LENGTHS) };
static int32_t g_ids[N][64];

static void make_sequences(tdgen_sequence out[N]) {
    uint32_t x = 12345;
    for (int i = 0; i < N; i++) {
        for (int32_t k = 0; k < LENGTHS[i]; k++) {
            x = x * 1664525u + 1013904223u;
            g_ids[i][k] = (int32_t)((x >> 8) % V);
        }
        out[i] = (tdgen_sequence){LENGTHS[i] ? g_ids[i] : NULL, NULL, LENGTHS[i]};
    }
}

/* What is said of a sequence hangs together. */
Test(api_teacher, numbers) {
    tdgen_sequence s[N];
    make_sequences(s);
    tdgen_teacher *t = open_teacher(128, 4, 0);
    const tdgen_teacher_info *info = tdgen_teacher_get_info(t);
    cr_assert_str_eq(info->architecture, "LlamaForCausalLM");
    cr_assert_str_eq(info->device, "cpu:0");
    cr_assert_eq(strncmp(info->device_kind, "cpu ", 4), 0);
    cr_assert_neq(info->compute, TDGEN_COMPUTE_AUTO);
    cr_assert(info->max_tokens == 128 && info->top_k == 4 && info->n_valid_ids == V);
    cr_assert(info->n_vocab == V && info->n_hidden == 128 && info->n_layers == 4);
    cr_assert(info->max_positions == 512 && info->bos_id == 0 && info->eos_id == 1);
    cr_assert_gt(info->n_params, 900000);
    cr_assert_gt(info->memory_bytes, 2 * (uint64_t)info->n_params);
    taken *all = score(t, s, N);
    for (int i = 0; i < N; i++) {
        cr_assert_eq(all->s[i].n_rows, TD_MAX(LENGTHS[i] - 1, 0));
        for (int32_t r = 0; r < all->s[i].n_rows; r++) {
            const float *top = all->s[i].top_logprobs[r];
            double sum = (double)all->s[i].tails[r];
            cr_assert_eq(all->s[i].positions[r], r);
            cr_assert_eq(all->s[i].targets[r], g_ids[i][r + 1]);
            cr_assert(all->s[i].ranks[r] >= 0 && all->s[i].ranks[r] < V);
            cr_assert(all->s[i].entropies[r] > 0 && (double)all->s[i].entropies[r] < log(V));
            cr_assert(isfinite(all->s[i].logsumexps[r]));
            for (int k = 0; k < 4; k++) {
                sum += exp((double)top[k]);
                cr_assert(k == 0 || top[k] <= top[k - 1]);
                if (all->s[i].ranks[r] == k)
                    cr_assert(all->s[i].top_ids[r][k] == all->s[i].targets[r] &&
                              top[k] == all->s[i].logprobs[r]);
            }
            cr_assert_float_eq(sum, 1, 1e-4, "%g", sum);
            if (all->s[i].ranks[r] >= 4)
                cr_assert_leq(all->s[i].logprobs[r], top[3]);
        }
    }
    free(all);
    tdgen_teacher_close(t);
}

/* No bit depends on the size of micro-batches, on neighbours or on threads. */
Test(api_teacher, same_bits) {
    tdgen_sequence s[N];
    make_sequences(s);
    tdgen_teacher *wide = open_teacher(0, 4, 0), *narrow = open_teacher(64, 4, 0), *single = NULL;
    tdgen_teacher_options o = TDGEN_TEACHER_OPTIONS_INIT;
    o.device = "cpu:0";
    o.top_k = 4;
    o.n_threads = 1;
    cr_assert_eq(tdgen_teacher_open(TEACHER, &o, &single, NULL), TDGEN_OK);
    taken *a = score(wide, s, N), *b = score(narrow, s, N), *c = score(single, s, N);
    cr_assert_eq(memcmp(a, b, sizeof *a), 0);
    cr_assert_eq(memcmp(a, c, sizeof *a), 0);
    for (int i = 0; i < N; i++) {
        taken *one = score(narrow, &s[i], 1);
        cr_assert_eq(memcmp(&one->s[0], &a->s[i], sizeof one->s[0]), 0, "sequence %d", i);
        free(one);
    }
    free(a);
    free(b);
    free(c);
    tdgen_teacher_close(wide);
    tdgen_teacher_close(narrow);
    tdgen_teacher_close(single);
}

Test(api_teacher, loss_mask) {
    tdgen_sequence s[N];
    uint8_t mask[64] = {1}; /* of the first token: nothing predicts it */
    make_sequences(s);
    tdgen_teacher *t = open_teacher(64, 4, 0);
    taken *all = score(t, s, N);
    mask[1] = mask[7] = mask[63] = 1;
    s[4].loss_mask = mask;
    s[7].loss_mask = (const uint8_t[64]){0};
    taken *some = score(t, s, N);
    cr_assert_eq(some->s[4].n_rows, 3);
    cr_assert_eq(some->s[7].n_rows, 0);
    for (int32_t r = 0, at[] = {0, 6, 62}; r < 3; r++) {
        cr_assert_eq(some->s[4].positions[r], at[r]);
        cr_assert_eq(some->s[4].targets[r], g_ids[4][at[r] + 1]);
        cr_assert_eq(some->s[4].logprobs[r], all->s[4].logprobs[at[r]]);
        cr_assert_eq(some->s[4].top_ids[r][3], all->s[4].top_ids[at[r]][3]);
    }
    cr_assert_eq(memcmp(&some->s[6], &all->s[6], sizeof all->s[6]), 0);
    free(all);
    free(some);
    tdgen_teacher_close(t);
}

Test(api_teacher, valid_ids) {
    const int32_t ids[] = {0, 5, 2000, 7};
    const tdgen_sequence s = {ids, NULL, 4};
    tdgen_teacher *t = open_teacher(16, 4, 1000);
    cr_assert_eq(tdgen_teacher_get_info(t)->n_valid_ids, 1000);
    taken *all = score(t, &s, 1);
    cr_assert(all->s[0].logprobs[1] == -INFINITY && all->s[0].ranks[1] == -1);
    cr_assert(isfinite(all->s[0].logprobs[0]) && isfinite(all->s[0].logprobs[2]));
    for (int32_t r = 0; r < 3; r++)
        for (int k = 0; k < 4; k++)
            cr_assert_lt(all->s[0].top_ids[r][k], 1000);
    free(all);
    tdgen_teacher_close(t);
}

Test(api_teacher, wrong_options) {
    tdgen_teacher *t = NULL;
    tdgen_teacher_options o = {0};
    FAILS(TDGEN_E_ARGUMENT, "dir is NULL", tdgen_teacher_open(NULL, NULL, &t, &failure));
    FAILS(TDGEN_E_ARGUMENT, "out is NULL", tdgen_teacher_open(TEACHER, NULL, NULL, &failure));
    FAILS(TDGEN_E_ARGUMENT, "struct_size", tdgen_teacher_open(TEACHER, &o, &t, &failure));
    FAILS(TDGEN_E_MODEL, "nowhere", tdgen_teacher_open("/nowhere", NULL, &t, &failure));
    const struct {
        tdgen_teacher_options o;
        tdgen_status want;
        const char *part;
    } cases[] = {
        {{sizeof o, "gpu", 0, 0, 0, 0, 0}, TDGEN_E_ARGUMENT, "no device is called \"gpu\""},
        {{sizeof o, "cpu:1x", 0, 0, 0, 0, 0}, TDGEN_E_ARGUMENT, "no device is called \"cpu:1x\""},
        {{sizeof o, "cpu:7", 0, 0, 0, 0, 0}, TDGEN_E_DEVICE, "no device cpu:7"},
        {{sizeof o, "cuda:999", 0, 0, 0, 0, 0}, TDGEN_E_DEVICE, "no device cuda:999"},
        {{sizeof o, "cpu", TDGEN_COMPUTE_F16, 0, 0, 0, 0}, TDGEN_E_DEVICE, "compute in f16"},
        {{sizeof o, "cpu", (tdgen_compute)9, 0, 0, 0, 0}, TDGEN_E_ARGUMENT, "compute is 9"},
        {{sizeof o, "cpu", 0, -1, 0, 0, 0}, TDGEN_E_ARGUMENT, "max_tokens is -1"},
        {{sizeof o, "cpu", 0, 1 << 25, 0, 0, 0}, TDGEN_E_ARGUMENT, "max_tokens is 33554432"},
        {{sizeof o, "cpu", 0, 0, 1025, 0, 0}, TDGEN_E_ARGUMENT, "top_k is 1025"},
        {{sizeof o, "cpu", 0, 0, 0, 2049, 0}, TDGEN_E_ARGUMENT, "n_valid_ids is 2049"},
        {{sizeof o, "cpu", 0, 0, 0, 0, 5000}, TDGEN_E_ARGUMENT, "n_threads is 5000"},
    };
    for (size_t i = 0; i < TD_ARRAY_LEN(cases); i++)
        FAILS(cases[i].want, cases[i].part, tdgen_teacher_open(TEACHER, &cases[i].o, &t, &failure));
    cr_assert_null(t, "untouched on failure");
    cr_assert_null(tdgen_teacher_get_info(NULL));
    tdgen_teacher_close(NULL);
}

Test(api_teacher, wrong_sequences) {
    tdgen_teacher *t = open_teacher(64, 4, 0);
    int32_t ids[65] = {0};
    taken *all = td_calloc(1, sizeof *all);
    tdgen_sequence s[2] = {{ids, NULL, 8}, {ids, NULL, 65}};
    all->stop_at = SIZE_MAX;
    FAILS(TDGEN_E_DATA, "sequence 1 has 65 tokens",
          tdgen_teacher_score(t, s, 2, take, all, &failure));
    s[1].n_ids = 9;
    ids[8] = V;
    FAILS(TDGEN_E_DATA, "sequence 1: token 8", tdgen_teacher_score(t, s, 2, take, all, &failure));
    ids[8] = -1;
    FAILS(TDGEN_E_DATA, "has the id -1", tdgen_teacher_score(t, s, 2, take, all, &failure));
    s[1].n_ids = -1;
    FAILS(TDGEN_E_ARGUMENT, "negative", tdgen_teacher_score(t, s, 2, take, all, &failure));
    s[1] = (tdgen_sequence){NULL, NULL, 3};
    FAILS(TDGEN_E_ARGUMENT, "ids is NULL", tdgen_teacher_score(t, s, 2, take, all, &failure));
    FAILS(TDGEN_E_ARGUMENT, "fn is NULL", tdgen_teacher_score(t, s, 1, NULL, all, &failure));
    FAILS(TDGEN_E_ARGUMENT, "sequences is NULL",
          tdgen_teacher_score(t, NULL, 1, take, all, &failure));
    FAILS(TDGEN_E_ARGUMENT, "teacher is NULL",
          tdgen_teacher_score(NULL, s, 1, take, all, &failure));
    cr_assert_eq(all->n, 0, "nothing was computed");
    cr_assert_eq(tdgen_teacher_score(t, NULL, 0, take, all, NULL), TDGEN_OK, "nothing to do");
    cr_assert_eq(tdgen_teacher_score(t, s, 1, take, all, NULL), TDGEN_OK);
    cr_assert_eq(all->n, 1);
    free(all);
    tdgen_teacher_close(t);
}

/* A callback may end a call, with micro-batches in flight, but not begin another. */
Test(api_teacher, stopped) {
    tdgen_sequence s[N];
    make_sequences(s);
    tdgen_teacher *t = open_teacher(64, 4, 0);
    taken *all = score(t, s, N);
    for (size_t stop = 0; stop < N; stop++) {
        taken *some = td_calloc(1, sizeof *some);
        some->stop_at = stop;
        FAILS(TDGEN_E_STOPPED, "stopped at sequence",
              tdgen_teacher_score(t, s, N, take, some, &failure));
        cr_assert_eq(some->n, stop);
        cr_assert_eq(memcmp(some->s, all->s, stop * sizeof *some->s), 0);
        memset(some, 0, sizeof *some);
        some->stop_at = SIZE_MAX;
        some->again = t;
        cr_assert_eq(tdgen_teacher_score(t, s, N, take, some, NULL), TDGEN_OK);
        cr_assert_eq(memcmp(some->s, all->s, sizeof all->s), 0, "as if never stopped");
        free(some);
    }
    free(all);
    tdgen_teacher_close(t);
}

/* --- teachers and devices that fail ------------------------------------------------------------ */

/* A copy of the demo teacher whose final norm is NaN. */
static void copy_with_nan(const char *dir) {
    static const char *const names[] = {"config.json", "model.safetensors"};
    td_error err = {0};
    for (size_t i = 0; i < TD_ARRAY_LEN(names); i++) {
        char *to = td_asprintf("%s/%s", dir, names[i]);
        size_t n = 0, data_size = 0;
        char *data = test_read_file(TEACHER, names[i], &n);
        cr_assert_not_null(data);
        if (i == 1) {
            td_safetensors *st = NULL;
            cr_assert_eq(td_safetensors_open(TEACHER "/model.safetensors", TD_E_MODEL, &st, &err),
                         TD_OK, "%s", err.text);
            const td_st_tensor *norm = td_safetensors_find(st, "model.norm.weight");
            cr_assert(norm && norm->dtype == TD_BF16);
            td_safetensors_data(st, &data_size);
            char *at = data + (n - data_size) + norm->data_begin;
            for (int64_t k = 0; k < norm->n_elems; k++)
                memcpy(at + 2 * k, &(uint16_t){0x7fc0}, 2);
            td_safetensors_close(st);
        }
        cr_assert_eq(td_file_write_atomic(to, data, n, false, &err), TD_OK, "%s", err.text);
        free(data);
        free(to);
    }
}

Test(api_teacher, not_finite) {
    char dir[] = "/tmp/tdgen-api-XXXXXX";
    tdgen_sequence s[N];
    tdgen_teacher *t = NULL;
    tdgen_error err = {0};
    make_sequences(s);
    cr_assert(mkdtemp(dir));
    copy_with_nan(dir);
    cr_assert_eq(tdgen_teacher_open(dir, NULL, &t, &err), TDGEN_OK, "%s", err.text);
    for (int again = 0; again < 2; again++)
        FAILS(TDGEN_E_NUMBERS, "sequence 0: the logits at position 0 are not finite",
              tdgen_teacher_score(t, s, N, take, &(taken){.stop_at = SIZE_MAX}, &failure));
    tdgen_teacher_close(t);
    test_remove_tree(dir);
}

Test(api_teacher, device_fails) {
    tdgen_sequence s[N];
    make_sequences(s);
    tdgen_teacher *t = NULL;
    tdgen_teacher_options o = TDGEN_TEACHER_OPTIONS_INIT;
    taken *all = td_calloc(1, sizeof *all);
    all->stop_at = SIZE_MAX;
    o.device = "cpu";
    o.max_tokens = 64;
    o.top_k = 4;
    setenv("TDGEN_DEBUG_FAIL_OP", "cpu:0 gemm 50", 1);
    cr_assert_eq(tdgen_teacher_open(TEACHER, &o, &t, NULL), TDGEN_OK);
    FAILS(TDGEN_E_DEVICE, "cpu:0", tdgen_teacher_score(t, s, N, take, all, &failure));
    cr_assert_gt(all->n, 0, "what came before was delivered");
    FAILS(TDGEN_E_DEVICE, "failed before", tdgen_teacher_score(t, s, N, take, all, &failure));
    tdgen_teacher_close(t);
    t = NULL;
    unsetenv("TDGEN_DEBUG_FAIL_OP");
    setenv("TDGEN_DEBUG_FAIL_ALLOC", "5", 1);
    FAILS(TDGEN_E_MEMORY, "cpu:0", tdgen_teacher_open(TEACHER, &o, &t, &failure));
    cr_assert_null(t);
    free(all);
}

/* --- manners ---------------------------------------------------------------------------------- */

/* Bytes on stderr while an FP8 teacher is opened, of which a program says a line. */
static off_t noise(bool told) {
    char path[] = "/tmp/tdgen-api-XXXXXX";
    tdgen_teacher *t = NULL;
    tdgen_error err = {0};
    struct stat st;
    int fd = mkstemp(path), old = dup(STDERR_FILENO);
    cr_assert(fd >= 0 && old >= 0 && dup2(fd, STDERR_FILENO) >= 0);
    if (told)
        tdgen_set_log_level(TDGEN_LOG_INFO);
    tdgen_status rc =
        tdgen_teacher_open(TD_SOURCE_DIR "/test/fixtures/families/llama_fp8_block", NULL, &t, &err);
    tdgen_set_log_level(TDGEN_LOG_SILENT);
    dup2(old, STDERR_FILENO);
    close(old);
    cr_assert_eq(rc, TDGEN_OK, "%s", err.text);
    cr_assert_eq(fstat(fd, &st), 0);
    close(fd);
    unlink(path);
    tdgen_teacher_close(t);
    return st.st_size;
}

Test(api_teacher, silent) {
    cr_assert_eq(noise(false), 0);
    cr_assert_gt(noise(true), 20);
    cr_assert_eq(noise(false), 0);
}

Test(api_teacher, signals) {
    struct sigaction before[NSIG] = {0}, after[NSIG] = {0};
    sigset_t mask[2];
    tdgen_sequence s[N];
    make_sequences(s);
    sigprocmask(SIG_SETMASK, NULL, &mask[0]);
    for (int i = 1; i < NSIG; i++)
        sigaction(i, NULL, &before[i]);
    tdgen_teacher *t = open_teacher(64, 4, 0);
    free(score(t, s, N));
    tdgen_teacher_close(t);
    sigprocmask(SIG_SETMASK, NULL, &mask[1]);
    for (int i = 1; i < NSIG; i++) {
        sigaction(i, NULL, &after[i]);
        cr_assert_eq(before[i].sa_handler, after[i].sa_handler, "signal %d", i);
        cr_assert_eq(sigismember(&mask[0], i), sigismember(&mask[1], i), "signal %d", i);
    }
}
