/* rope.c - see rope.h.
 *
 * transformers computes frequencies and angles in f32, whatever the model's dtype, and at long
 * contexts the rounding of the angle is visible in the logits: the same f32 operations in the same
 * order are repeated here. Only pow, sin and cos themselves are taken in f64 and rounded once
 * (torch's are within an ulp of that).
 *
 * dynamic and longrope depend on the length of the sequence. transformers sees one length per
 * batch, and for dynamic remembers the longest so far; here each sequence is treated as if it were
 * alone and the first.
 */
#include "model/rope.h"

#include <math.h>

static const double pi = 3.14159265358979323846;

static void llama3(const td_rope *r, float *inv_freq, int32_t n) {
    /* Python computes these bounds in f64; comparing with a tensor rounds them to f32. */
    double original = r->original_positions;
    float low = (float)r->low_freq, factor = (float)r->factor;
    float low_wavelen = (float)(original / r->low_freq);
    float high_wavelen = (float)(original / r->high_freq);
    for (int32_t i = 0; i < n; i++) {
        float f = inv_freq[i], wavelen = (float)(2 * pi) / f;
        if (wavelen > low_wavelen) {
            f = f / factor;
        } else if (!(wavelen < high_wavelen)) {
            float smooth = ((float)original / wavelen - low) / (float)(r->high_freq - r->low_freq);
            f = (1.0f - smooth) * f / factor + smooth * f;
        }
        inv_freq[i] = f;
    }
}

/* The (fractional) pair that turns n_rotations times within the original context. */
static double correction_dim(const td_rope *r, int32_t dim, double n_rotations) {
    return dim * log(r->original_positions / (n_rotations * 2 * pi)) / (2 * log(r->theta));
}

static void yarn(const td_rope *r, int32_t dim, const float *pos_freqs, float *inv_freq) {
    double low = correction_dim(r, dim, r->beta_fast);
    double high = correction_dim(r, dim, r->beta_slow);
    if (r->truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, dim - 1);
    if (low == high)
        high += 0.001;
    for (int32_t i = 0; i < dim / 2; i++) {
        float ramp = ((float)i - (float)low) / (float)(high - low);
        float keep = 1.0f - fminf(fmaxf(ramp, 0.0f), 1.0f);
        float extrapolated = 1.0f / pos_freqs[i];
        float interpolated = 1.0f / ((float)r->factor * pos_freqs[i]);
        inv_freq[i] = interpolated * (1.0f - keep) + extrapolated * keep;
    }
}

/* The base of a dynamic table. Within the model's own context Python's floats compute it; beyond,
 * the length is a tensor and all of it f32. */
static float dynamic_base(const td_model_config *cfg, const td_rope *r, int32_t n_tokens) {
    double exponent = (double)r->rotary_dim / (r->rotary_dim - 2), max = cfg->max_positions;
    if (n_tokens <= cfg->max_positions)
        return (float)(r->theta * pow(r->factor * max / max - (r->factor - 1), exponent));
    float grown = (float)r->factor * (float)n_tokens / (float)max - (float)(r->factor - 1);
    return (float)r->theta * (float)pow((double)grown, (double)(float)exponent);
}

void td_rope_inv_freq(const td_model_config *cfg, int32_t k, int32_t n_tokens, float *inv_freq) {
    const td_rope *r = &cfg->rope[k];
    int32_t dim = r->rotary_dim, n = dim / 2;
    float base = (float)r->theta, pos_freqs[TD_MAX_ROPE_PAIRS];
    /* With two dimensions the exponent of the dynamic base is infinite: nothing to scale. */
    if (r->type == TD_ROPE_DYNAMIC && dim > 2)
        base = dynamic_base(cfg, r, n_tokens);
    for (int32_t i = 0; i < n; i++) {
        pos_freqs[i] = (float)pow((double)base, (double)((float)(2 * i) / (float)dim));
        inv_freq[i] = 1.0f / pos_freqs[i];
    }
    switch (r->type) {
    case TD_ROPE_DEFAULT:
    case TD_ROPE_DYNAMIC:
        break;
    case TD_ROPE_LINEAR:
        for (int32_t i = 0; i < n; i++)
            inv_freq[i] = inv_freq[i] / (float)r->factor;
        break;
    case TD_ROPE_LLAMA3:
        llama3(r, inv_freq, n);
        break;
    case TD_ROPE_YARN:
        yarn(r, dim, pos_freqs, inv_freq);
        break;
    case TD_ROPE_LONGROPE: {
        const float *factors = n_tokens > r->original_positions ? r->long_factor : r->short_factor;
        for (int32_t i = 0; i < n; i++)
            inv_freq[i] = 1.0f / (factors[i] * pos_freqs[i]);
        break;
    }
    }
}

static void fill(const td_rope *r, const float *inv_freq, int32_t n_positions, float *cos_rows,
                 float *sin_rows) {
    int32_t half = r->rotary_dim / 2;
    float factor = (float)r->attention_factor;
    for (int32_t pos = 0; pos < n_positions; pos++)
        for (int32_t i = 0; i < half; i++) {
            float angle = (float)pos * inv_freq[i];
            double s, c;
            sincos((double)angle, &s, &c);
            cos_rows[(int64_t)pos * half + i] = (float)c * factor;
            sin_rows[(int64_t)pos * half + i] = (float)s * factor;
        }
}

void td_rope_tables(const td_model_config *cfg, int32_t max_tokens, float *cos_table,
                    float *sin_table) {
    td_rope_layout l = td_rope_layout_of(cfg, max_tokens);
    float inv_freq[TD_MAX_ROPE_PAIRS];
    for (int32_t k = 0; k < cfg->n_ropes; k++) {
        const td_rope *r = &cfg->rope[k];
        int64_t at = l.first_elem[k], beyond = at + (int64_t)l.limit[k] * (r->rotary_dim / 2);
        td_rope_inv_freq(cfg, k, 1, inv_freq);
        fill(r, inv_freq, l.limit[k], cos_table + at, sin_table + at);
        if (l.limit[k] == max_tokens || r->type == TD_ROPE_DYNAMIC)
            continue;
        td_rope_inv_freq(cfg, k, max_tokens, inv_freq);
        fill(r, inv_freq, max_tokens, cos_table + beyond, sin_table + beyond);
    }
}

bool td_rope_rows(const td_model_config *cfg, const td_rope_layout *l, int32_t k,
                  const td_batch *batch, int32_t *rows, float *cos_rows, float *sin_rows) {
    const td_rope *r = &cfg->rope[k];
    bool is_dynamic = r->type == TD_ROPE_DYNAMIC, filled = false;
    int64_t half = r->rotary_dim / 2;
    float inv_freq[TD_MAX_ROPE_PAIRS];
    for (int32_t i = 0; i < batch->n_seqs; i++) {
        int32_t t0 = batch->seq_offsets[i], n = batch->seq_offsets[i + 1] - t0;
        int32_t first = 0;
        if (n > l->limit[k]) {
            first = l->limit[k] + (is_dynamic ? t0 : 0);
            if (is_dynamic) {
                td_rope_inv_freq(cfg, k, n, inv_freq);
                fill(r, inv_freq, n, cos_rows + t0 * half, sin_rows + t0 * half);
                filled = true;
            }
        }
        for (int32_t t = 0; t < n; t++)
            rows[t0 + t] = first + t;
    }
    return filled;
}
