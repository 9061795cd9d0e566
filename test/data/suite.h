/* suite.h - what the files of the suite test_data share, each case in a process of its own. */
#ifndef TDGEN_TEST_DATA_SUITE_H
#define TDGEN_TEST_DATA_SUITE_H

#include "base/strbuf.h"
#include "fixture.h"

extern data_fixture F;
void data_setup(void); /* opens F; what is only worth a note stays quiet */
void data_teardown(void);

/* The dataset of F, with its tokenizer. */
td_source *open_source(void);
td_shard *next_shard(td_source *s, bool tokenise);

/* Appends `data` as one gzip member. */
void put_gzip(td_strbuf *out, const char *data, size_t n);

/* An estimate of the planner's: within a share of what is true. */
void estimate_near(const char *what, int64_t got, double expected, double tolerance);

#endif
