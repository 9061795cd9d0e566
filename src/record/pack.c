/* Packed ids and 8-bit log-probabilities. See pack.h. */
#include "record/pack.h"

#include <math.h>

size_t td_ids_pack(td_bit_packer *p, const int32_t *ids, size_t n, int32_t b, uint8_t *out) {
    const uint64_t ones = (UINT64_C(1) << b) - 1;
    size_t at = 0;
    for (size_t i = 0; i < n; i++) {
        p->bits |= ((uint64_t)(uint32_t)ids[i] & ones) << p->n_bits; /* at most 7 + 31 bits */
        p->n_bits += b;
        for (; p->n_bits >= 8; p->n_bits -= 8) {
            out[at++] = (uint8_t)p->bits;
            p->bits >>= 8;
        }
    }
    return at;
}

size_t td_ids_pack_end(td_bit_packer *p, uint8_t *out) {
    size_t n = p->n_bits > 0;
    if (n)
        *out = (uint8_t)p->bits;
    *p = (td_bit_packer){0};
    return n;
}

void td_ids_unpack(const uint8_t *in, size_t size_bytes, uint64_t first, size_t n, int32_t b,
                   int32_t *out) {
    const uint64_t ones = (UINT64_C(1) << b) - 1;
    for (size_t i = 0; i < n; i++) {
        uint64_t bit = (first + i) * (uint64_t)b, byte = bit / 8, v = 0;
        uint64_t n_bytes = (bit % 8 + (uint64_t)b + 7) / 8;
        if (byte + n_bytes > size_bytes) {
            out[i] = -1;
            continue;
        }
        for (uint64_t k = 0; k < n_bytes; k++)
            v |= (uint64_t)in[byte + k] << (8 * k);
        v = v >> (bit % 8) & ones;
        out[i] = v == ones ? -1 : (int32_t)v;
    }
}

void td_q8_encode(const float *x, size_t n, uint8_t *q, float range[2]) {
    float max = -INFINITY, min = INFINITY;
    for (size_t i = 0; i < n; i++)
        if (isfinite(x[i])) {
            max = fmaxf(max, x[i]);
            min = fminf(min, x[i]);
        }
    if (max < min)
        max = min = 0;
    double step = ((double)max - (double)min) / 254;
    for (size_t i = 0; i < n; i++)
        q[i] = !isfinite(x[i]) ? 255
               : step > 0      ? (uint8_t)lrint(((double)max - (double)x[i]) / step)
                               : 0;
    range[0] = max;
    range[1] = min;
}

void td_q8_decode(const uint8_t *q, size_t n, const float range[2], float *x) {
    double max = (double)range[0], width = max - (double)range[1];
    for (size_t i = 0; i < n; i++)
        x[i] = q[i] == 255 ? -INFINITY : (float)(max - q[i] / 254.0 * width);
}
