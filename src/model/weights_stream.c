/* weights_stream.c - weights of devices whose memory is plain: read once, sent to all that hold
 * them.
 *
 *   file --read--> scratch --hash, convert--> staging block --copy_in--> domain 0, 1, ...
 *
 * A *job* is one tensor with all its destinations: the places of its rows in every domain that
 * holds it (of a tied embedding: the table and the lm_head). Readers, the calling thread among
 * them, take the jobs in order. A reader reads its tensor piece by piece, each piece hashed and
 * converted while it is in the cache, until a staging block is full; then it enqueues the copies of
 * the block to all domains and goes on with another block. So a second domain costs copies, not
 * another read, and several reads and copies are in flight. Host memory: the blocks, two pieces per
 * reader, and the pages of the file cache, which the kernel may take back.
 *
 * A tensor belongs to one reader, because its hash is sequential.
 *
 * Blocks. A block is in the hands of one reader, or in the ring: in flight, or free. A reader that
 * needs one takes the ring's oldest and waits for the events of its copies; while it holds one it
 * never takes another. There are at least as many blocks as readers, so the ring is never empty
 * then, and nobody waits for a reader.
 *
 * Locks. `mutex` guards the lists of blocks and the first failure. `streams[d].mutex` is held while
 * operations are enqueued on the stream of domain d: one thread at a time. They are never nested.
 * All device memory is taken in open, before there is a second thread.
 */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/tensor.h"
#include "model/weights_internal.h"
#include "base/convert.h"
#include "base/hash.h"
#include "base/memory.h"

enum {
    PIECE_ELEMS = 64 << 10, /* 128 KiB of bf16: stays in a core's cache */
    BLOCK_BYTES = 8 << 20,
    MAX_BLOCKS = 16,
    MAX_READERS = 8,
    READ_AHEAD_BYTES = 32 << 20 /* of each reader */
};

typedef struct destination {
    int32_t domain;
    char *base; /* where the first element of the job's tensor goes; by_head: of the matrix */
} destination;

typedef struct job {
    const td_target *target;
    td_ckpt_entry *entry;
    td_dtype to;
    int64_t run_elems; /* by_head: elements of one head of q, k or v, which stay together */
    size_t first_destination, n_destinations;
    int32_t step;
} job;

typedef struct block {
    char *data;
    td_event **events; /* [n_domains] */
    bool *pending;     /* [n_domains] the event was recorded after a copy out of the block */
    const job *job;    /* whose tensor it holds; NULL before the first */
} block;

typedef struct domain_stream {
    td_stream *stream;
    pthread_mutex_t mutex;
} domain_stream;

struct td_weight_stream {
    td_weights *w;
    bool count_touched; /* bytes of tensors that were hashed before are counted as well */
    job *jobs;          /* [n_jobs], by step */
    size_t n_jobs, jobs_cap;
    destination *destinations;
    size_t n_destinations, destinations_cap;

    domain_stream *streams; /* [n_domains]; stream NULL: the domain packs */
    td_device *host_device; /* whose host_alloc the blocks are from */
    int32_t n_readers, n_blocks;
    size_t block_bytes;
    block blocks[MAX_BLOCKS];

    atomic_size_t next_job, end_job;
    atomic_bool failed;
    atomic_uint_least64_t bytes_read, bytes_sent;

    pthread_mutex_t mutex;
    int32_t ring[MAX_BLOCKS]; /* blocks that nobody holds, the longest unused first */
    int32_t n_ring;
    td_status status; /* the first failure */
    td_error err;
};

/* --- what is to be loaded --------------------------------------------------------------------- */

/* Elements of one part of the target, and rows and columns as the device sees them. */
static void part_shape(const td_ckpt_entry *e, int64_t *rows, int64_t *cols) {
    const td_st_tensor *t = e->tensor;
    int64_t r = t->n_dims > 0 ? t->shape[0] : 1, c = t->n_dims > 1 ? t->shape[1] : 1;
    *rows = e->transposed ? c : r;
    *cols = e->transposed ? r : c;
}

