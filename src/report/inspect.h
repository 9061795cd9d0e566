/* inspect.h - what the forms of inspect (text, JSON, HTML) share: a folder opened for looking. */
#ifndef TDGEN_REPORT_INSPECT_H
#define TDGEN_REPORT_INSPECT_H

#include <stdio.h>
#include "record/reader.h"
#include "report/report.h"
#include "base/strbuf.h"

typedef struct td_inspector {
    const char *dir;
    FILE *out;
    td_manifest manifest;
    td_index index;
    td_index_faults faults;
    td_folder_state state;
    td_tokenizer *tok; /* NULL: ids are shown */
    char *tok_note;    /* why there are no texts */
} td_inspector;

td_status td_inspector_open(td_inspector *in, const char *dir, const char *model_dir,
                            td_error *err);
void td_inspector_close(td_inspector *in);
td_status td_inspect_shard(const td_inspector *in, const td_index_entry *e, td_shard_file **out,
                           td_error *err);
/* The shard of sample `sample` of the folder (-1: the first with rows), opened, and its place in
 * it; its offsets are sound. *out = NULL when nothing is recorded yet. */
td_status td_inspect_find(const td_inspector *in, int64_t sample, td_shard_file **out,
                          int64_t *place, int64_t *number, td_error *err);
/* "top 64 of 151936 tokens as f16": what a position keeps, appended. */
void td_inspect_capture_text(const td_capture_spec *s, td_strbuf *line);
/* The token's text, or "#ID" where there is none. Always UTF-8. */
void td_inspect_token(const td_inspector *in, int32_t id, td_strbuf *out);

#endif
