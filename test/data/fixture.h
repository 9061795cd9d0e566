/* fixture.h - what the data tests share: a temporary folder, files, a tokenizer with one id a byte, a config.
 */
#ifndef TDGEN_TEST_DATA_FIXTURE_H
#define TDGEN_TEST_DATA_FIXTURE_H

#include <stddef.h>
#include <stdint.h>
#include "config/config.h"
#include "data/data.h"
#include "test/common.h"
#include "tokenizer/tokenizer.h"

/* Ids 0..255 are the bytes; the template puts BOS in front. */
enum { BYTE_BOS = 256, BYTE_EOS = 257, BYTE_VOCAB = 258 };

typedef struct data_fixture {
    char *dir;
    td_tokenizer *tok;
    td_config cfg; /* path set by fixture_file; strings not owned */
    td_source_limits lim;
    char path[128];
} data_fixture;

/* Aborts on failure, as all of these do: they are not what is tested. */
void fixture_open(data_fixture *f);
void fixture_close(data_fixture *f); /* removes the folder */
/* Writes DIR/name and makes it the dataset. */
void fixture_file(data_fixture *f, const char *name, const void *data, size_t n);
void fixture_text(data_fixture *f, const char *name, const char *text);

typedef struct {
    const char *name, *dtype;
    const void *data;
    size_t elem_bytes, n;
} fixture_tensor;
/* Writes a safetensors file of one-dimensional tensors and makes it the dataset. */
void fixture_tensors(data_fixture *f, const char *name, const fixture_tensor *t, size_t n);

#endif
