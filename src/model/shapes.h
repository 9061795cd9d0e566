/* shapes.h - the tensors that a model's descriptions ask for, and their shapes. Pure. */
#ifndef TDGEN_MODEL_SHAPES_H
#define TDGEN_MODEL_SHAPES_H

#include "model/families.h"

/* In the [out, in] sense, whatever the file's layout. rows 0: the model has no such tensor;
 * cols 0: a vector. */
typedef struct td_shape {
    int64_t rows, cols;
} td_shape;

td_shape td_model_tensor_shape(const td_model_config *c, td_model_tensor which);
/* `f` decides between fused tensors and their parts: a slot without a name is not there. */
td_shape td_layer_tensor_shape(const td_model_config *c, const td_family *f, int32_t layer,
                               td_layer_tensor which);
/* Experts of a layer; 0 in one without. */
int32_t td_layer_experts(const td_layer *l);
/* Of a layer with experts. */
td_shape td_expert_tensor_shape(const td_model_config *c, int32_t layer, td_expert_tensor which);
/* Elements in matrices and in vectors of a layer, experts included. */
void td_layer_elements(const td_model_config *c, const td_family *f, int32_t layer,
                       int64_t *in_matrices, int64_t *in_vectors);

#endif
