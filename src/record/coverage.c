/* coverage.c - a finished shard in the report of what truncation loses. */
#include "record/coverage.h"

#include "record/row_reader.h"

void td_coverage_add_shard(td_coverage *c, const td_shard_file *f) {
    const int64_t *rows = td_shard_file_data(f, TD_T_ROW_OFFSETS);
    td_row_reader *rr = NULL;
    if (f->layout.spec.mode == TD_CAPTURE_HIDDEN || td_row_reader_create(f, &rr, NULL) != TD_OK)
        return;
    for (int64_t i = 0; i < f->layout.counts.n_samples; i++) {
        if (!td_row_sample_sound(f, i))
            continue;
        for (int64_t r = rows[i]; r < rows[i + 1]; r++) {
            td_row_view v;
            td_row_problem ignored;
            if (!td_row_read(rr, i, r, &v, &ignored))
                continue;
            /* Of topp the rows whose set is full are not a fair part of all. */
            bool levels = td_capture_has_topk_rows(f->layout.spec.mode) && v.n_top == c->top_k &&
                          td_coverage_wants_levels(c, r);
            td_coverage_add(c, v.tail_mass, levels ? v.top_logprobs : NULL);
            c->n_rows_kept++;
        }
    }
    td_row_reader_destroy(rr);
}
