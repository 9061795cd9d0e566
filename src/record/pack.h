/* pack.h - ids in few bits, log-probabilities in 8 bits.
 *
 * A stream of packed ids: id i takes the bits [i*b, (i+1)*b), bit j of the stream is bit j % 8 of
 * byte j / 8 (least significant first). -1 (no id) is b ones.
 */
#ifndef TDGEN_RECORD_PACK_H
#define TDGEN_RECORD_PACK_H

#include <stddef.h>
#include <stdint.h>

/* Bits that are not yet a whole byte. {0} at a stream's begin. */
typedef struct td_bit_packer {
    uint64_t bits;
    int32_t n_bits;
} td_bit_packer;

/* Appends n ids of b bits (1 to 31); returns the bytes written to out, at most (n*b + 7) / 8. */
size_t td_ids_pack(td_bit_packer *p, const int32_t *ids, size_t n, int32_t b, uint8_t *out);
/* The last, partly filled byte, if there is one; returns 0 or 1. Then a new stream may begin. */
size_t td_ids_pack_end(td_bit_packer *p, uint8_t *out);
/* Ids [first, first + n) of a stream of size_bytes; ids past its end are -1. */
void td_ids_unpack(const uint8_t *in, size_t size_bytes, uint64_t first, size_t n, int32_t b,
                   int32_t *out);

/* A row's log-probabilities: range = (max, min) of the finite ones, q = round((max - x) / (max -
 * min) * 254), 255 for -inf. Back: max - q / 254 * (max - min), in f64, rounded to f32. So the
 * largest is exact and no other is off by more than (max - min) / 508. (0, 0) without finite
 * values. */
void td_q8_encode(const float *x, size_t n, uint8_t *q, float range[2]);
void td_q8_decode(const uint8_t *q, size_t n, const float range[2], float *x);

#endif
