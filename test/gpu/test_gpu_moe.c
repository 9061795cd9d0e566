/* Mixture of experts of the CUDA device against the CPU device, and the bits of its rows. */
#include <math.h>
#include <stdio.h>

#include "fixture.h"
#include "base/memory.h"

typedef struct moe_case {
    int32_t t, e, k, c, f;
} moe_case;

/* Host values, exact in `compute`, and what was made of them on a side. */
typedef struct experts {
    float *router, *gate_up, *down; /* [E, C], [E, 2F, C], [E, C, F] */
    int32_t e, c, f;
    td_dtype compute;
} experts;
typedef struct prepared {
    td_weight *router;
    const td_weight **gate_up, **down;
    td_dtype compute;
} prepared;

static experts experts_make(gt_rng *r, int32_t e, int32_t c, int32_t f, td_dtype compute) {
    const size_t n_r = (size_t)e * c, n_gu = (size_t)e * 2 * f * c, n_d = (size_t)e * c * f;
    experts x = {gt_floats(r, n_r), gt_floats(r, n_gu), gt_floats(r, n_d), e, c, f, compute};
    for (size_t i = 0; i < n_r; i++)
        x.router[i] /= sqrtf((float)c);
    for (size_t i = 0; i < n_gu; i++)
        x.gate_up[i] /= sqrtf((float)c);
    for (size_t i = 0; i < n_d; i++)
        x.down[i] /= sqrtf((float)f);
    gt_round(x.router, n_r, compute);
    gt_round(x.gate_up, n_gu, compute);
    gt_round(x.down, n_d, compute);
    return x;
}

static prepared experts_prepare(gt_side *s, const experts *x, td_dtype compute) {
    prepared p = {.compute = compute};
    p.router = gt_weight(s, x->router, x->e, x->c, compute);
    p.gate_up = gt_host((size_t)x->e * sizeof(*p.gate_up));
    p.down = gt_host((size_t)x->e * sizeof(*p.down));
    for (int32_t i = 0; i < x->e; i++) {
        p.gate_up[i] =
            gt_weight(s, x->gate_up + (size_t)i * 2 * x->f * x->c, 2 * x->f, x->c, compute);
        p.down[i] = gt_weight(s, x->down + (size_t)i * x->c * x->f, x->c, x->f, compute);
    }
    return p;
}

typedef struct moe_mode {
    td_act act;
    bool normalise;
    float scale;
} moe_mode;

static float *moe(gt_side *s, const experts *x, const prepared *p, const float *in,
                  const float *before, int32_t t, int32_t k, const moe_mode *mode) {
    const size_t n = (size_t)t * x->c;
    const size_t n_scratch = td_moe_scratch_bytes(t, x->c, x->f, x->e, k, p->compute);
    float *out = gt_put(s, before, n * 4), *host = gt_host(n * 4);
    td_moe_args a = {.router = p->router,
                     .gate_up = p->gate_up,
                     .down = p->down,
                     .act = mode->act,
                     .in = gt_put(s, gt_pack(in, n, p->compute), n * td_dtype_size(p->compute)),
                     .out = out,
                     .scratch = gt_put(s, NULL, n_scratch),
                     .n_tokens = t,
                     .n_cols = x->c,
                     .n_ffn = x->f,
                     .n_experts = x->e,
                     .top_k = k,
                     .normalise = mode->normalise,
                     .scale = mode->scale};
    GT_MUST(s->ops->moe(s->s, &a, &gt_err));
    gt_get(s, host, out, n * 4);
    return host;
}

/* The smallest gap between the router logit of a chosen and a left expert, in f64: below the
 * rounding of the router's product either may be chosen. */
static double choice_gap(const experts *x, const float *row, int32_t k) {
    double *z = malloc(sizeof(double) * (size_t)x->e), gap = INFINITY;
    bool *taken = calloc((size_t)x->e, sizeof(bool));
    for (int32_t i = 0; i < x->e && z && taken; i++) {
        z[i] = 0;
        for (int32_t j = 0; j < x->c; j++)
            z[i] += (double)row[j] * (double)x->router[(size_t)i * x->c + j];
    }
    for (int32_t n = 0; n < k; n++) {
        int32_t best = -1;
        for (int32_t i = 0; i < x->e; i++)
            if (!taken[i] && (best < 0 || z[i] > z[best]))
                best = i;
        taken[best] = true;
    }
    for (int32_t i = 0; i < x->e; i++)
        for (int32_t j = 0; j < x->e; j++)
            if (taken[i] && !taken[j])
                gap = TD_MIN(gap, fabs(z[i] - z[j]));
    free(z), free(taken);
    return gap;
}

