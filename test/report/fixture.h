/* fixture.h - records that are damaged: byte by byte, or in what they say. For Criterion suites. */
#ifndef TDGEN_TEST_REPORT_FIXTURE_H
#define TDGEN_TEST_REPORT_FIXTURE_H

#include "test/record/fixture.h"

/* Flips one bit in every byte (another bit from byte to byte) of a file, one at a time: verify says
 * each time that something is wrong, and names the file. `mode` is for messages. */
void flip_every_byte(const char *dir, const char *name, const char *mode);

/* Shard 0 of a fixture's output, to be changed behind the hashes. */
typedef struct forged {
    char *data;
    size_t n;
    td_layout layout;
    size_t header; /* bytes before the data part */
} forged;

/* The shard as it stands; data is freed by the caller. */
forged forged_read(const td_fixture *f);
/* A tensor's first byte in data. */
void *forged_tensor(forged *s, td_tensor_id id);
/* Makes all hashes those of the content, and writes the shard. */
void forged_write(forged *s, const td_fixture *f);

#endif
