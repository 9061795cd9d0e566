/* combine.cpp - what warp collectives compute once all lanes have come: shuffles, votes,
 * reductions, the products and loads of tensor cores, in the fragment layouts that src/gpu/ptx.cuh
 * states. Run by the lane that came last (fiber.cpp). */
#include "engine.h"
#include "pretend_ptx.h"

void pretend_combine_shuffle(void *const args[32], unsigned lanes, int) {
    for (unsigned left = lanes; left; left &= left - 1) {
        pretend_shuffle *s = static_cast<pretend_shuffle *>(args[__builtin_ctz(left)]);
        s->out = lanes >> s->source & 1 ? static_cast<const pretend_shuffle *>(args[s->source])->in
                                        : ~(uint64_t)0;
    }
}
void pretend_combine_ballot(void *const args[32], unsigned lanes, int) {
    unsigned out = 0;
    for (unsigned left = lanes; left; left &= left - 1) {
        const int i = __builtin_ctz(left);
        out |= (unsigned)(static_cast<const pretend_vote *>(args[i])->in != 0) << i;
    }
    for (unsigned left = lanes; left; left &= left - 1)
        static_cast<pretend_vote *>(args[__builtin_ctz(left)])->out = out;
}
void pretend_combine_match(void *const args[32], unsigned lanes, int) {
    for (unsigned left = lanes; left; left &= left - 1) {
        pretend_vote *v = static_cast<pretend_vote *>(args[__builtin_ctz(left)]);
        v->out = 0;
        for (unsigned others = lanes; others; others &= others - 1) {
            const int i = __builtin_ctz(others);
            v->out |= (unsigned)(static_cast<const pretend_vote *>(args[i])->in == v->in) << i;
        }
    }
}
void pretend_combine_reduce(void *const args[32], unsigned lanes, int op) {
    const unsigned first = (unsigned)__builtin_ctz(lanes);
    unsigned r = (unsigned)static_cast<const pretend_vote *>(args[first])->in;
    for (unsigned left = lanes & (lanes - 1); left; left &= left - 1) {
        const unsigned x =
            (unsigned)static_cast<const pretend_vote *>(args[__builtin_ctz(left)])->in;
        switch (op) {
        case PRETEND_ADD:
            r += x;
            break;
        case PRETEND_MIN_S:
            r = (int)x < (int)r ? x : r;
            break;
        case PRETEND_MIN_U:
            r = x < r ? x : r;
            break;
        case PRETEND_MAX_S:
            r = (int)x > (int)r ? x : r;
            break;
        case PRETEND_MAX_U:
            r = x > r ? x : r;
            break;
        case PRETEND_AND:
            r &= x;
            break;
        case PRETEND_OR:
            r |= x;
            break;
        default:
            r ^= x;
        }
    }
    for (unsigned left = lanes; left; left &= left - 1)
        static_cast<pretend_vote *>(args[__builtin_ctz(left)])->out = r;
}

static PRETEND_HOT void multiply_fragments(void *const args[32], int is_half) {
    float a[16][16], b[16][8], c[16][8];
    const auto value = [is_half](uint32_t pair, int i) __attribute__((always_inline)) {
        const uint16_t bits = (uint16_t)(i ? pair >> 16 : pair);
        return is_half ? pretend_half_bits_to_float(bits) : pretend_bf16_bits_to_float(bits);
    };
    for (int l = 0; l < 32; l++) {
        const pretend_mma *m = static_cast<const pretend_mma *>(args[l]);
        const int g = l / 4, t = l % 4 * 2;
        for (int i = 0; i < 2; i++) {
            a[g][t + i] = value(m->a[0], i);
            a[g + 8][t + i] = value(m->a[1], i);
            a[g][t + 8 + i] = value(m->a[2], i);
            a[g + 8][t + 8 + i] = value(m->a[3], i);
            b[t + i][g] = value(m->b[0], i);
            b[t + 8 + i][g] = value(m->b[1], i);
            c[g][t + i] = m->d[i];
            c[g + 8][t + i] = m->d[2 + i];
        }
    }
    for (int m = 0; m < 16; m++) {
        float row[8];
        for (int n = 0; n < 8; n++)
            row[n] = c[m][n];
        for (int k = 0; k < 16; k++)
            for (int n = 0; n < 8; n++)
                row[n] += a[m][k] * b[k][n];
        for (int n = 0; n < 8; n++)
            c[m][n] = row[n];
    }
    for (int l = 0; l < 32; l++) {
        const pretend_mma *m = static_cast<const pretend_mma *>(args[l]);
        const int g = l / 4, t = l % 4 * 2;
        for (int i = 0; i < 2; i++) {
            m->d[i] = c[g][t + i];
            m->d[2 + i] = c[g + 8][t + i];
        }
    }
}
void pretend_combine_mma(void *const args[32], unsigned lanes, int is_half) {
    if (lanes != 0xffffffffu)
        pretend_fault(cudaErrorLaunchFailure, "mma with lanes missing");
    multiply_fragments(args, is_half);
}

void pretend_combine_ldmatrix(void *const args[32], unsigned lanes, int transposed) {
    if (lanes != 0xffffffffu)
        pretend_fault(cudaErrorLaunchFailure, "ldmatrix with lanes missing");
    for (int l = 0; l < 32; l++) {
        const pretend_ldmatrix *m = static_cast<const pretend_ldmatrix *>(args[l]);
        for (int i = 0; i < 4; i++) {
            const auto element = [&](int row, int col) {
                uint16_t x;
                memcpy(&x, static_cast<const pretend_ldmatrix *>(args[8 * i + row])->row + 2 * col,
                       2);
                return x;
            };
            const int r = l / 4, c = l % 4 * 2;
            m->r[i] = transposed ? element(c, r) | (uint32_t)element(c + 1, r) << 16
                                 : element(r, c) | (uint32_t)element(r, c + 1) << 16;
        }
    }
}
