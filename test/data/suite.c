/* suite.c - see suite.h. */
#include "suite.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <zlib.h>

#include "base/log.h"

data_fixture F;

void data_setup(void) {
    fixture_open(&F);
    td_log_set_level(TD_LOG_ERROR);
}

void data_teardown(void) {
    fixture_close(&F);
}

td_source *open_source(void) {
    td_error err;
    td_source *s = NULL;
    OK(td_source_open(&F.cfg, F.tok, &F.lim, &s, &err));
    return s;
}

td_shard *next_shard(td_source *s, bool tokenise) {
    td_error err;
    td_shard *shard = NULL;
    OK(td_source_next(s, tokenise, &shard, &err));
    return shard;
}

void estimate_near(const char *what, int64_t got, double expected, double tolerance) {
    cr_assert(got > expected * (1 - tolerance) && got < expected * (1 + tolerance),
              "%s: estimated %lld, true %.0f", what, (long long)got, expected);
}

void put_gzip(td_strbuf *out, const char *data, size_t n) {
    z_stream z = {0};
    cr_assert_eq(deflateInit2(&z, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
    size_t cap = deflateBound(&z, n);
    char *buf = malloc(cap);
    z.next_in = (Bytef *)(uintptr_t)data;
    z.avail_in = (uInt)n;
    z.next_out = (Bytef *)buf;
    z.avail_out = (uInt)cap;
    cr_assert_eq(deflate(&z, Z_FINISH), Z_STREAM_END);
    td_strbuf_append(out, buf, cap - z.avail_out);
    deflateEnd(&z);
    free(buf);
}
