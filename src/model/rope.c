/* rope.c - see rope.h.
 *
 * transformers computes frequencies and angles in f32, whatever the model's dtype, and at long
 * contexts the rounding of the angle is visible in the logits: the same f32 operations in the same
 * order are repeated here. Only pow, sin and cos themselves are taken in f64 and rounded once
 * (torch's are within an ulp of that).
 */
#include "model/rope.h"

#include <math.h>

void td_rope_inv_freq(const td_model_config *cfg, float *inv_freq) {
    const double pi = 3.14159265358979323846;
    float theta = (float)cfg->rope_theta, factor = (float)cfg->rope_factor;
    for (int32_t i = 0; i < cfg->head_dim / 2; i++) {
        float exponent = (float)(2 * i) / (float)cfg->head_dim;
        float f = 1.0f / (float)pow((double)theta, (double)exponent);
        if (cfg->rope_type == TD_ROPE_LINEAR) {
            f = f / factor;
        } else if (cfg->rope_type == TD_ROPE_LLAMA3) {
            /* Python computes these bounds in f64; comparing with a tensor rounds them to f32. */
            double original = cfg->rope_original_positions;
            float low = (float)cfg->rope_low_freq;
            float low_wavelen = (float)(original / cfg->rope_low_freq);
            float high_wavelen = (float)(original / cfg->rope_high_freq);
            float wavelen = (float)(2 * pi) / f;
            if (wavelen > low_wavelen) {
                f = f / factor;
            } else if (!(wavelen < high_wavelen)) {
                float smooth = ((float)original / wavelen - low) /
                               (float)(cfg->rope_high_freq - cfg->rope_low_freq);
                f = (1.0f - smooth) * f / factor + smooth * f;
            }
        }
        inv_freq[i] = f;
    }
}

void td_rope_tables(const td_model_config *cfg, int32_t n_positions, float *cos_table,
                    float *sin_table) {
    int32_t half = cfg->head_dim / 2;
    float inv_freq[512]; /* head_dim <= 1024 (hf_config.c) */
    td_rope_inv_freq(cfg, inv_freq);
    for (int32_t pos = 0; pos < n_positions; pos++)
        for (int32_t i = 0; i < half; i++) {
            float angle = (float)pos * inv_freq[i];
            double s, c;
            sincos((double)angle, &s, &c);
            cos_table[(int64_t)pos * half + i] = (float)c;
            sin_table[(int64_t)pos * half + i] = (float)s;
        }
}
