/* Verify finds any flipped bit of any byte of the record, in the modes that test_verify.c does not
 * go through. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "test/common.h"
#include "fixture.h"
#include "base/memory.h"

/* The manifest and the index differ little between modes: `all` in one of them. */
static void flip_run(const char *mode, bool all) {
    const td_fixture_mode *m = td_fixture_mode_named(mode);
    td_fixture f;
    td_error err;
    td_fixture_init(&f);
    td_fixture_set_mode(&f, m);
    f.cfg.data.max_length = 16;
    f.cfg.output.shard_samples = 3;
    OK(td_fixture_run(&f, 1, NULL, &err));
    flip_every_byte(f.cfg.output.dir,
                    m->zstd ? "shard-000000.safetensors.zst" : "shard-000000.safetensors", mode);
    if (all)
        flip_every_byte(f.cfg.output.dir, "manifest.json", mode);
    if (all || m->zstd)
        flip_every_byte(f.cfg.output.dir, "shards.jsonl", mode);
    VERIFY_OK(&f, mode);
    td_fixture_free(&f);
}

Test(flips, topp) {
    flip_run("topp", true);
}
Test(flips, draws_packed_and_quantised) {
    flip_run("sample from p^0.5, packed, q8", false);
}
Test(flips, both_compressed) {
    flip_run("topk+sample packed, q8, zstd", false);
}
Test(flips, logits) {
    flip_run("full bf16", false);
}
Test(flips, states) {
    flip_run("hidden f32", false);
}
