/* Speed of the tokenizer: bench_tokenizer MODEL_DIR TEXT_FILE [line|file]
 *
 * Reads the text, times the load of tokenizer.json and then whole passes over the text, a line per
 * call (default) or in one call, for about two seconds, on one thread. Prints the first pass, which
 * fills the cache of pieces, and the best one.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "tokenizer/tokenizer.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/memory.h"

static td_status pass(const td_tokenizer *tok, td_tok_scratch *s, const char *text, size_t n,
                      bool by_line, td_ids *ids, td_error *err) {
    ids->n = 0;
    for (size_t at = 0; at < n;) {
        const char *nl = by_line ? memchr(text + at, '\n', n - at) : NULL;
        size_t len = nl ? (size_t)(nl - text) - at : n - at;
        td_status rc = td_tokenizer_encode(tok, s, text + at, len, true, ids, err);
        if (rc != TD_OK)
            return rc;
        at += len + (nl != NULL);
    }
    return TD_OK;
}

int main(int argc, char **argv) {
    td_error err = {0};
    td_tokenizer *tok = NULL;
    td_tok_scratch *s = NULL;
    td_ids ids = {0};
    char *text = NULL;
    size_t n = 0;
    if (argc < 3) {
        fprintf(stderr, "usage: bench_tokenizer MODEL_DIR TEXT_FILE [line|file]\n");
        return TD_EXIT_CONFIG;
    }
    bool by_line = argc < 4 || strcmp(argv[3], "file") != 0;
    double t0 = td_time_s();
    td_status rc = td_tokenizer_load(argv[1], &tok, &err);
    double load_s = td_time_s() - t0;
    if (rc == TD_OK)
        rc = td_tok_scratch_create(tok, &s, &err);
    if (rc == TD_OK)
        rc = td_file_read(argv[2], (size_t)1 << 32, TD_E_DATA, &text, &n, &err);
    double first_s = 0, best_s = 0, total_s = 0;
    while (rc == TD_OK && total_s < 2) {
        t0 = td_time_s();
        rc = pass(tok, s, text, n, by_line, &ids, &err);
        double t = td_time_s() - t0;
        if (total_s == 0)
            first_s = best_s = t;
        best_s = TD_MIN(best_s, t);
        total_s += t;
    }
    if (rc == TD_OK)
        printf("load %.2f s; %.1f MB, %zu tokens, %s; first pass %.1f MB/s, best %.1f MB/s\n",
               load_s, 1e-6 * (double)n, ids.n, by_line ? "by line" : "in one call",
               1e-6 * (double)n / first_s, 1e-6 * (double)n / best_s);
    else
        fprintf(stderr, "%s\n", err.text);
    free(text);
    td_ids_free(&ids);
    td_tok_scratch_free(s);
    td_tokenizer_free(tok);
    return td_status_exit_code(rc);
}