/* Takes the device's memory for the target. */
static td_status create_target(td_weights *w, int32_t domain, const td_target *t, char **base,
                               td_error *err) {
    td_domain_weights *d = &w->domains[domain];
    const td_device_ops *ops = d->device->ops;
    int64_t rows = 0, cols = 0;
    for (int32_t i = 0; i < t->n_parts; i++) {
        int64_t r;
        part_shape(t->parts[i], &r, &cols);
        rows += r;
    }
    td_target_kind kind = td_target_kind_of(t);
    td_weight *weight = NULL;
    void *data = NULL;
    td_status rc;
    size_t n_bytes;
    if (!td_mul_size((size_t)rows, (size_t)cols, &n_bytes) ||
        !td_mul_size(n_bytes, td_dtype_size(kind == TD_TARGET_VECTOR ? TD_F32 : w->compute),
                     &n_bytes))
        return td_error_set(err, TD_E_MODEL, "%s: its size overflows", t->parts[0]->name);
    if (kind == TD_TARGET_MATRIX)
        rc = ops->weight_create(d->device, rows, cols, w->compute, &weight, &data, err);
    else
        rc = ops->alloc(d->device, n_bytes, &data, err);
    if (rc != TD_OK)
        return td_error_prefix(err, "memory of tensor %s", t->parts[0]->name);
    td_target_set(d, t, data, weight);
    *base = data;
    return TD_OK;
}

static td_status add_destination(td_weight_stream *s, int32_t domain, char *base, td_error *err) {
    if (!td_grow((void **)&s->destinations, &s->destinations_cap, s->n_destinations + 1,
                 sizeof *s->destinations))
        return td_error_nomem(err, "list of weights", s->n_destinations * sizeof *s->destinations);
    s->destinations[s->n_destinations++] = (destination){domain, base};
    return TD_OK;
}

/* The jobs of a target. Consecutive targets of one tensor in one type share their job. */
static td_status add_target(td_weight_stream *s, const td_target *t, int32_t step, td_error *err) {
    td_weights *w = s->w;
    td_dtype to = td_target_kind_of(t) == TD_TARGET_VECTOR ? TD_F32 : w->compute;
    char **bases = td_calloc((size_t)w->n_domains, sizeof *bases);
    if (!bases)
        return td_error_nomem(err, "list of weights", (size_t)w->n_domains * sizeof *bases);
    td_status rc = TD_OK;
    bool is_wanted = false;
    for (int32_t d = 0; rc == TD_OK && d < w->n_domains; d++)
        if (!td_domain_packs(&w->domains[d]) && w->domains[d].has_item[t->item]) {
            rc = create_target(w, d, t, &bases[d], err);
            is_wanted = true;
        }
    for (int32_t i = 0; rc == TD_OK && is_wanted && i < t->n_parts; i++) {
        td_ckpt_entry *e = t->parts[i];
        job *last = s->n_jobs ? &s->jobs[s->n_jobs - 1] : NULL;
        int64_t rows, cols;
        part_shape(e, &rows, &cols);
        if (!last || last->entry != e || last->to != to) {
            if (!td_grow((void **)&s->jobs, &s->jobs_cap, s->n_jobs + 1, sizeof *s->jobs)) {
                rc = td_error_nomem(err, "list of weights", s->n_jobs * sizeof *s->jobs);
                break;
            }
            last = &s->jobs[s->n_jobs++];
            *last = (job){.target = t,
                          .entry = e,
                          .to = to,
                          .run_elems = t->n_heads ? t->head_rows * cols : 0,
                          .first_destination = s->n_destinations,
                          .step = step};
        }
        for (int32_t d = 0; rc == TD_OK && d < w->n_domains; d++)
            if (bases[d] && (rc = add_destination(s, d, bases[d], err)) == TD_OK) {
                bases[d] += (size_t)e->tensor->n_elems * td_dtype_size(to);
                last->n_destinations++;
            }
    }
    free(bases);
    return rc;
}

/* --- blocks and copies ------------------------------------------------------------------------ */

/* The first failure is what the load reports; the others follow from it or came too late. */
static void fail(td_weight_stream *s, td_status rc, const td_error *err) {
    pthread_mutex_lock(&s->mutex);
    if (s->status == TD_OK) {
        s->status = rc;
        s->err = *err;
    }
    pthread_mutex_unlock(&s->mutex);
    atomic_store(&s->failed, true);
}

