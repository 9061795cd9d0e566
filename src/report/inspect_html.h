/* inspect_html.h - what the two files of the page share. */
#ifndef TDGEN_REPORT_INSPECT_HTML_H
#define TDGEN_REPORT_INSPECT_HTML_H

#include "report/inspect.h"

enum { TD_PAGE_BINS = 20, TD_PAGE_WIDTH = 900 };

typedef struct td_page {
    td_inspector in;
    FILE *out;
    td_inspect_options opt;
    double max_entropy; /* log V: where the entropy's colour ends */
    /* Of the shards looked at. */
    int64_t n_rows, bins[TD_PAGE_BINS], n_first;
    double sum_tail, sum_entropy, sum_target;
    td_coverage coverage;
} td_page;

/* Any bytes, as text between tags or in a quoted attribute: escaped, and printable. */
void td_page_text(const td_page *p, const char *s, size_t n);
void td_page_string(const td_page *p, const char *s); /* NULL: nothing */
/* A string as it is, anything else as JSON; "none" for NULL. */
void td_page_json(const td_page *p, const json_t *v);

/* How fast it was made, as a term of the list at the top. */
void td_page_put_rate(const td_page *p);
/* The executions and what closed the last of them (run.json), then the devices over time
 * (timeline.jsonl). */
void td_page_put_run(const td_page *p);

#endif
