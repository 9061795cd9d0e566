/* fixture.c - cases, memory, comparisons and main: see fixture.h. */
#include "fixture.h"
#include "base/clock.h"
#include "base/memory.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#include "test/common.h"

enum { MAX_HELD = 4096, MAX_PRINTED = 5, FENCE_BYTES = 256, FENCE = 0x5a };

gt_side gt_cpu, gt_dut;
bool gt_large, gt_fills;
td_error gt_err;

static td_device_info *infos; /* of the backend under test */
static int32_t n_infos;
static jmp_buf case_end;
static const char *case_name;
static int32_t case_failures;

/* What the running case holds, freed in reverse order. */
typedef struct held {
    enum { HELD_HOST, HELD_DEVICE, HELD_WEIGHT } kind;
    gt_side *side;
    void *p;
    size_t size_bytes;
} held;
static held held_things[MAX_HELD];
static int32_t n_held;

/* --- failures --------------------------------------------------------------------------------- */

static void fail_text(const char *fmt, va_list args) {
    if (case_failures++ < MAX_PRINTED) {
        char text[1000];
        vsnprintf(text, sizeof(text), fmt, args);
        printf("    FAILED: %s: %s\n", case_name, text);
        fflush(stdout);
    }
}

void gt_fail(const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    fail_text(fmt, args);
    va_end(args);
}

void gt_must(td_status st, const char *what) {
    if (!st)
        return;
    gt_fail("%.160s: status %d: %s", what, (int)st, gt_err.text);
    if (st == TD_E_DEVICE_LOST) {
        printf("    the device is lost: no further case can run\n");
        exit(1);
    }
    longjmp(case_end, 1);
}

/* --- memory ----------------------------------------------------------------------------------- */

static void hold(int kind, gt_side *side, void *p, size_t size_bytes) {
    if (n_held == MAX_HELD) {
        printf("    FAILED: %s holds more than %d things\n", case_name, MAX_HELD);
        exit(1);
    }
    held_things[n_held++] = (held){kind, side, p, size_bytes};
}

void *gt_host(size_t size_bytes) {
    void *p = calloc(1, size_bytes ? size_bytes : 1);
    if (!p) {
        printf("    FAILED: %s: no host memory for %zu bytes\n", case_name, size_bytes);
        exit(1);
    }
    hold(HELD_HOST, NULL, p, size_bytes);
    return p;
}

static size_t fence_bytes(const gt_side *side) {
    return gt_large && side == &gt_dut ? FENCE_BYTES : 0;
}

void gt_sync(gt_side *side) {
    GT_MUST(side->ops->event_record(side->done, side->s, &gt_err));
    GT_MUST(side->ops->event_sync(side->done, 300, &gt_err));
}

void gt_set(gt_side *side, void *dst, const void *src, size_t size_bytes) {
    GT_MUST(side->ops->copy_in(side->s, dst, src, size_bytes, &gt_err));
    gt_sync(side);
}

void gt_get(gt_side *side, void *dst, const void *src, size_t size_bytes) {
    GT_MUST(side->ops->copy_out(side->s, dst, src, size_bytes, &gt_err));
    gt_sync(side);
}

void *gt_put(gt_side *side, const void *src, size_t size_bytes) {
    const size_t fence = fence_bytes(side);
    void *p;
    GT_MUST(side->ops->alloc(side->dev, size_bytes + fence, &p, &gt_err));
    hold(HELD_DEVICE, side, p, size_bytes);
    if (!src && !fence && !gt_fills)
        return p;
    unsigned char *fill = malloc(size_bytes + fence + 1);
    if (!fill) {
        printf("    FAILED: %s: no host memory\n", case_name);
        exit(1);
    }
    if (src)
        memcpy(fill, src, size_bytes);
    else
        memset(fill, 0xff, size_bytes);
    memset(fill + size_bytes, FENCE, fence);
    td_status st = side->ops->copy_in(side->s, p, fill, size_bytes + fence, &gt_err);
    st = st ? st : side->ops->event_record(side->done, side->s, &gt_err);
    st = st ? st : side->ops->event_sync(side->done, 300, &gt_err);
    free(fill);
    gt_must(st, "copy_in of a new array");
    return p;
}

/* Read without gt_must: this runs on the way out of a failed case too. */
static void fence_check(const held *h) {
    unsigned char fence[FENCE_BYTES];
    const gt_side *s = h->side;
    if (!fence_bytes(s))
        return;
    td_status st =
        s->ops->copy_out(s->s, fence, (char *)h->p + h->size_bytes, FENCE_BYTES, &gt_err);
    st = st ? st : s->ops->event_record(s->done, s->s, &gt_err);
    st = st ? st : s->ops->event_sync(s->done, 300, &gt_err);
    for (int i = 0; i < FENCE_BYTES && !st; i++)
        if (fence[i] != FENCE) {
            gt_fail("byte %d behind an array of %zu bytes was written", i, h->size_bytes);
            return;
        }
}