/* Waits until nothing reads the block any more. */
static td_status wait_block(td_weight_stream *s, block *b, td_error *err) {
    td_status rc = TD_OK;
    for (int32_t d = 0; d < s->w->n_domains; d++) {
        if (!b->pending[d])
            continue;
        b->pending[d] = false;
        td_error e = {0};
        td_status one = s->w->domains[d].device->ops->event_sync(b->events[d], 0, &e);
        if (one == TD_OK || rc != TD_OK)
            continue;
        rc = one;
        *err = e;
        td_error_prefix(err, "sending tensor %s, or one before it", b->job->entry->name);
    }
    return rc;
}

static td_status take_block(td_weight_stream *s, int32_t *out, td_error *err) {
    pthread_mutex_lock(&s->mutex);
    int32_t k = s->ring[0]; /* there is one: see above */
    s->n_ring--;
    memmove(s->ring, s->ring + 1, (size_t)s->n_ring * sizeof *s->ring);
    pthread_mutex_unlock(&s->mutex);
    *out = k;
    return wait_block(s, &s->blocks[k], err);
}

static void give_block(td_weight_stream *s, int32_t k) {
    pthread_mutex_lock(&s->mutex);
    s->ring[s->n_ring++] = k;
    pthread_mutex_unlock(&s->mutex);
}

/* Enqueues the copies of elements [first, first + n) of the tensor, which lie in the block. */
static td_status send_block(td_weight_stream *s, const job *j, block *b, int64_t first, int64_t n,
                            td_error *err) {
    size_t elem = td_dtype_size(j->to);
    td_status rc = TD_OK;
    b->job = j;
    for (size_t k = 0; rc == TD_OK && k < j->n_destinations; k++) {
        const destination *to = &s->destinations[j->first_destination + k];
        domain_stream *ds = &s->streams[to->domain];
        const td_device_ops *ops = s->w->domains[to->domain].device->ops;
        pthread_mutex_lock(&ds->mutex);
        for (int64_t i = 0, m; rc == TD_OK && i < n; i += m) {
            int64_t at = first + i;
            m = n - i;
            if (j->run_elems) { /* run u is q, k or v (u % 3) of head u / 3 */
                int64_t u = at / j->run_elems, within = at % j->run_elems;
                at = (u % 3 * j->target->n_heads + u / 3) * j->run_elems + within;
                m = TD_MIN(m, j->run_elems - within);
            }
            rc = ops->copy_in(ds->stream, to->base + (size_t)at * elem, b->data + (size_t)i * elem,
                              (size_t)m * elem, err);
        }
        /* A tied embedding has two destinations in a domain: the later record covers both. */
        if (rc == TD_OK &&
            (rc = ops->event_record(b->events[to->domain], ds->stream, err)) == TD_OK)
            b->pending[to->domain] = true;
        pthread_mutex_unlock(&ds->mutex);
        if (rc == TD_OK)
            atomic_fetch_add(&s->bytes_sent, (uint64_t)n * elem);
    }
    return rc == TD_OK ? rc : td_error_prefix(err, "sending tensor %s", j->entry->name);
}

/* --- reading ---------------------------------------------------------------------------------- */

typedef struct reader {
    td_weight_stream *s;
    char *raw;     /* PIECE_ELEMS of any type, as read */
    float *values; /* PIECE_ELEMS, dequantised */
    td_hasher *hasher;
} reader;

/* Where elements of a tensor come from: the file, or for a transposed one its turned copy. */
typedef struct source {
    const td_ckpt_entry *entry;
    td_tensor_view turned; /* owned NULL: the file */
    bool hash;
} source;

