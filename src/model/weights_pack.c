/* weights_pack.c - weights of devices that pack them into a layout of their own (CPU).
 *
 * Step by step. Of each step every tensor is touched once: hashed, prepared or copied for all
 * domains that hold it, and its pages given back, so that the process holds the prepared copies and
 * about one layer of the mapping, whatever the model's size. The pages of the next step are read
 * ahead meanwhile.
 */
#include <stdlib.h>

#include "model/tensor.h"
#include "model/weights_internal.h"
#include "base/convert.h"
#include "base/memory.h"

/* Staging for what is converted on the way to a device. */
enum { STAGING_BYTES = 8 << 20 };

typedef struct packer {
    td_weights *w;
    td_stream **streams; /* [n_domains]; NULL: the domain does not pack */
    td_event **events;   /* [n_domains] */
    void *staging;       /* STAGING_BYTES */
    uint64_t bytes_read;
    td_error *err;
} packer;

/* Converts n elements of the entry into the memory at dst, through the staging buffer; returns when
 * they are there. src need not be aligned. */
static td_status upload(packer *p, int32_t domain, const td_ckpt_entry *e, const void *src,
                        td_dtype from, size_t n, td_dtype to, char *dst) {
    const td_device *dev = p->w->domains[domain].device;
    const td_device_ops *ops = dev->ops;
    size_t from_size = td_dtype_size(from), to_size = td_dtype_size(to);
    size_t chunk = STAGING_BYTES / to_size;
    for (size_t i = 0; i < n; i += chunk) {
        size_t m = TD_MIN(chunk, n - i);
        const char *piece = (const char *)src + i * from_size;
        td_status rc;
        if (!td_convert(piece, from, p->staging, to, m)) {
            size_t k = td_convert_overflow(piece, from, to, m);
            return td_tensor_refuse(e, (int64_t)(i + k), td_element_load(piece, from, k), to,
                                    dev->info.name, p->err);
        }
        if ((rc = ops->copy_in(p->streams[domain], dst + i * to_size, p->staging, m * to_size,
                               p->err)) != TD_OK ||
            (rc = ops->event_record(p->events[domain], p->streams[domain], p->err)) != TD_OK ||
            (rc = ops->event_sync(p->events[domain], 0, p->err)) != TD_OK)
            return rc;
    }
    return TD_OK;
}

/* The vectors of the parts, one after the other, as one F32 array. */
static td_status pack_vector(packer *p, int32_t domain, const td_target *t) {
    td_domain_weights *d = &p->w->domains[domain];
    size_t n_elems = 0, at = 0;
    for (int32_t i = 0; i < t->n_parts; i++)
        n_elems += (size_t)t->parts[i]->tensor->n_elems;
    float *host = td_calloc(n_elems, sizeof *host);
    if (!host)
        return td_error_nomem(p->err, "vector of a layer", n_elems * sizeof *host);
    for (int32_t i = 0; i < t->n_parts; i++) {
        const td_st_tensor *x = t->parts[i]->tensor;
        td_checkpoint_touch(t->parts[i], &p->bytes_read);
        for (int32_t part = 0; t->n_heads && part < 3; part++)
            for (int32_t h = 0; h < t->n_heads; h++)
                for (int32_t k = 0; k < t->head_rows; k++)
                    host[at++] = td_element_load(x->data, (td_dtype)x->dtype,
                                                 (size_t)(td_by_head_row(t, part, h) + k));
        for (int64_t k = 0; !t->n_heads && k < x->n_elems; k++)
            host[at++] = td_element_load(x->data, (td_dtype)x->dtype, (size_t)k);
    }
    for (size_t k = 0; t->plus_one && k < n_elems; k++)
        host[k] = 1.0f + host[k];
    void *array;
    td_status rc = d->device->ops->alloc(d->device, n_elems * 4, &array, p->err);
    if (rc == TD_OK) {
        td_target_set(d, t, array, NULL); /* from here on owned by the domain */
        rc = upload(p, domain, t->parts[0], host, TD_F32, n_elems, TD_F32, array);
    }
    free(host);
    return rc;
}

/* The matrices of the parts, one under the other, as one GEMM weight. */
static td_status pack_matrix(packer *p, int32_t domain, const td_target *t) {
    const td_model_config *c = &p->w->cfg;
    td_domain_weights *d = &p->w->domains[domain];
    td_tensor_view views[TD_ARRAY_LEN(t->parts)] = {{{0}, NULL}};
    int32_t n_mats = 0;
    td_status rc = TD_OK;
    td_host_matrix *mats = td_calloc(3 * (size_t)TD_MAX(t->n_heads, 1), sizeof *mats);
    if (!mats)
        return td_error_nomem(p->err, "parts of a matrix", 3 * sizeof *mats);
    for (int32_t i = 0; i < t->n_parts && rc == TD_OK; i++) {
        td_tensor_view *v = &views[i];
        td_checkpoint_touch(t->parts[i], &p->bytes_read);
        rc = td_tensor_open(t->parts[i], c, v, p->err);
        if (!t->n_heads)
            mats[n_mats++] = v->matrix;
        size_t row_bytes = (size_t)v->matrix.n_cols * td_dtype_size(v->matrix.dtype);
        for (int32_t part = 0; rc == TD_OK && t->n_heads && part < 3; part++)
            for (int32_t h = 0; h < t->n_heads; h++)
                mats[n_mats++] = (td_host_matrix){
                    (const char *)v->matrix.data + (size_t)td_by_head_row(t, part, h) * row_bytes,
                    v->matrix.dtype, t->head_rows, v->matrix.n_cols};
    }
    td_weight *weight;
    if (rc == TD_OK && (rc = d->device->ops->weight_prepare(d->device, mats, n_mats, p->w->compute,
                                                            &weight, p->err)) != TD_OK)
        td_error_prefix(p->err, "%s: preparing %s", d->device->info.name, t->parts[0]->name);
    else if (rc == TD_OK)
        td_target_set(d, t, NULL, weight);
    for (size_t i = 0; i < TD_ARRAY_LEN(views); i++)
        td_tensor_release(&views[i]);
    free(mats);
    return rc;
}

