/* row.c - what people look at in a row: its most probable tokens, its dense numbers. */
#include "capture/row.h"

#include <math.h>
#include "base/memory.h"

float td_row_dense_at(const td_row_view *v, int32_t i) {
    switch (v->spec->dense_dtype) {
    case TD_F32:
        return ((const float *)v->dense)[i];
    case TD_BF16:
        return td_bf16_to_f32(((const uint16_t *)v->dense)[i]);
    default:
        return td_f16_to_f32(((const uint16_t *)v->dense)[i]);
    }
}

double td_row_dense_norm(const td_row_view *v) {
    double sum = 0;
    for (int32_t i = 0; i < v->n_dense; i++)
        sum += (double)td_row_dense_at(v, i) * (double)td_row_dense_at(v, i);
    return sqrt(sum);
}

/* Puts (id, lp) into a list that is in order; a later id comes after an equal one. */
static int32_t insert(int32_t n, int32_t max, int32_t id, float lp, int32_t *ids, float *lps) {
    int32_t at = n;
    while (at > 0 && lp > lps[at - 1])
        at--;
    if (at == max)
        return n;
    n = TD_MIN(n + 1, max);
    for (int32_t j = n - 1; j > at; j--) {
        ids[j] = ids[j - 1];
        lps[j] = lps[j - 1];
    }
    ids[at] = id;
    lps[at] = lp;
    return n;
}

int32_t td_row_top(const td_row_view *v, int32_t max, int32_t *ids, float *logprobs) {
    int32_t n = 0;
    if (max < 1 || v->spec->mode == TD_CAPTURE_HIDDEN)
        return 0;
    if (v->n_top) {
        for (; n < TD_MIN(max, v->n_top) && v->top_ids[n] >= 0; n++) {
            ids[n] = v->top_ids[n];
            logprobs[n] = v->top_logprobs[n];
        }
        return n;
    }
    for (int32_t j = 0; j < v->n_drawn; j++)
        n = insert(n, max, v->draw_ids[j], v->draw_logprobs[j], ids, logprobs);
    for (int32_t i = 0; v->dense && i < v->spec->n_valid; i++) {
        float z = td_row_dense_at(v, i);
        if (isfinite(z) && (n < max || z - v->logsumexp > logprobs[n - 1]))
            n = insert(n, max, i, z - v->logsumexp, ids, logprobs);
    }
    return n;
}
