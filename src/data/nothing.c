/* nothing.c - why rows give no position to record. */
#include "data/data.h"

static void why_no_target(const td_config *cfg, int64_t n_overflow_rows, td_strbuf *out) {
    if (cfg->data.ids_field && cfg->data.mask_field)
        td_strbuf_printf(out,
                         "no token is a training target: data.mask_field = %s is 0 everywhere "
                         "behind a sample's first token",
                         cfg->data.mask_field);
    else if (cfg->data.prompt_field)
        td_strbuf_printf(
            out,
            "no token is a training target: the completions (data.completion_field = %s) "
            "are empty%s",
            cfg->data.completion_field,
            n_overflow_rows ? ", or lie behind data.max_length, which cuts them off: "
                              "raise it"
                            : "; is it the right field?");
    else
        td_strbuf_puts(out, "no token is a training target: the loss_mask of the dataset is 0 "
                            "everywhere behind a sample's first token");
}

void td_data_why_nothing(const td_config *cfg, const td_data_counts *n, td_strbuf *out) {
    if (n->n_samples == 0 && n->n_bad > 0)
        td_strbuf_puts(out, "every row is bad (run.on_bad_sample = skip leaves them out); with "
                            "run.on_bad_sample = fail the first one is explained");
    else if (n->n_samples == 0)
        td_strbuf_printf(out,
                         "every row is longer than data.max_length = %d, and data.overflow = skip "
                         "leaves such rows out; raise data.max_length, or set data.overflow = "
                         "truncate or split",
                         (int)cfg->data.max_length);
    else if (n->n_bad >= n->n_samples)
        td_strbuf_puts(out, "every sample was skipped, because it could not be computed");
    else if (cfg->data.max_length == 1)
        td_strbuf_puts(out, "data.max_length = 1 leaves one token of each sample, and nothing "
                            "predicts the first one; raise it");
    else if (n->n_tokens <= n->n_samples)
        td_strbuf_puts(out, "the samples are empty or of one token, and nothing predicts the first "
                            "token of a sample; is it the right field (data.text_field)?");
    else
        why_no_target(cfg, n->n_overflow_rows, out);
}
