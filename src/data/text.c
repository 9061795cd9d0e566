/* text.c - plain text: a row is a line without its line end, empty ones included, or the whole file
 * (text_unit).
 */
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "data/format.h"
#include "data/line_rows.h"

enum { PIECES = 32, PIECE_BYTES = 64 << 10, RATIO_BYTES = 16 << 20 };

static td_status make_line(td_row_maker *m, const char *line, size_t n_bytes, const char *where,
                           td_error *err) {
    return td_row_from_text(m, line, td_line_content(line, n_bytes), where, err);
}

/* Tokens per byte of pieces, times the size: a file that is one large row is not tokenised whole
 * for a plan. */
static td_status count_tokens(td_lines *l, td_row_maker *m, double *n_tokens, td_error *err) {
    char *buf = malloc(PIECE_BYTES);
    if (!buf)
        return td_error_nomem(err, "a piece of the dataset", PIECE_BYTES);
    td_status rc = l->unpack ? td_unpack_seek(l->unpack, 0, err) : TD_OK;
    double size = (double)l->size_bytes, n_bytes = 0, n_met = 0;
    for (int i = 0; i < PIECES && rc == TD_OK; i++) {
        size_t n = PIECE_BYTES;
        if (l->unpack)
            rc = td_unpack_read(l->unpack, buf, PIECE_BYTES, &n, err);
        else
            rc = td_dataset_pread(l->fd, buf, PIECE_BYTES,
                                  (uint64_t)(td_rows_spread(i) * (size - PIECE_BYTES)), l->path,
                                  err);
        if (rc == TD_OK && n == 0)
            break;
        n_bytes += (double)n;
        if (rc == TD_OK)
            rc = td_row_from_text(m, buf, n, l->path, err);
        if (rc == TD_OK)
            n_met += (double)m->ids.n;
    }
    /* The plain size, if it is packed alike to the end. A decoder takes its input in blocks: their
     * border counts less in a longer piece. */
    for (size_t n = 1;
         rc == TD_OK && l->unpack && n && td_unpack_plain_pos(l->unpack) < RATIO_BYTES;)
        rc = td_unpack_read(l->unpack, buf, PIECE_BYTES, &n, err);
    if (rc == TD_OK && l->unpack)
        size *= (double)td_unpack_plain_pos(l->unpack) / (double)td_unpack_packed_pos(l->unpack);
    *n_tokens = n_bytes > 0 ? n_met * size / n_bytes : 0;
    free(buf);
    return rc;
}

static td_status open_text(const td_config *cfg, int32_t n_vocab, td_rows **out, td_error *err) {
    static const td_line_kind lines = {.make = make_line},
                              whole = {.make = td_row_from_text, .count_tokens = count_tokens};
    (void)n_vocab;
    bool one_row = cfg->data.text_unit == TD_TEXT_FILE;
    return td_line_rows_open(cfg, one_row, one_row ? &whole : &lines, out, err);
}

/* Whatever is not binary may be text. */
static td_sniff sniff(const td_file_head *h) {
    return memchr(h->bytes, 0, h->n) ? TD_SNIFF_NO : TD_SNIFF_MAYBE;
}

const td_row_format td_format_text = {
    .format = TD_FORMAT_TEXT,
    .suffixes = (const char *const[]){".txt", ".text", NULL},
    .packed = true,
    .sniff = sniff,
    .open = open_text,
};
