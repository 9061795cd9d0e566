/* Verify finds any flipped bit of any byte of the record, in the modes that test_verify.c does not
 * go through. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "test/record/fixture.h"
#include "base/memory.h"

static void must(td_status rc, const td_error *err) {
    cr_assert_eq(rc, TD_OK, "%s", err->text);
}

static td_status verify_text(const char *dir, char **text) {
    size_t n;
    td_error err = {0};
    FILE *out = open_memstream(text, &n);
    td_status rc = td_verify(dir, out, false, &err);
    if (rc != TD_OK)
        fprintf(out, "error: %s\n", err.text);
    fclose(out);
    return rc;
}

static const td_fixture_mode *mode_named(const char *name) {
    for (int i = 0; i < TD_FIXTURE_MODES; i++)
        if (strcmp(td_fixture_modes[i].name, name) == 0)
            return &td_fixture_modes[i];
    cr_assert_fail("no mode %s", name);
    return NULL;
}

/* One bit in every byte of the file (another bit from byte to byte), one at a time. */
static void flip_every_byte(const char *dir, const char *name, const char *mode) {
    size_t n = 0;
    char *data = td_fixture_read(dir, name, &n), *path = td_asprintf("%s/%s", dir, name);
    cr_assert(data && n);
    int fd = open(path, O_RDWR);
    for (size_t i = 0; i < n; i++) {
        char c = (char)(data[i] ^ (1 << (i % 8))), *text = NULL;
        cr_assert_eq(pwrite(fd, &c, 1, (off_t)i), 1);
        td_status rc = verify_text(dir, &text);
        cr_assert_eq(rc, TD_E_VERIFY, "%s: bit %zu of byte %zu of %s went unnoticed (%d): %s", mode,
                     i % 8, i, name, rc, text);
        cr_assert(strstr(text, name), "%s: byte %zu of %s: %s", mode, i, name, text);
        free(text);
        cr_assert_eq(pwrite(fd, &data[i], 1, (off_t)i), 1);
    }
    close(fd);
    free(path);
    free(data);
}

/* The manifest and the index differ little between modes: `all` in one of them. */
static void flip_run(const char *mode, bool all) {
    const td_fixture_mode *m = mode_named(mode);
    td_fixture f;
    td_error err;
    char *text;
    td_fixture_init(&f);
    td_fixture_set_mode(&f, m);
    f.cfg.data.max_length = 16;
    f.cfg.output.shard_samples = 3;
    must(td_fixture_run(&f, 1, NULL, &err), &err);
    flip_every_byte(f.cfg.output.dir,
                    m->zstd ? "shard-000000.safetensors.zst" : "shard-000000.safetensors", mode);
    if (all)
        flip_every_byte(f.cfg.output.dir, "manifest.json", mode);
    if (all || m->zstd)
        flip_every_byte(f.cfg.output.dir, "shards.jsonl", mode);
    cr_assert_eq(verify_text(f.cfg.output.dir, &text), TD_OK, "%s", text);
    free(text);
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
