/* reference.h - the forward pass once more, in f64, one sample at a time, as plainly as possible.
 */
#ifndef TDGEN_TEST_MODEL_REFERENCE_H
#define TDGEN_TEST_MODEL_REFERENCE_H

#include "fixture.h"

/* logits [n_ids, V] of one sample. */
void ref_forward(const fx_model *m, const int32_t *ids, int32_t n_ids, double *logits);

#endif