/* Elements [first, first + n) of the tensor, n <= PIECE_ELEMS, to dst in the job's type. */
static td_status read_piece(reader *r, const job *j, const source *src, int64_t first, int64_t n,
                            char *dst, td_error *err) {
    const td_st_tensor *t = src->entry->tensor;
    td_dtype from = src->entry->scale ? TD_F32 : (td_dtype)t->dtype;
    const void *values;
    if (src->turned.owned) {
        values = (const char *)src->turned.matrix.data + (size_t)first * td_dtype_size(from);
    } else {
        size_t n_bytes = (size_t)n * t->elem_size_bytes;
        char *raw = from == j->to && !src->entry->scale ? dst : r->raw;
        td_status rc =
            td_safetensors_read(t, (size_t)first * t->elem_size_bytes, raw, n_bytes, err);
        if (rc != TD_OK)
            return td_error_prefix(err, "tensor %s", src->entry->name);
        if (src->hash)
            td_hasher_update(r->hasher, raw, n_bytes);
        values = raw;
        if (src->entry->scale) {
            td_tensor_dequantise(src->entry, &r->s->w->cfg, (const uint8_t *)raw, first, n,
                                 r->values);
            values = r->values;
        }
    }
    if (values != dst && !td_convert(values, from, dst, j->to, (size_t)n)) {
        size_t k = td_convert_overflow(values, from, j->to, (size_t)n);
        int32_t domain = r->s->destinations[j->first_destination].domain;
        return td_tensor_refuse(src->entry, first + (int64_t)k, td_element_load(values, from, k),
                                j->to, r->s->w->domains[domain].device->info.name, err);
    }
    for (int64_t i = 0; j->target->plus_one && i < n; i++)
        ((float *)dst)[i] = 1.0f + ((float *)dst)[i];
    return TD_OK;
}

static td_status send_tensor(reader *r, const job *j, const source *src, td_error *err) {
    td_weight_stream *s = r->s;
    const td_st_tensor *t = src->entry->tensor;
    int64_t per_block = (int64_t)(s->block_bytes / td_dtype_size(j->to));
    for (int64_t i = 0; i < t->n_elems && !atomic_load(&s->failed); i += per_block) {
        int64_t n = TD_MIN(per_block, t->n_elems - i);
        int32_t k;
        if (!src->turned.owned)
            td_checkpoint_prefetch_range(
                src->entry, (size_t)i * t->elem_size_bytes + READ_AHEAD_BYTES, s->block_bytes);
        td_status rc = take_block(s, &k, err);
        block *b = &s->blocks[k];
        for (int64_t p = 0; rc == TD_OK && p < n; p += PIECE_ELEMS)
            rc = read_piece(r, j, src, i + p, TD_MIN((int64_t)PIECE_ELEMS, n - p),
                            b->data + (size_t)p * td_dtype_size(j->to), err);
        if (rc == TD_OK)
            rc = send_block(s, j, b, i, n, err);
        /* After a failed send copies may still read a block that is not marked pending. That is
         * harmless: the load has failed, and the block's memory outlives the streams. */
        give_block(s, k);
        if (rc != TD_OK)
            return rc;
    }
    return TD_OK;
}

static td_status run_job(reader *r, const job *j, td_error *err) {
    td_weight_stream *s = r->s;
    td_ckpt_entry *e = j->entry;
    source src = {.entry = e, .hash = !e->touched};
    uint64_t n_bytes = 0;
    td_status rc = TD_OK;
    bool count = s->count_touched || !e->touched;
    if (count)
        n_bytes = e->tensor->size_bytes + (e->scale ? e->scale->tensor->size_bytes : 0);
    if (e->scale) /* small; its pages stay until the tensor is through */
        td_checkpoint_touch(e->scale, NULL);
    if (e->transposed) {
        td_checkpoint_touch(e, NULL);
        rc = td_tensor_open(e, &s->w->cfg, &src.turned, err);
        td_checkpoint_drop_pages(e->tensor);
    } else {
        td_hasher_reset(r->hasher);
    }
    if (rc == TD_OK)
        rc = send_tensor(r, j, &src, err);
    if (e->scale)
        td_checkpoint_drop_pages(e->scale->tensor);
    td_tensor_release(&src.turned);
    if (rc != TD_OK || atomic_load(&s->failed))
        return rc;
    if (!e->touched) {
        e->hash = td_hasher_digest(r->hasher);
        e->touched = true;
    }
    atomic_fetch_add(&s->bytes_read, n_bytes);
    return TD_OK;
}