static const moe_mode modes[] = {{TD_ACT_SILU, true, 1},
                                 {TD_ACT_GELU_TANH, false, 1},
                                 {TD_ACT_GELU, true, 1},
                                 {TD_ACT_SILU, false, -0.22f}};

/* Returns how many rows had no clear choice. */
static int32_t check_moe(gt_rng *r, const moe_case *s, td_dtype compute, int n_modes) {
    experts x = experts_make(r, s->e, s->c, s->f, compute);
    const prepared cpu = experts_prepare(&gt_cpu, &x, TD_F32),
                   dut = experts_prepare(&gt_dut, &x, compute);
    float *in = gt_floats_of(r, (size_t)s->t * s->c, compute);
    float *before = gt_floats(r, (size_t)s->t * s->c);
    /* The activation is rounded to the compute type before it meets `down`, half an ulp of each of
     * F terms, which average out. */
    const double tol = compute == TD_F32 ? 1e-5 : 2.5 * gt_ulp(compute);
    int32_t n_unclear = 0;
    for (int m = 0; m < n_modes; m++) {
        float *want = moe(&gt_cpu, &x, &cpu, in, before, s->t, s->k, &modes[m]);
        float *got = moe(&gt_dut, &x, &dut, in, before, s->t, s->k, &modes[m]);
        for (int32_t row = 0; row < s->t; row++) {
            if (choice_gap(&x, in + (size_t)row * s->c, s->k) < 1e-5) {
                n_unclear += m == 0;
                continue;
            }
            if (!gt_near(got + (size_t)row * s->c, want + (size_t)row * s->c, (size_t)s->c, s->c,
                         tol, tol, "%s, %d tokens, %d of %d experts, C %d, F %d, mode %d, row %d",
                         td_dtype_name(compute), s->t, s->k, s->e, s->c, s->f, m, row))
                break;
        }
    }
    gt_release();
    return n_unclear;
}

/* Empty experts where tokens are few, all tokens on all experts where k = E. */
static void case_values(void) {
    static const moe_case shapes[] = {
        {1, 1, 1, 1, 1},    {5, 1, 1, 37, 20},    {1, 8, 2, 32, 48},
        {3, 40, 1, 24, 17}, {50, 4, 4, 33, 40},   {150, 8, 2, 48, 56},
        {64, 60, 4, 16, 8}, {17, 128, 8, 64, 24}, {20, 3, 2, 200, 130}};
    gt_rng r = {0x51ed};
    td_dtype types[3];
    const int32_t n_types = gt_computes(types);
    int32_t n_rows = 0, n_unclear = 0;
    for (int32_t t = 0; t < n_types; t++)
        for (size_t i = 0; i < TD_ARRAY_LEN(shapes); i++) {
            n_unclear += check_moe(&r, &shapes[i], types[t], gt_large || i < 5 ? 4 : 2);
            n_rows += shapes[i].t;
        }
    if (gt_large)
        for (int32_t t = 0; t < n_types; t++) {
            const moe_case mixtral = {60, 8, 2, 1024, 3584}, qwen = {300, 128, 8, 512, 192};
            n_unclear += check_moe(&r, &mixtral, types[t], 1);
            n_unclear += check_moe(&r, &qwen, types[t], 1);
            n_rows += mixtral.t + qwen.t;
        }
    GT_CHECK(n_unclear * 20 < n_rows, "%d of %d rows have no clear choice", n_unclear, n_rows);
}

