/* philox.h - the random numbers of draws: Philox4x32-10, for C, C++ and CUDA.
 *
 * A counter-based generator (Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as
 * 1, 2, 3", SC 2011): ten rounds turn a counter of four words and a key of two into four words that
 * look random, with no state in between. So a draw is a function of what it is for, and the same
 * wherever and in whatever order it is made.
 */
#ifndef TDGEN_CAPTURE_PHILOX_H
#define TDGEN_CAPTURE_PHILOX_H

#include <stdint.h>

/* How these functions are declared: kernels define it before they include this. */
#ifndef TD_PHILOX_FN
#define TD_PHILOX_FN static inline
#endif

/* word[] holds the counter and becomes the random words. */
TD_PHILOX_FN void td_philox(uint32_t word[4], uint32_t key0, uint32_t key1) {
    for (int round = 0; round < 10; round++) {
        const uint64_t a = (uint64_t)0xD2511F53u * word[0], b = (uint64_t)0xCD9E8D57u * word[2];
        word[0] = (uint32_t)(b >> 32) ^ word[1] ^ key0;
        word[2] = (uint32_t)(a >> 32) ^ word[3] ^ key1;
        word[1] = (uint32_t)b;
        word[3] = (uint32_t)a;
        key0 += 0x9E3779B9u; /* the golden ratio, and below sqrt(3) - 1 */
        key1 += 0xBB67AE85u;
    }
}

/* Number i of the draws of one position, in [0, 1), a multiple of 2^-53: each block of four words
 * makes two. key = seed, counter = (dataset row, low word first; position, modulo 2^32; block). */
TD_PHILOX_FN double td_draw_uniform(uint64_t seed, int64_t dataset_row, int64_t position,
                                    int32_t i) {
    uint32_t w[4] = {(uint32_t)dataset_row, (uint32_t)((uint64_t)dataset_row >> 32),
                     (uint32_t)position, (uint32_t)i >> 1};
    td_philox(w, (uint32_t)seed, (uint32_t)(seed >> 32));
    const int first = (i & 1) * 2;
    const uint64_t x = (uint64_t)w[first + 1] << 32 | w[first];
    return (double)(x >> 11) * 1.1102230246251565e-16; /* 2^-53 */
}

#endif
