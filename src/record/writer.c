/* The shard writer: temp file at its full size, rows to their places, atomic commit.
 *
 *   open    layout from the shard's counts; DIR/shard-N.safetensors.tmp reserved at full size;
 * tokens and sample tables written put     one sample's rows, checked, each tensor's part written
 * with pwrite at its place commit  (with skipped samples: their rows taken out through a second
 * temp file) device and status of the samples, hashes, header, fsync, rename, fsync of the folder,
 * index line
 *
 * Invariant: the file gets its final name only after everything in it was checked, written and
 * synced. Host memory: tables of n samples, never the row tensors.
 *
 * Threads: put and skip of distinct samples may run at once; each writes ranges of its own. open,
 * commit and abort belong to one thread, with no put or skip running.
 */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include "record/output.h"
#include "record/row_check.h"

enum { SAMPLE_EMPTY, SAMPLE_BUSY, SAMPLE_PUT, SAMPLE_SKIPPED };

/* A file of a given layout that is being filled. */
typedef struct shard_temp {
    td_layout layout;
    uint64_t header_size_bytes;
    char *path;
    int fd;
} shard_temp;

struct td_shard_writer {
    td_output *o;
    const td_shard *shard;
    shard_temp temp;
    const char **kinds; /* sorted, each once; owned */
    int32_t n_kinds;
    uint8_t *kind_of; /* index in the run's list -> index in `kinds` */
    int32_t n_run_kinds;
    /* [n_samples]. EMPTY -> BUSY by the one thread that puts (compare-and-swap, so a second put is
     * refused) -> PUT or, on failure, EMPTY again. Relaxed order suffices: commit reads them after
     * the caller joined or otherwise synchronised with the putting threads. */
    _Atomic uint8_t *state;
    uint8_t *device; /* [n_samples]; written by the putting thread */
    pthread_mutex_t mutex;
    td_coverage coverage; /* of the rows put. Protected by mutex */
};

/* --- columns: sequential writes of small elements --------------------------------------------- */

typedef struct column {
    const shard_temp *temp;
    uint64_t at; /* file offset of buf[0] */
    size_t n;
    td_status rc;
    td_error *err;
    char buf[16384];
} column;

static void column_begin(column *c, const shard_temp *t, td_tensor_id id, uint64_t elem,
                         td_error *err) {
    const td_layout_tensor *lt = &t->layout.tensor[id];
    c->temp = t;
    c->at = t->header_size_bytes + lt->begin + elem * td_dtype_size(lt->dtype);
    c->n = 0;
    c->rc = TD_OK;
    c->err = err;
}

static void column_flush(column *c) {
    if (c->rc == TD_OK && c->n)
        c->rc = td_pwrite_all(c->temp->fd, c->buf, c->n, c->at, c->temp->path, c->err);
    c->at += c->n;
    c->n = 0;
}

static void column_push(column *c, const void *data, size_t size_bytes) {
    if (size_bytes == 0)
        return;
    if (size_bytes >= sizeof c->buf) { /* large parts go straight to the file */
        column_flush(c);
        if (c->rc == TD_OK)
            c->rc = td_pwrite_all(c->temp->fd, data, size_bytes, c->at, c->temp->path, c->err);
        c->at += size_bytes;
        return;
    }
    if (c->n + size_bytes > sizeof c->buf)
        column_flush(c);
    memcpy(c->buf + c->n, data, size_bytes);
    c->n += size_bytes;
}

static void column_push_i64(column *c, int64_t v) {
    column_push(c, &v, sizeof v);
}

static td_status column_end(column *c) {
    column_flush(c);
    return c->rc;
}

static td_status write_array(const shard_temp *t, td_tensor_id id, uint64_t elem, const void *data,
                             uint64_t n_elems, td_error *err) {
    const td_layout_tensor *lt = &t->layout.tensor[id];
    size_t es = td_dtype_size(lt->dtype);
    return td_pwrite_all(t->fd, data, (size_t)n_elems * es,
                         t->header_size_bytes + lt->begin + elem * es, t->path, err);
}