/* So far ahead of the job that is being taken, the first pages of another are asked for. */
static size_t jobs_ahead(const td_weight_stream *s) {
    return 2 * (size_t)s->n_readers;
}

static void *reader_main(void *arg) {
    td_weight_stream *s = arg;
    reader r = {.s = s,
                .raw = malloc((size_t)PIECE_ELEMS * sizeof(float)),
                .values = malloc((size_t)PIECE_ELEMS * sizeof(float)),
                .hasher = td_hasher_create()};
    td_error err = {0};
    td_status rc = TD_OK;
    if (!r.raw || !r.values || !r.hasher)
        rc = td_error_nomem(&err, "reading weights", (size_t)PIECE_ELEMS * 2 * sizeof(float));
    while (rc == TD_OK && !atomic_load(&s->failed)) {
        size_t k = atomic_fetch_add(&s->next_job, 1), end = atomic_load(&s->end_job);
        size_t ahead = k + jobs_ahead(s);
        if (k >= end)
            break;
        if (ahead < end) /* a job that will be taken soon */
            td_checkpoint_prefetch_range(s->jobs[ahead].entry, 0, READ_AHEAD_BYTES);
        rc = run_job(&r, &s->jobs[k], &err);
    }
    if (rc != TD_OK)
        fail(s, rc, &err);
    td_hasher_destroy(r.hasher);
    free(r.values);
    free(r.raw);
    return NULL;
}

td_status td_weight_stream_run(td_weight_stream *s, int32_t step_begin, int32_t step_end,
                               td_error *err) {
    size_t begin = 0, end;
    while (begin < s->n_jobs && s->jobs[begin].step < step_begin)
        begin++;
    for (end = begin; end < s->n_jobs && s->jobs[end].step < step_end;)
        end++;
    atomic_store(&s->next_job, begin);
    atomic_store(&s->end_job, end);
    for (size_t k = begin; k < end && k < begin + jobs_ahead(s); k++)
        td_checkpoint_prefetch_range(s->jobs[k].entry, 0, READ_AHEAD_BYTES);
    pthread_t threads[MAX_READERS];
    int32_t n_threads = 0;
    size_t n_wanted = TD_MIN((size_t)s->n_readers, end - begin);
    /* With fewer threads than wanted the others do the work: this one can do it all. */
    while ((size_t)n_threads + 1 < n_wanted &&
           !pthread_create(&threads[n_threads], NULL, reader_main, s))
        n_threads++;
    reader_main(s);
    for (int32_t i = 0; i < n_threads; i++)
        pthread_join(threads[i], NULL);
    for (int32_t k = 0; k < s->n_blocks; k++) {
        td_error e = {0};
        td_status rc = wait_block(s, &s->blocks[k], &e);
        if (rc != TD_OK)
            fail(s, rc, &e);
    }
    if (s->status != TD_OK && err)
        *err = s->err;
    return s->status;
}

/* --- open and close --------------------------------------------------------------------------- */

static int32_t count_cores(void) {
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) ? 1 : TD_MAX(CPU_COUNT(&set), 1);
}

/* Readers and blocks; no more than the jobs can use. TDGEN_DEBUG_STAGING="READERS BLOCKS BYTES"
 * overrides them, so that small tensors show what large ones do. */
static void choose_sizes(td_weight_stream *s) {
    size_t largest = 64, total = 0;
    for (size_t k = 0; k < s->n_jobs; k++) {
        size_t n = (size_t)s->jobs[k].entry->tensor->n_elems * td_dtype_size(s->jobs[k].to);
        largest = TD_MAX(largest, n);
        total += n;
    }
    int32_t readers = TD_MIN(TD_MAX(count_cores(), 2), MAX_READERS), blocks = MAX_BLOCKS;
    long bytes = BLOCK_BYTES;
    const char *debug = getenv("TDGEN_DEBUG_STAGING");
    if (debug)
        sscanf(debug, "%d %d %ld", &readers, &blocks, &bytes);
    s->n_readers = TD_MAX(TD_MIN(readers, MAX_READERS), 1);
    s->block_bytes = (TD_MIN(largest, (size_t)TD_MAX(bytes, 64L)) + 63) / 64 * 64;
    size_t useful = TD_MAX(total / s->block_bytes + 1, (size_t)s->n_readers);
    s->n_blocks = (int32_t)TD_MIN((size_t)TD_MIN(blocks, MAX_BLOCKS), useful);
    s->n_blocks = TD_MAX(s->n_blocks, s->n_readers);
}