void gt_release(void) {
    while (n_held > 0) {
        const held h = held_things[--n_held];
        switch (h.kind) {
        case HELD_HOST:
            free(h.p);
            break;
        case HELD_DEVICE:
            fence_check(&h);
            h.side->ops->free(h.side->dev, h.p);
            break;
        case HELD_WEIGHT:
            h.side->ops->weight_destroy(h.p);
            break;
        }
    }
}

td_weight *gt_weight(gt_side *side, const float *w, int64_t n, int64_t k, td_dtype compute) {
    td_weight *out;
    const td_host_matrix part = {w, TD_F32, n, k};
    GT_MUST(side->ops->weight_prepare(side->dev, &part, 1, compute, &out, &gt_err));
    hold(HELD_WEIGHT, side, out, 0);
    return out;
}

/* --- numbers ---------------------------------------------------------------------------------- */

uint64_t gt_next(gt_rng *r) {
    return test_xorshift(&r->s);
}

int32_t gt_below(gt_rng *r, int32_t n) {
    return (int32_t)((gt_next(r) >> 33) % (uint64_t)n);
}

float gt_normal(gt_rng *r) {
    const uint64_t a = gt_next(r), b = gt_next(r);
    const double sum = (double)(uint32_t)a + (double)(a >> 32) + (double)(uint32_t)b +
                       (double)(b >> 32); /* four of [0, 2^32) */
    return (float)((sum / 4294967296.0 - 2.0) * 1.7320508);
}

float *gt_floats(gt_rng *r, size_t n) {
    float *x = gt_host(n * sizeof(float));
    for (size_t i = 0; i < n; i++)
        x[i] = gt_normal(r);
    return x;
}

static float round_one(float x, td_dtype t) {
    return t == TD_BF16  ? td_bf16_to_f32(td_f32_to_bf16(x))
           : t == TD_F16 ? td_f16_to_f32(td_f32_to_f16(x))
                         : x;
}

void gt_round(float *x, size_t n, td_dtype t) {
    for (size_t i = 0; i < n; i++)
        x[i] = round_one(x[i], t);
}

float *gt_floats_of(gt_rng *r, size_t n, td_dtype t) {
    float *x = gt_floats(r, n);
    gt_round(x, n, t);
    return x;
}

void *gt_pack(const float *x, size_t n, td_dtype t) {
    char *p = gt_host(n * td_dtype_size(t));
    for (size_t i = 0; i < n; i++) {
        const uint16_t h = t == TD_BF16 ? td_f32_to_bf16(x[i]) : td_f32_to_f16(x[i]);
        if (t == TD_F32)
            memcpy(p + i * 4, &x[i], 4);
        else
            memcpy(p + i * 2, &h, 2);
    }
    return p;
}

float *gt_unpack(const void *x, size_t n, td_dtype t) {
    float *p = gt_host(n * sizeof(float));
    for (size_t i = 0; i < n; i++) {
        if (t == TD_F32)
            p[i] = ((const float *)x)[i];
        else if (t == TD_BF16)
            p[i] = td_bf16_to_f32(((const uint16_t *)x)[i]);
        else
            p[i] = td_f16_to_f32(((const uint16_t *)x)[i]);
    }
    return p;
}

double gt_ulp(td_dtype t) {
    return t == TD_BF16 ? 0x1p-7 : t == TD_F16 ? 0x1p-10 : 0x1p-23;
}

int32_t gt_computes(td_dtype out[3]) {
    const td_device_info *i = &gt_dut.dev->info;
    int32_t n = 0;
    if (i->has_f32)
        out[n++] = TD_F32;
    if (i->has_bf16)
        out[n++] = TD_BF16;
    if (i->has_f16)
        out[n++] = TD_F16;
    return n;
}

bool gt_turns_into(void) {
    return strcmp(gt_dut.ops->backend, "cpu") != 0;
}