static td_status pack_table(packer *p, int32_t domain, const td_target *t) {
    td_domain_weights *d = &p->w->domains[domain];
    td_ckpt_entry *e = t->parts[0];
    td_dtype compute = p->w->compute;
    size_t n = (size_t)e->tensor->n_elems;
    td_tensor_view v;
    void *array;
    td_status rc = d->device->ops->alloc(d->device, n * td_dtype_size(compute), &array, p->err);
    if (rc != TD_OK)
        return td_error_prefix(p->err, "%s", e->name);
    td_target_set(d, t, array, NULL);
    td_checkpoint_touch(e, &p->bytes_read);
    if ((rc = td_tensor_open(e, &p->w->cfg, &v, p->err)) != TD_OK)
        return rc;
    rc = upload(p, domain, e, v.matrix.data, v.matrix.dtype, n, compute, array);
    td_tensor_release(&v);
    return rc;
}

static td_status pack_target(packer *p, int32_t domain, const td_target *t) {
    td_target_kind kind = td_target_kind_of(t);
    td_status rc = kind == TD_TARGET_VECTOR  ? pack_vector(p, domain, t)
                   : kind == TD_TARGET_TABLE ? pack_table(p, domain, t)
                                             : pack_matrix(p, domain, t);
    return rc != TD_OK && t->layer >= 0 ? td_error_prefix(p->err, "layer %d", t->layer) : rc;
}

static void drop_entry(const td_ckpt_entry *e) {
    td_checkpoint_drop_pages(e->tensor);
    if (e->scale)
        drop_entry(e->scale);
}

static bool is_wanted(const packer *p, const td_target *t) {
    for (int32_t d = 0; d < p->w->n_domains; d++)
        if (p->streams[d] && p->w->domains[d].has_item[t->item])
            return true;
    return false;
}

static td_status pack_step(packer *p, const td_target_list *list, int32_t step) {
    const td_target *begin = list->targets + list->begin[step];
    const td_target *end = list->targets + list->begin[step + 1];
    const td_target *next = list->targets + list->begin[TD_MIN(step + 2, list->n_steps)];
    td_status rc = TD_OK;
    for (const td_target *t = end; t < next; t++)
        for (int32_t i = 0; is_wanted(p, t) && i < t->n_parts; i++)
            td_checkpoint_prefetch(t->parts[i]);
    for (int32_t d = 0; d < p->w->n_domains; d++)
        for (const td_target *t = begin; rc == TD_OK && t < end; t++)
            if (p->streams[d] && p->w->domains[d].has_item[t->item])
                rc = pack_target(p, d, t);
    for (const td_target *t = begin; t < end; t++)
        for (int32_t i = 0; is_wanted(p, t) && i < t->n_parts; i++)
            drop_entry(t->parts[i]);
    return rc;
}

td_status td_weights_pack(td_weights *w, const td_target_list *list,
                          td_status (*then)(void *ctx, int32_t step), void *ctx,
                          td_load_stats *stats, td_error *err) {
    td_status rc = TD_OK;
    packer p = {.w = w, .err = err};
    p.staging = malloc(STAGING_BYTES);
    p.streams = td_calloc((size_t)w->n_domains, sizeof(*p.streams));
    p.events = td_calloc((size_t)w->n_domains, sizeof(*p.events));
    if (!p.staging || !p.streams || !p.events) {
        rc = td_error_nomem(err, "staging memory of the weights", STAGING_BYTES);
        goto out;
    }
    for (int32_t d = 0; d < w->n_domains; d++) {
        td_device *dev = w->domains[d].device;
        if (td_domain_packs(&w->domains[d]) &&
            ((rc = dev->ops->stream_create(dev, &p.streams[d], err)) != TD_OK ||
             (rc = dev->ops->event_create(dev, &p.events[d], err)) != TD_OK))
            goto out;
    }
    for (int32_t step = 0; rc == TD_OK && step < list->n_steps; step++) {
        rc = pack_step(&p, list, step);
        if (rc == TD_OK && then)
            rc = then(ctx, step);
    }
    stats->bytes_read += p.bytes_read;
out:
    for (int32_t d = 0; p.streams && p.events && d < w->n_domains; d++) {
        const td_device_ops *ops = w->domains[d].device->ops;
        if (p.streams[d])
            ops->stream_destroy(p.streams[d]);
        if (p.events[d])
            ops->event_destroy(p.events[d]);
    }
    free(p.streams);
    free(p.events);
    free(p.staging);
    return rc;
}
