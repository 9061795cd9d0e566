/* shard.c - collects the samples of a shard and packs them into micro-batches. */
#include "data/shard.h"

#include <stdlib.h>
#include <string.h>
#include "base/memory.h"

void td_shard_free(td_shard *s) {
    if (!s)
        return;
    free(s->ids);
    free(s->loss_mask);
    free(s->samples);
    free(s->id_bytes);
    free(s->id_offsets);
    free(s->batches);
    free(s->batch_samples);
    free(s);
}

td_status td_shard_builder_init(td_shard_builder *b, int64_t number, int64_t row_begin,
                                bool with_ids, td_error *err) {
    td_shard *s = td_calloc(1, sizeof *s);
    if (!s)
        return td_error_nomem(err, "a shard", sizeof *s);
    s->number = number;
    s->row_begin = s->row_end = row_begin;
    *b = (td_shard_builder){.shard = s, .with_ids = with_ids};
    return TD_OK;
}

void td_shard_builder_free(td_shard_builder *b) {
    td_shard_free(b->shard);
    *b = (td_shard_builder){0};
}

static td_status add_sample(td_shard_builder *b, const td_row_maker *m, int64_t row, size_t start,
                            size_t n, td_error *err) {
    td_shard *s = b->shard;
    if (s->n_samples == INT32_MAX)
        return td_error_set(err, TD_E_DATA,
                            "shard %lld has more than %d samples; lower output.shard_samples",
                            (long long)s->number, INT32_MAX);
    size_t at = (size_t)s->n_tokens, k = (size_t)s->n_samples, need;
    if (!td_add_size(at, n, &need) || !td_grow((void **)&s->ids, &b->ids_cap, need, 4) ||
        !td_grow((void **)&s->loss_mask, &b->mask_cap, need, 1) ||
        !td_grow((void **)&s->samples, &b->samples_cap, k + 1, sizeof *s->samples))
        return td_error_nomem(err, "a shard's tokens (lower output.shard_samples?)", at + n);
    if (b->with_ids) {
        size_t id_end = k ? (size_t)s->id_offsets[k] : 0;
        if (!td_add_size(id_end, m->id.len, &need) ||
            !td_grow((void **)&s->id_bytes, &b->id_bytes_cap, need, 1) ||
            !td_grow((void **)&s->id_offsets, &b->id_offsets_cap, k + 2, sizeof *s->id_offsets))
            return td_error_nomem(err, "a shard's row ids", m->id.len);
        if (m->id.len)
            memcpy(s->id_bytes + id_end, m->id.data, m->id.len);
        s->id_offsets[k] = (int64_t)id_end;
        s->id_offsets[k + 1] = (int64_t)need;
    }
    int32_t n_rows = 0;
    if (n) {
        memcpy(s->ids + at, m->ids.ids + start, n * sizeof *s->ids);
        memcpy(s->loss_mask + at, m->mask + start, n);
        s->loss_mask[at] = 0; /* nothing predicts it */
        for (size_t t = 1; t < n; t++)
            n_rows += s->loss_mask[at + t];
    }
    s->samples[k] = (td_sample){.row = row,
                                .start = (int64_t)start,
                                .token_offset = s->n_tokens,
                                .n_tokens = (int32_t)n,
                                .n_rows = n_rows,
                                .row_offset = s->n_rows};
    s->n_samples++;
    s->n_tokens += (int64_t)n;
    s->n_rows += n_rows;
    return TD_OK;
}

td_status td_shard_builder_add(td_shard_builder *b, const td_row_maker *m, int64_t row,
                               td_error *err) {
    size_t n = m->ids.n, max = (size_t)m->cfg->data.max_length;
    if (n <= max)
        return add_sample(b, m, row, 0, n, err);
    b->shard->n_overflow_rows++;
    switch (m->cfg->data.overflow) {
    case TD_OVERFLOW_SKIP:
        b->shard->n_overflow_tokens += (int64_t)n;
        return TD_OK;
    case TD_OVERFLOW_TRUNCATE:
        b->shard->n_overflow_tokens += (int64_t)(n - max);
        return add_sample(b, m, row, 0, max, err);
    case TD_OVERFLOW_SPLIT:
        for (size_t start = 0; start < n; start += max) {
            td_status rc = add_sample(b, m, row, start, TD_MIN(max, n - start), err);
            if (rc != TD_OK)
                return rc;
        }
        return TD_OK;
    }
    return td_error_set(err, TD_E_INTERNAL, "data.overflow has no meaning: %d",
                        (int)m->cfg->data.overflow);
}

typedef struct {
    int32_t n_tokens, sample;
} pack_item;