bool gt_near(const float *got, const float *want, size_t n, int64_t cols, double abs_tol,
             double rel_tol, const char *fmt, ...) {
    for (size_t i = 0; i < n; i++) {
        const double g = (double)got[i], w = (double)want[i];
        if (isnan(w) ? isnan(g) : isinf(w) ? g == w : fabs(g - w) <= abs_tol + rel_tol * fabs(w))
            continue;
        char what[300];
        va_list args;
        va_start(args, fmt);
        vsnprintf(what, sizeof(what), fmt, args);
        va_end(args);
        size_t n_bad = 0;
        double worst = 0;
        for (size_t j = i; j < n; j++) {
            const double d = fabs((double)got[j] - (double)want[j]);
            if (!(d <= abs_tol + rel_tol * fabs((double)want[j])) && got[j] != want[j]) {
                n_bad++;
                worst = d > worst ? d : worst;
            }
        }
        gt_fail("%s [%lld, %lld]: %.9g, expected %.9g; %zu of %zu out of tolerance, by up to %.3g",
                what, (long long)((int64_t)i / cols), (long long)((int64_t)i % cols), g, w, n_bad,
                n, worst);
        return false;
    }
    return true;
}

bool gt_same_bits(const void *got, const void *want, size_t size_bytes, const char *fmt, ...) {
    if (!memcmp(got, want, size_bytes))
        return true;
    size_t i = 0;
    while (((const char *)got)[i] == ((const char *)want)[i])
        i++;
    char what[300];
    va_list args;
    va_start(args, fmt);
    vsnprintf(what, sizeof(what), fmt, args);
    va_end(args);
    float g = 0, w = 0;
    i = i / 4 * 4;
    if (i + 4 <= size_bytes) {
        memcpy(&g, (const char *)got + i, 4);
        memcpy(&w, (const char *)want + i, 4);
    }
    gt_fail("%s: other bits from byte %zu of %zu (as f32: %.9g, expected %.9g)", what, i,
            size_bytes, (double)g, (double)w);
    return false;
}

/* --- the contract of rows --------------------------------------------------------------------- */

int32_t gt_row_counts(int32_t max, int32_t out[16]) {
    static const int32_t counts[] = {1, 2, 7, 63, 64, 65, 127, 128, 129, 300, 1000};
    int32_t n = 0;
    for (size_t i = 0; i < TD_ARRAY_LEN(counts); i++)
        if (counts[i] <= max)
            out[n++] = counts[i];
    return n;
}

void gt_check_rows(const gt_rows *t, const int32_t *counts, int32_t n_counts, uint64_t seed) {
    enum { PROBES = 2 };
    gt_rng r = {seed * 2654435761u + 88172645463325252u};
    int32_t max = 1;
    for (int32_t i = 0; i < n_counts; i++)
        max = TD_MAX(max, counts[i]);
    char *rows = malloc((size_t)max * t->row_bytes), *out = malloc((size_t)max * t->out_bytes);
    char *probe = malloc(PROBES * t->row_bytes), *first = malloc(PROBES * t->out_bytes);
    if (!rows || !out || !probe || !first) {
        printf("    FAILED: no host memory\n");
        exit(1);
    }
    /* The arrays must outlive gt_release, which the operation may call. A failing GT_MUST leaks
     * them: the program fails then anyway. */
    for (int p = 0; p < PROBES; p++) {
        t->draw(&r, probe + (size_t)p * t->row_bytes, t->ctx);
        t->run(probe + (size_t)p * t->row_bytes, 1, first + (size_t)p * t->out_bytes, t->ctx);
    }
    for (int32_t c = 0; c < n_counts; c++) {
        const int32_t n = counts[c];
        const int n_kinds = t->hostile ? 3 : 1;
        /* Ordinary neighbours, then NaN, then huge ones (0x7f7f: 3.4e38 as f32 and bf16). */
        for (int kind = 0; kind < n_kinds; kind++) {
            const int32_t at[] = {kind == 0   ? 0
                                  : kind == 1 ? n - 1
                                              : gt_below(&r, n),
                                  gt_below(&r, n)};
            for (int32_t i = 0; i < n && kind == 0; i++)
                t->draw(&r, rows + (size_t)i * t->row_bytes, t->ctx);
            if (kind)
                memset(rows, kind == 1 ? 0xff : 0x7f, (size_t)n * t->row_bytes);
            for (int p = 0; p < PROBES; p++)
                memcpy(rows + (size_t)at[p] * t->row_bytes, probe + (size_t)p * t->row_bytes,
                       t->row_bytes);
            memset(out, 0xff, (size_t)n * t->out_bytes);
            t->run(rows, n, out, t->ctx);
            for (int p = 0; p < PROBES; p++)
                if (p == 1 || at[0] != at[1])
                    gt_same_bits(out + (size_t)at[p] * t->out_bytes,
                                 first + (size_t)p * t->out_bytes, t->out_bytes,
                                 "%s: row %d of %d among %s rows", t->name, at[p], n,
                                 kind == 0   ? "ordinary"
                                 : kind == 1 ? "NaN"
                                             : "huge");
        }
    }
    free(rows), free(out), free(probe), free(first);
}