static td_status open_blocks(td_weight_stream *s, td_error *err) {
    size_t n_domains = (size_t)s->w->n_domains;
    td_device *host = s->host_device;
    td_status rc;
    for (int32_t k = 0; k < s->n_blocks; k++) {
        block *b = &s->blocks[k];
        void *p;
        b->events = td_calloc(n_domains, sizeof *b->events);
        b->pending = td_calloc(n_domains, sizeof *b->pending);
        if (!b->events || !b->pending)
            return td_error_nomem(err, "staging of the weights", n_domains * sizeof *b->events);
        if ((rc = host->ops->host_alloc(host, s->block_bytes, &p, err)) != TD_OK)
            return td_error_prefix(err, "staging of the weights");
        b->data = p;
        for (int32_t d = 0; d < s->w->n_domains; d++) {
            td_device *dev = s->w->domains[d].device;
            if (s->streams[d].stream &&
                (rc = dev->ops->event_create(dev, &b->events[d], err)) != TD_OK)
                return rc;
        }
        s->ring[s->n_ring++] = k;
    }
    return TD_OK;
}

td_status td_weight_stream_open(td_weights *w, const td_target_list *list, bool count_touched,
                                td_weight_stream **out, td_error *err) {
    td_weight_stream *s = td_calloc(1, sizeof *s);
    if (!s)
        return td_error_nomem(err, "staging of the weights", sizeof *s);
    *out = s;
    s->w = w;
    s->count_touched = count_touched;
    pthread_mutex_init(&s->mutex, NULL);
    s->streams = td_calloc((size_t)w->n_domains, sizeof *s->streams);
    if (!s->streams)
        return td_error_nomem(err, "staging of the weights", sizeof *s->streams);
    for (int32_t d = 0; d < w->n_domains; d++)
        pthread_mutex_init(&s->streams[d].mutex, NULL);
    td_status rc = TD_OK;
    for (int32_t step = 0; rc == TD_OK && step < list->n_steps; step++)
        for (size_t i = list->begin[step]; rc == TD_OK && i < list->begin[step + 1]; i++)
            rc = add_target(s, &list->targets[i], step, err);
    for (int32_t d = 0; rc == TD_OK && d < w->n_domains; d++) {
        td_device *dev = w->domains[d].device;
        if (td_domain_packs(&w->domains[d]))
            continue;
        s->host_device = s->host_device ? s->host_device : dev;
        rc = dev->ops->stream_create(dev, &s->streams[d].stream, err);
    }
    if (rc != TD_OK)
        return rc;
    choose_sizes(s);
    return open_blocks(s, err);
}

void td_weight_stream_close(td_weight_stream *s, td_load_stats *stats) {
    if (!s)
        return;
    /* First the streams: that waits for the copies that read the blocks. */
    for (int32_t d = 0; s->streams && d < s->w->n_domains; d++) {
        if (s->streams[d].stream)
            s->w->domains[d].device->ops->stream_destroy(s->streams[d].stream);
        pthread_mutex_destroy(&s->streams[d].mutex);
    }
    for (int32_t k = 0; k < s->n_blocks; k++) {
        block *b = &s->blocks[k];
        for (int32_t d = 0; b->events && d < s->w->n_domains; d++)
            if (b->events[d])
                s->w->domains[d].device->ops->event_destroy(b->events[d]);
        if (b->data)
            s->host_device->ops->host_free(s->host_device, b->data);
        free(b->events);
        free(b->pending);
    }
    stats->bytes_read += atomic_load(&s->bytes_read);
    stats->bytes_sent += atomic_load(&s->bytes_sent);
    pthread_mutex_destroy(&s->mutex);
    free(s->streams);
    free(s->destinations);
    free(s->jobs);
    free(s);
}