/* Longest first, ties in dataset order: a total order, so that qsort's result is one. */
static int by_length(const void *pa, const void *pb) {
    const pack_item *a = pa, *b = pb;
    if (a->n_tokens != b->n_tokens)
        return a->n_tokens < b->n_tokens ? 1 : -1;
    return a->sample < b->sample ? -1 : a->sample > b->sample;
}

/* Next-fit over samples of descending length: the samples of a micro-batch are of like length, and
 * no micro-batch but the last is less than half full. */
static td_status pack(td_shard *s, int32_t batch_tokens, const uint8_t *marks, td_error *err) {
    size_t n = 0, n_batches = 0, all = (size_t)s->n_samples;
    pack_item *items = td_calloc(all, sizeof *items);
    int32_t *list = td_calloc(all, sizeof *list);
    td_micro_batch *batches = td_calloc(all, sizeof *batches);
    if (!items || !list || !batches) {
        free(items);
        free(list);
        free(batches);
        return td_error_nomem(err, "a shard's micro-batches", all * sizeof *batches);
    }
    for (int32_t i = 0; marks && i < s->n_samples; i++)
        if (s->samples[i].n_rows > 0 && marks[i] == TD_PACK_ALONE) {
            const td_sample *sample = &s->samples[i];
            list[n] = i;
            items[n] = (pack_item){sample->n_tokens, i};
            batches[n_batches++] = (td_micro_batch){.samples = list + n++,
                                                    .n_samples = 1,
                                                    .n_tokens = sample->n_tokens,
                                                    .n_rows = sample->n_rows,
                                                    .alone = true};
        }
    const size_t n_alone = n;
    for (int32_t i = 0; i < s->n_samples; i++)
        if (s->samples[i].n_rows > 0 && (!marks || marks[i] == TD_PACK_TOGETHER))
            items[n++] = (pack_item){s->samples[i].n_tokens, i};
    qsort(items + n_alone, n - n_alone, sizeof *items, by_length);
    td_micro_batch *cur = NULL;
    for (size_t i = n_alone; i < n; i++) {
        const td_sample *sample = &s->samples[items[i].sample];
        list[i] = items[i].sample;
        if (!cur || (int64_t)cur->n_tokens + sample->n_tokens > batch_tokens) {
            cur = &batches[n_batches++];
            cur->samples = list + i;
        }
        cur->n_samples++;
        cur->n_tokens += sample->n_tokens;
        cur->n_rows += sample->n_rows;
    }
    free(items);
    free(s->batch_samples);
    free(s->batches);
    s->batch_samples = list;
    s->batches = batches;
    s->n_batches = (int32_t)n_batches;
    return TD_OK;
}

td_status td_shard_repack(td_shard *s, int32_t batch_tokens, const uint8_t *marks, td_error *err) {
    return pack(s, batch_tokens, marks, err);
}

/* Gives back what doubling took too much; keeps the block when realloc will not. */
static void *trim(void *p, size_t n, size_t elem_bytes) {
    void *q = p ? td_realloc_array(p, n, elem_bytes) : NULL;
    return q ? q : p;
}

td_status td_shard_builder_finish(td_shard_builder *b, int32_t batch_tokens, td_shard **out,
                                  td_error *err) {
    td_shard *s = b->shard;
    /* Consumers index these arrays freely: an empty shard has valid pointers too. */
    if (!td_grow((void **)&s->ids, &b->ids_cap, 1, 4) ||
        !td_grow((void **)&s->loss_mask, &b->mask_cap, 1, 1) ||
        !td_grow((void **)&s->samples, &b->samples_cap, 1, sizeof *s->samples) ||
        (b->with_ids &&
         (!td_grow((void **)&s->id_bytes, &b->id_bytes_cap, 1, 1) ||
          !td_grow((void **)&s->id_offsets, &b->id_offsets_cap, 1, sizeof *s->id_offsets))))
        return td_error_nomem(err, "a shard", 64);
    if (b->with_ids && s->n_samples == 0)
        s->id_offsets[0] = 0;
    td_status rc = pack(s, batch_tokens, NULL, err);
    if (rc != TD_OK)
        return rc;
    size_t n_tokens = (size_t)s->n_tokens, n = (size_t)s->n_samples;
    s->ids = trim(s->ids, n_tokens, sizeof *s->ids);
    s->loss_mask = trim(s->loss_mask, n_tokens, 1);
    s->samples = trim(s->samples, n, sizeof *s->samples);
    s->batches = trim(s->batches, (size_t)s->n_batches, sizeof *s->batches);
    *out = s;
    *b = (td_shard_builder){0};
    return TD_OK;
}