/* --- temp files ------------------------------------------------------------------------------- */

static td_status reserve(const shard_temp *t, const char *dir, td_error *err) {
    uint64_t size = t->header_size_bytes + t->layout.data_size_bytes;
    int e = posix_fallocate(t->fd, 0, (off_t)size);
    /* A file system that cannot reserve reports a full disk at the write that meets it. */
    if ((e == EOPNOTSUPP || e == EINVAL || e == ENOSYS) && ftruncate(t->fd, (off_t)size) == 0)
        e = 0;
    if (e == 0)
        return TD_OK;
    char need[32], room[32] = "an unknown amount";
    struct statvfs vfs;
    if (statvfs(dir, &vfs) == 0)
        td_human_bytes((uint64_t)vfs.f_bavail * vfs.f_frsize, room, sizeof room);
    return td_error_errno(err, TD_E_OUTPUT, e,
                          "cannot reserve %s for %s (%s is free); make room or choose another "
                          "output.dir, and run the same command again",
                          td_human_bytes(size, need, sizeof need), t->path, room);
}

static td_shard_meta meta_of(const td_shard_writer *w, int64_t n_skipped) {
    const td_shard *s = w->shard;
    return (td_shard_meta){.number = s->number,
                           .row_begin = s->row_begin,
                           .row_end = s->row_end,
                           .fingerprint = w->o->fingerprint,
                           .source_hash = s->source_hash,
                           .n_skipped = n_skipped,
                           .n_bad_rows = s->n_bad_rows,
                           .n_overflow_rows = s->n_overflow_rows,
                           .device_kinds = w->kinds,
                           .n_kinds = w->n_kinds};
}

static bool is_skipped(const td_shard_writer *w, int32_t i) {
    return atomic_load_explicit(&w->state[i], memory_order_relaxed) == SAMPLE_SKIPPED;
}

static int64_t count_skipped(const td_shard_writer *w) {
    int64_t n = 0;
    for (int32_t i = 0; i < w->shard->n_samples; i++)
        n += is_skipped(w, i);
    return n;
}

static void temp_discard(shard_temp *t) {
    if (t->fd >= 0) {
        close(t->fd);
        unlink(t->path);
    }
    free(t->path);
    t->path = NULL;
    t->fd = -1;
}

