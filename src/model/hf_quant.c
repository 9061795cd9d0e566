/* hf_quant.c - the quantization_config of an FP8 checkpoint.
 *
 * Two published forms are read, both with e4m3 weights and their scales beside them:
 *   quant_method "fp8"                X.weight_scale_inv, one scale per weight_block_size block, or
 *                                     a single one when there is no block size; with scale_fmt
 *                                     "ue8m0" they are powers of two, in F32 or as bytes (E8M0)
 *   quant_method "compressed-tensors" X.weight_scale of format float-quantized, one scale per
 *                                     tensor, row ("channel") or block
 * Which matrices are quantised follows from the dtypes in the file, so lists of modules that were
 * left out need no reading. Activations are not quantised here, as in transformers when it is
 * asked to dequantise.
 */
#include "model/hf_parts.h"

#include <string.h>

#include "base/json.h"
#include "base/memory.h"

static td_status refuse_method(const td_config_reader *r, const char *key, const char *method,
                               const char *detail) {
    return td_error_set(r->err, TD_E_MODEL,
                        "%s: the checkpoint is quantised (%s: method \"%.64s\"%s), which is not "
                        "supported; FP8 (e4m3) weights are, otherwise use the unquantised "
                        "checkpoint",
                        r->path, key, method, detail);
}

static td_status read_block(const td_config_reader *r, const json_t *obj, const char *key,
                            td_model_config *c) {
    if (!td_json_has(obj, key))
        return TD_OK;
    const json_t *list = json_object_get(obj, key);
    for (size_t i = 0; i < 2; i++) {
        json_int_t n = json_integer_value(json_array_get(list, i));
        if (json_array_size(list) != 2 || n < 1 || n > 1 << 20)
            return td_error_set(r->err, TD_E_MODEL,
                                "%s: \"%s\" must be a list of two sizes such as [128, 128]",
                                r->path, key);
        c->fp8_block[i] = (int32_t)n;
    }
    return TD_OK;
}

static td_status read_fp8(const td_config_reader *r, const json_t *q, const char *key,
                          td_model_config *c) {
    const char *fmt = "e4m3", *scale_fmt = "float";
    td_status rc;
    if ((rc = td_json_opt_str(q, "fmt", r->path, TD_E_MODEL, &fmt, r->err)) != TD_OK ||
        (rc = td_json_opt_str(q, "scale_fmt", r->path, TD_E_MODEL, &scale_fmt, r->err)) != TD_OK)
        return rc;
    if (strcmp(fmt, "e4m3") != 0)
        return refuse_method(r, key, "fp8", ", fmt other than e4m3");
    c->fp8_scale_e8m0 = strcmp(scale_fmt, "ue8m0") == 0;
    if (strcmp(scale_fmt, "float") != 0 && !c->fp8_scale_e8m0)
        return refuse_method(r, key, "fp8", ", scale_fmt other than float and ue8m0");
    c->fp8 = true;
    c->fp8_scale_suffix = "_scale_inv";
    return read_block(r, q, "weight_block_size", c);
}

static td_status read_compressed(const td_config_reader *r, const json_t *q, const char *key,
                                 td_model_config *c) {
    static const char *const method = "compressed-tensors";
    const char *format = "unnamed", *name;
    json_t *group;
    td_status rc = td_json_opt_str(q, "format", r->path, TD_E_MODEL, &format, r->err);
    if (rc != TD_OK)
        return rc;
    if (strcmp(format, "float-quantized") != 0 && strcmp(format, "naive-quantized") != 0)
        return refuse_method(r, key, method, ", format other than float-quantized");
    json_object_foreach(json_object_get(q, "config_groups"), name, group) {
        const json_t *w = json_object_get(group, "weights");
        const char *type = "unnamed", *strategy = "tensor";
        int64_t bits = 0;
        bool symmetric = true;
        if ((rc = td_json_opt_str(w, "type", r->path, TD_E_MODEL, &type, r->err)) != TD_OK ||
            (rc = td_json_opt_str(w, "strategy", r->path, TD_E_MODEL, &strategy, r->err)) !=
                TD_OK ||
            (rc = td_json_opt_bool(w, "symmetric", r->path, TD_E_MODEL, &symmetric, r->err)) !=
                TD_OK ||
            (rc = td_json_opt_int(w, "num_bits", 0, 64, r->path, TD_E_MODEL, &bits, r->err)) !=
                TD_OK)
            return rc;
        if (strcmp(type, "float") != 0 || bits != 8 || !symmetric)
            return refuse_method(r, key, method, ", weights other than symmetric 8-bit floats");
        if (!strcmp(strategy, "block")) {
            if ((rc = read_block(r, w, "block_structure", c)) != TD_OK)
                return rc;
        } else if (strcmp(strategy, "tensor") != 0 && strcmp(strategy, "channel") != 0) {
            return refuse_method(r, key, method, ", a strategy other than tensor, channel, block");
        }
    }
    c->fp8 = c->fp8_scale_first = true;
    c->fp8_scale_suffix = "_scale";
    return TD_OK;
}

td_status td_config_read_quantisation(const td_config_reader *r, td_model_config *c) {
    static const char *const keys[] = {"quantization_config", "compression_config"};
    for (size_t i = 0; i < TD_ARRAY_LEN(keys); i++) {
        if (!td_json_has(r->root, keys[i]))
            continue;
        const json_t *q = json_object_get(r->root, keys[i]);
        const char *method = json_string_value(json_object_get(q, "quant_method"));
        if (!method)
            return refuse_method(r, keys[i], "unnamed", "");
        if (!strcmp(method, "fp8"))
            return read_fp8(r, q, keys[i], c);
        if (!strcmp(method, "compressed-tensors"))
            return read_compressed(r, q, keys[i], c);
        return refuse_method(r, keys[i], method, "");
    }
    return TD_OK;
}