/* --- devices and main ------------------------------------------------------------------------- */

static const char *backend(void) {
    const char *b = getenv("TDGEN_TEST_DEVICE");
    return b && *b ? b : "cuda";
}

int32_t gt_n_devices(void) {
    return n_infos;
}

static td_status open_side(gt_side *side, const td_device_info *info) {
    *side = (gt_side){0};
    td_status st = td_device_open(info, &side->dev, &gt_err);
    if (st)
        return st;
    side->ops = side->dev->ops;
    st = side->ops->stream_create(side->dev, &side->s, &gt_err);
    return st ? st : side->ops->event_create(side->dev, &side->done, &gt_err);
}

void gt_side_close(gt_side *side) {
    if (!side->dev)
        return;
    side->ops->stream_destroy(side->s);
    side->ops->event_destroy(side->done);
    td_device_close(side->dev);
    *side = (gt_side){0};
}

bool gt_side_open(gt_side *side, int32_t index) {
    *side = (gt_side){0};
    if (index >= n_infos)
        return false;
    GT_MUST(open_side(side, &infos[index]));
    return true;
}

static void must_start(td_status st, const char *what) {
    if (!st)
        return;
    printf("FAILED: %s: %s\n", what, gt_err.text);
    exit(1);
}

static void open_both(const char *program) {
    td_device_info *cpu;
    int32_t n_cpu;
    const bool self = !strcmp(backend(), "cpu");
    must_start(td_device_enumerate(backend(), self ? 2 : 0, &infos, &n_infos, &gt_err),
               "enumerate");
    if (n_infos == 0) {
        printf("%s: SKIPPED: this build (%s) or machine has no %s device; NOTHING was tested\n",
               program, td_device_backends(), backend());
        exit(GT_SKIPPED);
    }
    must_start(td_device_enumerate("cpu", 1, &cpu, &n_cpu, &gt_err), "enumerate cpu");
    must_start(open_side(&gt_cpu, &cpu[0]), "the oracle");
    must_start(open_side(&gt_dut, &infos[0]), "the device under test");
    free(cpu);
    const td_device_info *i = &gt_dut.dev->info;
    printf("%s: %s (%s; %s), %d such; compute f32%s%s%s; oracle %s\n", program, i->name, i->model,
           i->kind, n_infos, i->has_bf16 ? " bf16" : "", i->has_f16 ? " f16" : "",
           gt_large ? "; with real sizes" : "", gt_cpu.dev->info.kind);
    fflush(stdout);
}

/* A failed operation sticks to its stream: the next case gets a fresh one. */
static void renew_stream(gt_side *side) {
    side->ops->stream_destroy(side->s);
    side->s = NULL;
    must_start(side->ops->stream_create(side->dev, &side->s, &gt_err), "stream_create");
}

static bool selected(const char *name, int argc, char **argv) {
    for (int i = 1; i < argc; i++)
        if (strstr(name, argv[i]))
            return true;
    return argc < 2;
}

int gt_main(const char *program, int argc, char **argv, const gt_case *cases, size_t n_cases) {
    const char *large = getenv("TDGEN_TEST_LARGE");
    volatile int n_passed = 0, n_failed = 0;
    if (argc == 2 && !strcmp(argv[1], "--list")) {
        for (size_t i = 0; i < n_cases; i++)
            printf("%s\n", cases[i].name);
        return 0;
    }
    gt_large = large && !strcmp(large, "1");
    gt_fills = getenv("TDGEN_PRETEND_NO_FILL") == NULL;
    open_both(program);
    for (volatile size_t i = 0; i < n_cases; i++) {
        if (!selected(cases[i].name, argc, argv))
            continue;
        case_name = cases[i].name;
        case_failures = 0;
        const double begin = td_time_s();
        if (setjmp(case_end) == 0) {
            cases[i].run();
            gt_release();
        } else { /* what is in flight still uses what the case holds */
            renew_stream(&gt_cpu);
            renew_stream(&gt_dut);
            gt_release();
        }
        if (case_failures) {
            n_failed++;
            printf("  FAILED %s: %d failures (%.1f s)\n", case_name, case_failures,
                   td_time_s() - begin);
        } else {
            n_passed++;
            printf("  passed %s (%.1f s)\n", case_name, td_time_s() - begin);
        }
        fflush(stdout);
    }
    gt_side_close(&gt_dut);
    gt_side_close(&gt_cpu);
    free(infos);
    printf("%s: %d passed, %d failed\n", program, n_passed, n_failed);
    return n_failed == 0 && n_passed > 0 ? 0 : 1;
}