static td_status temp_create(td_shard_writer *w, const char *suffix, int64_t n_rows,
                             int64_t n_skipped, shard_temp *out, td_error *err) {
    const td_shard *s = w->shard;
    shard_temp t = {.fd = -1};
    char name[TD_SHARD_NAME_SIZE];
    td_strbuf header = {0};
    td_layout_counts counts = {.n_samples = s->n_samples,
                               .n_tokens = s->n_tokens,
                               .n_rows = n_rows,
                               .n_id_bytes = w->o->has_ids ? s->id_offsets[s->n_samples] : -1};
    if (!td_layout_init(&t.layout, &w->o->spec, &counts))
        return td_error_set(err, TD_E_INTERNAL, "shard %lld is too large: its size overflows",
                            (long long)s->number);
    td_shard_name(s->number, name);
    t.path = td_asprintf("%s/%s%s", w->o->dir, name, suffix);
    if (!t.path)
        return td_error_nomem(err, "a path", 0);
    td_shard_meta meta = meta_of(w, n_skipped);
    td_status rc = td_layout_header(&t.layout, &meta, NULL, &header, err);
    t.header_size_bytes = header.len;
    td_strbuf_free(&header);
    if (rc != TD_OK)
        goto fail;
    t.fd = open(t.path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (t.fd < 0) {
        rc = td_error_errno(err, TD_E_OUTPUT, errno, "cannot create %s", t.path);
        goto fail;
    }
    rc = reserve(&t, w->o->dir, err);
    if (rc != TD_OK)
        goto fail;
    *out = t;
    return TD_OK;
fail:
    temp_discard(&t);
    return rc;
}

/* --- tokens and sample tables ----------------------------------------------------------------- */

/* Tables whose content follows from the shard and from which samples are skipped. */
static td_status write_tables(const td_shard_writer *w, const shard_temp *t, td_error *err) {
    static const uint8_t zeros[4096];
    const td_shard *s = w->shard;
    column c;
    td_status rc;
    column_begin(&c, t, TD_T_SAMPLE_OFFSETS, 0, err);
    for (int32_t i = 0; i < s->n_samples; i++)
        column_push_i64(&c, s->samples[i].token_offset);
    column_push_i64(&c, s->n_tokens);
    if ((rc = column_end(&c)) != TD_OK)
        return rc;
    column_begin(&c, t, TD_T_SAMPLE_INDEX, 0, err);
    for (int32_t i = 0; i < s->n_samples; i++)
        column_push_i64(&c, s->samples[i].row);
    if ((rc = column_end(&c)) != TD_OK)
        return rc;
    column_begin(&c, t, TD_T_SAMPLE_START, 0, err);
    for (int32_t i = 0; i < s->n_samples; i++)
        column_push_i64(&c, s->samples[i].start);
    if ((rc = column_end(&c)) != TD_OK)
        return rc;
    column_begin(&c, t, TD_T_ROW_OFFSETS, 0, err);
    int64_t rows = 0;
    for (int32_t i = 0; i < s->n_samples; i++) {
        column_push_i64(&c, rows);
        rows += is_skipped(w, i) ? 0 : s->samples[i].n_rows;
    }
    column_push_i64(&c, rows);
    if ((rc = column_end(&c)) != TD_OK)
        return rc;
    column_begin(&c, t, TD_T_ROW_POSITION, 0, err);
    for (int32_t i = 0; i < s->n_samples; i++) {
        const td_sample *m = &s->samples[i];
        for (int32_t p = 1; p < m->n_tokens && !is_skipped(w, i); p++)
            if (s->loss_mask[m->token_offset + p])
                column_push(&c, &(int32_t){p - 1}, sizeof(int32_t));
    }
    if ((rc = column_end(&c)) != TD_OK)
        return rc;
    column_begin(&c, t, TD_T_LOSS_MASK, 0, err);
    for (int32_t i = 0; i < s->n_samples; i++) {
        const td_sample *m = &s->samples[i];
        if (!is_skipped(w, i)) {
            column_push(&c, s->loss_mask + m->token_offset, (size_t)m->n_tokens);
            continue;
        }
        for (int32_t p = 0; p < m->n_tokens; p += (int32_t)sizeof zeros)
            column_push(&c, zeros, (size_t)TD_MIN(m->n_tokens - p, (int32_t)sizeof zeros));
    }
    if ((rc = column_end(&c)) != TD_OK)
        return rc;
    rc = write_array(t, TD_T_INPUT_IDS, 0, s->ids, (uint64_t)s->n_tokens, err);
    if (rc == TD_OK && w->o->has_ids)
        rc = write_array(t, TD_T_SAMPLE_ID_OFFSETS, 0, s->id_offsets, (uint64_t)s->n_samples + 1,
                         err);
    if (rc == TD_OK && w->o->has_ids)
        rc = write_array(t, TD_T_SAMPLE_ID_BYTES, 0, s->id_bytes,
                         (uint64_t)t->layout.counts.n_id_bytes, err);
    return rc;
}

/* What the writer relies on. A wrong count here would put rows over each other. */
static td_status check_shard(const td_output *o, const td_shard *s, td_error *err) {
    int64_t tokens = 0, rows = 0;
    for (int32_t i = 0; i < s->n_samples; i++) {
        const td_sample *m = &s->samples[i];
        int32_t n = 0;
        if (m->token_offset != tokens || m->row_offset != rows || m->n_tokens < 0 ||
            m->n_tokens > s->n_tokens - tokens)
            goto wrong;
        for (int32_t p = 0; p < m->n_tokens; p++) {
            uint8_t mask = s->loss_mask[tokens + p];
            if (mask > 1 || (p == 0 && mask) || s->ids[tokens + p] < 0 ||
                s->ids[tokens + p] >= o->spec.n_vocab)
                goto wrong;
            n += mask;
        }
        if (n != m->n_rows)
            goto wrong;
        tokens += m->n_tokens;
        rows += n;
        continue;
    wrong:
        return td_error_set(err, TD_E_INTERNAL,
                            "shard %lld: the tables of sample %d contradict its tokens",
                            (long long)s->number, i);
    }
    if (tokens != s->n_tokens || rows != s->n_rows || (o->has_ids && !s->id_offsets))
        return td_error_set(err, TD_E_INTERNAL, "shard %lld: its counts contradict its samples",
                            (long long)s->number);
    return TD_OK;
}

/* --- open ------------------------------------------------------------------------------------- */

static int compare_names(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The list in the shard is sorted and has each kind once: which group came first, or how many
 * groups there were, is not told by the bytes. */
static td_status set_kinds(td_shard_writer *w, const char *const *kinds, int32_t n, td_error *err) {
    if (n < 0 || n > 255)
        return td_error_set(err, TD_E_INTERNAL, "%d device kinds, at most 255 fit a shard", n);
    w->kinds = td_calloc((size_t)n, sizeof *w->kinds);
    w->kind_of = td_calloc((size_t)n, 1);
    if (!w->kinds || !w->kind_of)
        return td_error_nomem(err, "the device kinds", (size_t)n);
    w->n_run_kinds = n;
    const char **sorted = td_calloc((size_t)n, sizeof *sorted);
    if (!sorted)
        return td_error_nomem(err, "the device kinds", (size_t)n);
    for (int32_t i = 0; i < n; i++)
        sorted[i] = kinds[i];
    qsort(sorted, (size_t)n, sizeof *sorted, compare_names);
    td_status rc = TD_OK;
    for (int32_t i = 0; i < n && rc == TD_OK; i++) {
        if (i && strcmp(sorted[i], sorted[i - 1]) == 0)
            continue;
        w->kinds[w->n_kinds] = td_strdup(sorted[i]);
        if (!w->kinds[w->n_kinds])
            rc = td_error_nomem(err, "the device kinds", strlen(sorted[i]));
        else
            w->n_kinds++;
    }
    for (int32_t i = 0; i < n && rc == TD_OK; i++)
        for (int32_t j = 0; j < w->n_kinds; j++)
            if (strcmp(kinds[i], w->kinds[j]) == 0)
                w->kind_of[i] = (uint8_t)j;
    free(sorted);
    return rc;
}

static void writer_free(td_shard_writer *w) {
    temp_discard(&w->temp);
    for (int32_t i = 0; i < w->n_kinds; i++)
        free((char *)w->kinds[i]);
    free(w->kinds);
    free(w->kind_of);
    free(w->state);
    free(w->device);
    pthread_mutex_destroy(&w->mutex);
    free(w);
}

td_status td_shard_writer_open(td_output *o, const td_shard *shard, const char *const *device_kinds,
                               int32_t n_kinds, td_shard_writer **out, td_error *err) {
    if (!o->bound)
        return td_error_set(err, TD_E_INTERNAL,
                            "td_output_bind_weights must come before td_shard_writer_open");
    td_status rc = check_shard(o, shard, err);
    if (rc != TD_OK)
        return rc;
    td_shard_writer *w = td_calloc(1, sizeof *w);
    if (!w)
        return td_error_nomem(err, "a shard writer", sizeof *w);
    w->o = o;
    w->shard = shard;
    w->temp.fd = -1;
    pthread_mutex_init(&w->mutex, NULL);
    td_coverage_init(&w->coverage, o->coverage.top_k);
    size_t n = (size_t)shard->n_samples;
    w->state = td_calloc(n, sizeof *w->state);
    w->device = td_calloc(n, 1);
    rc = !w->state || !w->device ? td_error_nomem(err, "a shard writer", 2 * n)
                                 : set_kinds(w, device_kinds, n_kinds, err);
    if (rc == TD_OK)
        rc = temp_create(w, ".tmp", shard->n_rows, 0, &w->temp, err);
    if (rc == TD_OK)
        rc = write_tables(w, &w->temp, err);
    if (rc != TD_OK) {
        writer_free(w);
        return rc;
    }
    *out = w;
    return TD_OK;
}

/* --- put and skip ----------------------------------------------------------------------------- */

static td_status check_rows(const td_shard_writer *w, const td_sample *m, int32_t sample,
                            const td_captured *cap, int32_t first_row, td_error *err) {
    const td_capture_spec *spec = &w->o->spec;
    size_t k = (size_t)cap->top_k, nt = (size_t)cap->n_temperatures, r = (size_t)first_row;
    for (int32_t p = 1; p < m->n_tokens; p++) {
        if (!w->shard->loss_mask[m->token_offset + p])
            continue;
        td_row row = {.n_vocab = spec->n_vocab,
                      .top_k = spec->top_k,
                      .n_temperatures = spec->n_temperatures,
                      .target = w->shard->ids[m->token_offset + p],
                      .ids = cap->topk_ids + r * k,
                      .logprobs = cap->topk_logprobs + r * k,
                      .logsumexp_t = nt ? cap->logsumexp_t + r * nt : NULL,
                      .logsumexp = cap->logsumexp[r],
                      .tail_mass = cap->tail_mass[r],
                      .target_logprob = cap->target_logprob[r],
                      .entropy = cap->entropy[r],
                      .target_rank = cap->target_rank[r]};
        td_row_problem why;
        if (!td_row_check(&row, &why))
            return td_error_set(err, TD_E_INTERNAL,
                                "dataset row %lld (shard %lld, sample %d), position %d: the device "
                                "gave numbers that must not be recorded: %s %s",
                                (long long)m->row, (long long)w->shard->number, sample, p - 1,
                                why.tensor, why.what);
        r++;
    }
    return TD_OK;
}

static td_status write_topk(const td_shard_writer *w, uint64_t first, int32_t n_rows,
                            const td_captured *cap, int32_t first_row, td_error *err) {
    size_t k = (size_t)w->o->spec.top_k, stride = (size_t)cap->top_k;
    const int32_t *ids = cap->topk_ids + (size_t)first_row * stride;
    const float *lp = cap->topk_logprobs + (size_t)first_row * stride;
    bool f16 = w->o->spec.logprob_dtype == TD_F16;
    column c;
    column_begin(&c, &w->temp, TD_T_TOPK_IDS, first * k, err);
    if (stride == k)
        column_push(&c, ids, (size_t)n_rows * k * sizeof *ids);
    else
        for (int32_t r = 0; r < n_rows; r++)
            column_push(&c, ids + (size_t)r * stride, k * sizeof *ids);
    td_status rc = column_end(&c);
    if (rc != TD_OK)
        return rc;
    column_begin(&c, &w->temp, f16 ? TD_T_TOPK_LOGPROBS_F16 : TD_T_TOPK_LOGPROBS_F32, first * k,
                 err);
    for (int32_t r = 0; r < n_rows; r++) {
        const float *row = lp + (size_t)r * stride;
        if (!f16) {
            column_push(&c, row, k * sizeof *row);
            continue;
        }
        for (size_t j = 0; j < k; j++) {
            uint16_t h = td_logprob_to_f16(row[j]);
            column_push(&c, &h, sizeof h);
        }
    }
    return column_end(&c);
}

static td_status write_rows(const td_shard_writer *w, const td_sample *m, const td_captured *cap,
                            int32_t first_row, td_error *err) {
    const shard_temp *t = &w->temp;
    uint64_t at = (uint64_t)m->row_offset, n = (uint64_t)m->n_rows;
    size_t r = (size_t)first_row, nt = (size_t)w->o->spec.n_temperatures;
    td_status rc = write_topk(w, at, m->n_rows, cap, first_row, err);
    if (rc == TD_OK)
        rc = write_array(t, TD_T_LOGSUMEXP, at, cap->logsumexp + r, n, err);
    if (rc == TD_OK && nt)
        rc = write_array(t, TD_T_LOGSUMEXP_T, at * nt, cap->logsumexp_t + r * nt, n * nt, err);
    if (rc == TD_OK)
        rc = write_array(t, TD_T_TAIL_MASS, at, cap->tail_mass + r, n, err);
    if (rc == TD_OK)
        rc = write_array(t, TD_T_TARGET_LOGPROB, at, cap->target_logprob + r, n, err);
    if (rc == TD_OK)
        rc = write_array(t, TD_T_TARGET_RANK, at, cap->target_rank + r, n, err);
    if (rc == TD_OK)
        rc = write_array(t, TD_T_ENTROPY, at, cap->entropy + r, n, err);
    return rc;
}

/* Takes the sample for this thread. */
static td_status claim(td_shard_writer *w, int32_t sample, td_error *err) {
    uint8_t expected = SAMPLE_EMPTY;
    if (sample < 0 || sample >= w->shard->n_samples)
        return td_error_set(err, TD_E_INTERNAL, "shard %lld has no sample %d",
                            (long long)w->shard->number, sample);
    if (!atomic_compare_exchange_strong_explicit(&w->state[sample], &expected, SAMPLE_BUSY,
                                                 memory_order_relaxed, memory_order_relaxed))
        return td_error_set(err, TD_E_INTERNAL, "shard %lld: sample %d was put or skipped already",
                            (long long)w->shard->number, sample);
    return TD_OK;
}

/* The rows count for the report of what truncation loses. */
static void count_rows(td_shard_writer *w, const td_sample *m, const td_captured *cap,
                       int32_t first_row) {
    td_coverage c;
    td_coverage_init(&c, w->coverage.top_k);
    if (c.top_k == 0)
        return;
    for (int32_t i = 0; i < m->n_rows; i++) {
        size_t r = (size_t)first_row + (size_t)i;
        td_coverage_add(&c, cap->tail_mass[r],
                        td_coverage_wants_levels(&c, m->row_offset + i)
                            ? cap->topk_logprobs + r * (size_t)cap->top_k
                            : NULL);
    }
    pthread_mutex_lock(&w->mutex);
    td_coverage_merge(&w->coverage, &c);
    pthread_mutex_unlock(&w->mutex);
}

td_status td_shard_writer_put(td_shard_writer *w, int32_t sample, int32_t device_kind,
                              const td_captured *cap, int32_t first_row, td_error *err) {
    td_status rc = claim(w, sample, err);
    if (rc != TD_OK)
        return rc;
    const td_sample *m = &w->shard->samples[sample];
    const td_capture_spec *spec = &w->o->spec;
    if (device_kind < 0 || device_kind >= w->n_run_kinds || first_row < 0 ||
        first_row > cap->n_rows - m->n_rows || cap->top_k < spec->top_k ||
        cap->n_temperatures != spec->n_temperatures)
        rc = td_error_set(
            err, TD_E_INTERNAL,
            "shard %lld, sample %d: what was captured does not fit (rows %d+%d of %d, "
            "top_k %d of %d, temperatures %d of %d, device kind %d of %d)",
            (long long)w->shard->number, sample, first_row, m->n_rows, cap->n_rows, cap->top_k,
            spec->top_k, cap->n_temperatures, spec->n_temperatures, device_kind, w->n_run_kinds);
    if (rc == TD_OK)
        rc = check_rows(w, m, sample, cap, first_row, err);
    if (rc == TD_OK)
        rc = write_rows(w, m, cap, first_row, err);
    if (rc == TD_OK) {
        w->device[sample] = w->kind_of[device_kind];
        count_rows(w, m, cap, first_row);
    }
    atomic_store_explicit(&w->state[sample], rc == TD_OK ? SAMPLE_PUT : SAMPLE_EMPTY,
                          memory_order_relaxed);
    return rc;
}

td_status td_shard_writer_skip(td_shard_writer *w, int32_t sample, td_error *err) {
    td_status rc = claim(w, sample, err);
    if (rc == TD_OK)
        atomic_store_explicit(&w->state[sample], SAMPLE_SKIPPED, memory_order_relaxed);
    return rc;
}

/* --- commit ----------------------------------------------------------------------------------- */

/* Copies the rows of one tensor that are kept, in runs of neighbouring samples. */
static td_status copy_rows(const td_shard_writer *w, const shard_temp *to, td_tensor_id id,
                           char *buf, size_t buf_size, td_error *err) {
    const td_shard *s = w->shard;
    const td_layout_tensor *a = &w->temp.layout.tensor[id], *b = &to->layout.tensor[id];
    uint64_t row_bytes =
        td_dtype_size(a->dtype) * (a->n_dims == 2 ? (uint64_t)a->shape[1] : UINT64_C(1));
    uint64_t dst = to->header_size_bytes + b->begin;
    for (int32_t i = 0; i < s->n_samples;) {
        if (is_skipped(w, i)) {
            i++;
            continue;
        }
        int64_t first = s->samples[i].row_offset, n = 0;
        for (; i < s->n_samples && !is_skipped(w, i); i++)
            n += s->samples[i].n_rows;
        uint64_t src = w->temp.header_size_bytes + a->begin + (uint64_t)first * row_bytes;
        uint64_t left = (uint64_t)n * row_bytes;
        while (left) {
            size_t part = (size_t)TD_MIN(left, (uint64_t)buf_size);
            td_status rc = td_pread_all(w->temp.fd, buf, part, src, w->temp.path, err);
            if (rc == TD_OK)
                rc = td_pwrite_all(to->fd, buf, part, dst, to->path, err);
            if (rc != TD_OK)
                return rc;
            src += part;
            dst += part;
            left -= part;
        }
    }
    return TD_OK;
}

/* Replaces the temp file by one without the rows of skipped samples. */
static td_status compact(td_shard_writer *w, int64_t n_rows, int64_t n_skipped, td_error *err) {
    enum { BUF = 1 << 20 };
    shard_temp to = {.fd = -1};
    char *buf = malloc(BUF);
    if (!buf)
        return td_error_nomem(err, "taking skipped samples out of a shard", BUF);
    td_status rc = temp_create(w, ".compact.tmp", n_rows, n_skipped, &to, err);
    if (rc == TD_OK)
        rc = write_tables(w, &to, err);
    for (int i = 0; rc == TD_OK && i < TD_T_COUNT; i++)
        if (to.layout.tensor[i].present && td_layout_doc((td_tensor_id)i)->row_tensor &&
            i != TD_T_ROW_POSITION) /* written by write_tables */
            rc = copy_rows(w, &to, (td_tensor_id)i, buf, BUF, err);
    free(buf);
    if (rc != TD_OK) {
        temp_discard(&to);
        return rc;
    }
    temp_discard(&w->temp);
    w->temp = to;
    return TD_OK;
}

/* Hashes and header of the complete data part. */
static td_status seal(td_shard_writer *w, int64_t n_skipped, td_index_entry *e, td_error *err) {
    shard_temp *t = &w->temp;
    td_shard_hashes hashes = {0};
    td_strbuf header = {0};
    uint64_t file_hash;
    td_shard_meta meta = meta_of(w, n_skipped);
    td_status rc =
        td_shard_hash_fd(t->fd, t->path, &t->layout, t->header_size_bytes, &hashes, NULL, err);
    if (rc == TD_OK)
        rc = td_layout_header(&t->layout, &meta, &hashes, &header, err);
    if (rc == TD_OK && header.len != t->header_size_bytes)
        rc = td_error_set(err, TD_E_INTERNAL, "%s: the header changed its size", t->path);
    if (rc == TD_OK)
        rc = td_pwrite_all(t->fd, header.data, header.len, 0, t->path, err);
    if (rc == TD_OK)
        rc = td_shard_hash_fd(t->fd, t->path, &t->layout, t->header_size_bytes, &hashes, &file_hash,
                              err);
    td_strbuf_free(&header);
    if (rc != TD_OK)
        return rc;
    td_shard_file as_file = {.layout = t->layout,
                             .meta = meta,
                             .hashes = hashes,
                             .size_bytes = t->header_size_bytes + t->layout.data_size_bytes};
    td_index_entry_of(&as_file, file_hash, e);
    e->proven = true;
    return TD_OK;
}

static td_status publish(td_shard_writer *w, td_error *err) {
    shard_temp *t = &w->temp;
    char name[TD_SHARD_NAME_SIZE];
    td_shard_name(w->shard->number, name);
    char *final = td_output_path(w->o, name);
    if (!final)
        return td_error_nomem(err, "a path", 0);
    td_status rc = TD_OK;
    if (fsync(t->fd) != 0)
        rc = td_error_errno(err, TD_E_OUTPUT, errno, "cannot sync %s", t->path);
    else if (rename(t->path, final) != 0)
        rc = td_error_errno(err, TD_E_OUTPUT, errno, "cannot rename %s to %s", t->path, final);
    if (rc == TD_OK) {
        close(t->fd);
        t->fd = -1; /* the name is gone: nothing left to discard */
        rc = td_file_sync_dir_of(final, err);
    }
    free(final);
    return rc;
}

td_status td_shard_writer_commit(td_shard_writer *w, td_error *err) {
    const td_shard *s = w->shard;
    td_status rc = TD_OK;
    int64_t n_skipped = count_skipped(w), n_rows = 0;
    uint8_t *status = td_calloc((size_t)s->n_samples, 1);
    if (!status) {
        rc = td_error_nomem(err, "a shard", (size_t)s->n_samples);
        goto done;
    }
    for (int32_t i = 0; i < s->n_samples; i++) {
        uint8_t state = atomic_load_explicit(&w->state[i], memory_order_relaxed);
        if (state == SAMPLE_BUSY || (state == SAMPLE_EMPTY && s->samples[i].n_rows)) {
            rc = td_error_set(err, TD_E_INTERNAL,
                              "shard %lld: sample %d was neither put nor skipped",
                              (long long)s->number, i);
            goto done;
        }
        status[i] = state == SAMPLE_SKIPPED ? TD_SAMPLE_SKIPPED : TD_SAMPLE_OK;
        n_rows += state == SAMPLE_SKIPPED ? 0 : s->samples[i].n_rows;
    }
    if (n_skipped)
        rc = compact(w, n_rows, n_skipped, err);
    if (rc == TD_OK)
        rc = write_array(&w->temp, TD_T_SAMPLE_DEVICE, 0, w->device, (uint64_t)s->n_samples, err);
    if (rc == TD_OK)
        rc = write_array(&w->temp, TD_T_SAMPLE_STATUS, 0, status, (uint64_t)s->n_samples, err);
    td_index_entry entry;
    if (rc == TD_OK)
        rc = seal(w, n_skipped, &entry, err);
    if (rc == TD_OK)
        rc = publish(w, err);
    if (rc == TD_OK)
        rc = td_output_add_entry(w->o, &entry, err);
    if (rc == TD_OK)
        td_output_add_coverage(w->o, &w->coverage);
done:
    free(status);
    writer_free(w);
    return rc;
}

void td_shard_writer_abort(td_shard_writer *w) {
    if (w)
        writer_free(w);
}
