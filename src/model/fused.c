/* fused.c - see fused.h. */
#include "model/fused.h"

#include <inttypes.h>

static bool has_shape(const td_st_tensor *t, int64_t a, int64_t b, int64_t c) {
    return t->n_dims == 3 && t->shape[0] == a && t->shape[1] == b && t->shape[2] == c;
}

static td_status shape_error(const td_st_tensor *t, int64_t E, int64_t rows, int64_t cols,
                             const char *dir, td_error *err) {
    return td_error_set(err, TD_E_MODEL,
                        "%s: tensor %s holds the experts of a layer, but its shape is not [%" PRId64
                        ", %" PRId64 ", %" PRId64 "], nor with the last two swapped in both such "
                        "tensors, as config.json asks",
                        dir, t->name, E, rows, cols);
}

static td_status check_dtype(const td_st_tensor *t, const char *dir, td_error *err) {
    if (t->dtype == TD_F32 || t->dtype == TD_BF16 || t->dtype == TD_F16)
        return TD_OK;
    return td_error_set(err, TD_E_MODEL,
                        "%s: tensor %s has dtype %s; for experts in one tensor F32, BF16 and F16 "
                        "are supported (FP8 with a tensor for each expert)",
                        dir, t->name, t->dtype_name);
}

td_status td_fused_check(td_fused *f, int64_t E, int64_t F, int64_t C, const char *dir,
                         td_error *err) {
    bool straight = has_shape(f->up, E, 2 * F, C) && has_shape(f->down, E, C, F);
    f->transposed = !straight;
    if (f->transposed && !(has_shape(f->up, E, C, 2 * F) && has_shape(f->down, E, F, C)))
        return has_shape(f->up, E, 2 * F, C) ? shape_error(f->down, E, C, F, dir, err)
                                             : shape_error(f->up, E, 2 * F, C, dir, err);
    td_status rc = check_dtype(f->up, dir, err);
    return rc == TD_OK ? check_dtype(f->down, dir, err) : rc;
}

td_st_tensor td_fused_slice(const td_st_tensor *t, int32_t expert) {
    td_st_tensor s = *t;
    s.n_dims = 2;
    s.shape[0] = t->shape[1];
    s.shape[1] = t->shape[2];
    s.n_elems = s.shape[0] * s.shape[1];
    s.size_bytes = (size_t)s.n_elems * t->elem_size_bytes;
    s.data = (const char *)t->data + (size_t)expert * s.size_bytes;
    s.data_begin = t->data_begin + (uint64_t)expert * s.size_bytes;
    return s;
}
