/* fixture.c - see fixture.h. */
#include "fixture.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "test/common.h"
#include "record/identity.h"
#include "record/shard_file.h"
#include "base/memory.h"

static const char shard_name[] = "shard-000000.safetensors";

void flip_every_byte(const char *dir, const char *name, const char *mode) {
    size_t n = 0;
    char *data = test_read_file(dir, name, &n), *path = td_asprintf("%s/%s", dir, name);
    cr_assert(data && n);
    int fd = open(path, O_RDWR);
    for (size_t i = 0; i < n; i++) {
        char c = (char)(data[i] ^ (1 << (i % 8))), *text = NULL;
        cr_assert_eq(pwrite(fd, &c, 1, (off_t)i), 1);
        td_status rc = td_fixture_verify(dir, &text);
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

forged forged_read(const td_fixture *f) {
    td_error err;
    td_manifest manifest;
    td_shard_file *file;
    forged s = {0};
    OK(td_manifest_load(f->cfg.output.dir, TD_E_VERIFY, &manifest, &err));
    char *path = td_shard_path(f->cfg.output.dir, 0);
    OK(td_shard_file_open(path, &manifest.spec, TD_E_VERIFY, NULL, &file, &err));
    s.layout = file->layout;
    s.header = file->header_size_bytes;
    td_shard_file_close(file);
    td_manifest_free(&manifest);
    free(path);
    s.data = test_read_file(f->cfg.output.dir, shard_name, &s.n);
    cr_assert(s.data);
    return s;
}

void *forged_tensor(forged *s, td_tensor_id id) {
    cr_assert(s->layout.tensor[id].present);
    return s->data + s->header + s->layout.tensor[id].begin;
}

void forged_write(forged *s, const td_fixture *f) {
    cr_assert(td_fixture_seal(s->data, s->n, &s->layout));
    test_write_file(f->cfg.output.dir, shard_name, s->data, s->n);
}