/* Rows that all choose the same experts: one group holds everything, the others nothing. */
static void case_all_tokens_on_one_expert(void) {
    enum { T = 130, E = 6, C = 40, F = 24 };
    gt_rng r = {0x0e0e};
    td_dtype types[3];
    const int32_t n_types = gt_computes(types);
    for (int32_t t = 0; t < n_types; t++) {
        experts x = experts_make(&r, E, C, F, types[t]);
        float *in = gt_floats_of(&r, T * C, types[t]), *before = gt_floats(&r, T * C);
        for (int i = 0; i < T * C; i++)
            in[i] = fabsf(in[i]) + 0.125f;
        gt_round(in, T * C, types[t]);
        for (int i = 0; i < E * C; i++) /* positive rows: expert 4 far ahead of 2, of the rest */
            x.router[i] = i / C == 4 ? 0.5f : i / C == 2 ? 0.25f : -0.25f * (float)(1 + i / C);
        const prepared cpu = experts_prepare(&gt_cpu, &x, TD_F32),
                       dut = experts_prepare(&gt_dut, &x, types[t]);
        for (int32_t k = 1; k <= 2; k++) {
            float *want = moe(&gt_cpu, &x, &cpu, in, before, T, k, &modes[3]);
            float *got = moe(&gt_dut, &x, &dut, in, before, T, k, &modes[3]);
            const double tol = types[t] == TD_F32 ? 2e-5 : 2.5 * gt_ulp(types[t]);
            gt_near(got, want, T * C, C, tol, tol, "%s, k %d", td_dtype_name(types[t]), k);
        }
        gt_release();
    }
}

/* Equal router rows give equal probabilities: the lower experts are chosen, as on the CPU. */
static void case_ties_go_to_the_lower_expert(void) {
    enum { E = 20, C = 16, F = 12, K = 3, T = 9 };
    gt_rng r = {77};
    td_dtype types[3];
    const int32_t n_types = gt_computes(types);
    for (int32_t t = 0; t < n_types; t++) {
        experts x = experts_make(&r, E, C, F, types[t]);
        for (int i = 0; i < E * C; i++) /* alike but 5 and 13: first or last by the row's sign */
            x.router[i] = i / C == 5 || i / C == 13 ? 0.5f : 0.25f;
        float *in = gt_host(T * C * 4), *before = gt_host(T * C * 4);
        for (int i = 0; i < T * C; i++)
            in[i] = i / C % 2 ? 1.0f : -1.0f;
        const prepared cpu = experts_prepare(&gt_cpu, &x, TD_F32),
                       dut = experts_prepare(&gt_dut, &x, types[t]);
        float *want = moe(&gt_cpu, &x, &cpu, in, before, T, K, &modes[0]);
        float *got = moe(&gt_dut, &x, &dut, in, before, T, K, &modes[0]);
        const double tol = types[t] == TD_F32 ? 1e-5 : 2.5 * gt_ulp(types[t]);
        gt_near(got, want, T * C, C, tol, tol, "%s", td_dtype_name(types[t]));
        gt_release();
    }
}

/* --- bits of rows ----------------------------------------------------------------------------- */

typedef struct row_moe {
    experts *x;
    prepared p;
    int32_t k, max;
    void *in, *scratch; /* device, for `max` rows */
    float *out, *zeros;
} row_moe;

static void draw_moe(gt_rng *r, void *row, void *ctx) {
    const row_moe *m = ctx;
    for (int32_t i = 0; i < m->x->c; i++) {
        const float v = gt_normal(r);
        if (m->p.compute == TD_F32)
            ((float *)row)[i] = v;
        else
            ((uint16_t *)row)[i] = m->p.compute == TD_BF16 ? td_f32_to_bf16(v) : td_f32_to_f16(v);
    }
}

static void run_moe_rows(const void *rows, int32_t n, void *out, void *ctx) {
    const row_moe *m = ctx;
    gt_side *s = &gt_dut;
    const size_t c = (size_t)m->x->c;
    GT_MUST(
        s->ops->copy_in(s->s, m->in, rows, (size_t)n * c * td_dtype_size(m->p.compute), &gt_err));
    GT_MUST(s->ops->copy_in(s->s, m->out, m->zeros, (size_t)n * c * 4, &gt_err));
    td_moe_args a = {.router = m->p.router,
                     .gate_up = m->p.gate_up,
                     .down = m->p.down,
                     .act = TD_ACT_SILU,
                     .in = m->in,
                     .out = m->out,
                     .scratch = m->scratch,
                     .n_tokens = n,
                     .n_cols = m->x->c,
                     .n_ffn = m->x->f,
                     .n_experts = m->x->e,
                     .top_k = m->k,
                     .normalise = true,
                     .scale = 1};
    GT_MUST(s->ops->moe(s->s, &a, &gt_err));
    gt_get(s, out, m->out, (size_t)n * c * 4);
}

static void check_rows(gt_rng *r, const moe_case *s, td_dtype compute) {
    experts x = experts_make(r, s->e, s->c, s->f, compute);
    row_moe m = {.x = &x, .k = s->k, .max = s->t};
    const size_t n = (size_t)s->t * s->c;
    m.p = experts_prepare(&gt_dut, &x, compute);
    m.in = gt_put(&gt_dut, NULL, n * td_dtype_size(compute));
    m.scratch = gt_put(&gt_dut, NULL, td_moe_scratch_bytes(s->t, s->c, s->f, s->e, s->k, compute));
    m.out = gt_put(&gt_dut, NULL, n * 4);
    m.zeros = gt_host(n * 4);
    char name[100];
    snprintf(name, sizeof(name), "%s, %d of %d experts, C %d, F %d", td_dtype_name(compute), s->k,
             s->e, s->c, s->f);
    int32_t counts[16], n_counts = gt_row_counts(s->t, counts);
    const gt_rows t = {
        name, (size_t)s->c * td_dtype_size(compute), (size_t)s->c * 4, run_moe_rows, &m, draw_moe,
        true};
    gt_check_rows(&t, counts, n_counts, 4711);
    gt_release();
}

static void case_rows_keep_their_bits(void) {
    gt_rng r = {4711};
    td_dtype types[3];
    const int32_t n_types = gt_computes(types);
    for (int32_t t = 0; t < n_types; t++) {
        check_rows(&r, &(moe_case){300, 6, 2, 70, 90}, types[t]);
        check_rows(&r, &(moe_case){129, 16, 4, 64, 32}, types[t]);
        if (gt_large) {
            check_rows(&r, &(moe_case){1000, 8, 2, 2048, 4096}, types[t]);
            check_rows(&r, &(moe_case){1000, 128, 8, 2048, 768}, types[t]);
        }
    }
}

static void case_refusals(void) {
    enum { E = 3, C = 8, F = 4 };
    gt_rng r = {3};
    experts x = experts_make(&r, E, C, F, TD_F32);
    const prepared p = experts_prepare(&gt_dut, &x, TD_F32);
    float *zeros = gt_host(C * 4);
    float *in = gt_put(&gt_dut, zeros, C * 4), *out = gt_put(&gt_dut, zeros, C * 4);
    const td_moe_args good = {
        .router = p.router,
        .gate_up = p.gate_up,
        .down = p.down,
        .in = in,
        .out = out,
        .scratch = gt_put(&gt_dut, NULL, td_moe_scratch_bytes(1, C, F, E, E, TD_F32)),
        .n_tokens = 1,
        .n_cols = C,
        .n_ffn = F,
        .n_experts = E,
        .top_k = E,
        .scale = 1};
    GT_MUST(gt_dut.ops->moe(gt_dut.s, &good, &gt_err));
    td_moe_args a = good;
    a.n_tokens = 0;
    GT_MUST(gt_dut.ops->moe(gt_dut.s, &a, &gt_err));
    gt_sync(&gt_dut);
#define REFUSED(change, why)                                                                       \
    do {                                                                                           \
        a = good;                                                                                  \
        change;                                                                                    \
        GT_CHECK(gt_dut.ops->moe(gt_dut.s, &a, &gt_err) == TD_E_INTERNAL, why);                    \
    } while (0)
    REFUSED(a.top_k = E + 1, "more experts than there are");
    REFUSED(a.top_k = 0, "no expert");
    REFUSED(a.scale = 0, "a scale that was not set");
    REFUSED(a.n_ffn = F + 1, "another F than the weights have");
    REFUSED(a.n_experts = E - 1; a.top_k = 1, "a router of another size");
    GT_CHECK(strstr(gt_err.text, gt_dut.dev->info.name), "%s", gt_err.text);
}

static const gt_case cases[] = {
    {"values", case_values},
    {"all_tokens_on_one_expert", case_all_tokens_on_one_expert},
    {"ties_go_to_the_lower_expert", case_ties_go_to_the_lower_expert},
    {"rows_keep_their_bits", case_rows_keep_their_bits},
    {"refusals", case_refusals},
};

int main(int argc, char **argv) {
    return gt_main("test_gpu_moe", argc, argv, cases, TD_ARRAY_LEN(cases));
}
