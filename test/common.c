/* common.c - see common.h. */
#include "common.h"

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/file.h"
#include "base/memory.h"

void test_abort(const char *file, int line, const char *what) {
    fprintf(stderr, "%s:%d: fails: %s\n", file, line, what);
    abort();
}

static int remove_one(const char *path, const struct stat *sb, int flag, struct FTW *f) {
    (void)sb, (void)flag, (void)f;
    return remove(path);
}

void test_remove_tree(const char *dir) {
    nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static char **temp_dirs;
static size_t n_temp_dirs;
static pid_t temp_dirs_of; /* a child that exits must not remove its parent's */

static void remove_temp_dirs(void) {
    for (size_t i = 0; i < n_temp_dirs; i++) {
        if (temp_dirs_of == getpid())
            test_remove_tree(temp_dirs[i]);
        free(temp_dirs[i]);
    }
    free(temp_dirs);
    temp_dirs = NULL;
    n_temp_dirs = 0;
}

char *test_temp_dir(void) {
    char *dir = td_strdup("/tmp/tdgen-test-XXXXXX");
    MUST(dir && mkdtemp(dir));
    if (!temp_dirs)
        MUST(atexit(remove_temp_dirs) == 0);
    if (temp_dirs_of != getpid()) /* names of the parent's, not ours to remove */
        n_temp_dirs = 0;
    temp_dirs_of = getpid();
    temp_dirs = td_realloc_array(temp_dirs, n_temp_dirs + 1, sizeof *temp_dirs);
    MUST(temp_dirs);
    temp_dirs[n_temp_dirs++] = dir;
    return dir;
}

void test_write_file(const char *dir, const char *name, const void *data, size_t n) {
    char *path = td_asprintf("%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    MUST(f);
    MUST(n == 0 || fwrite(data, 1, n, f) == n);
    MUST(fclose(f) == 0);
    free(path);
}

char *test_read_file(const char *dir, const char *name, size_t *n) {
    char *path = td_asprintf("%s/%s", dir, name), *data = NULL;
    td_error err;
    if (td_file_read(path, (size_t)1 << 30, TD_E_OUTPUT, &data, n, &err) != TD_OK)
        data = NULL;
    free(path);
    return data;
}

bool test_same_file(const char *a, const char *b, const char *name) {
    size_t n = 0, m = 0;
    char *x = test_read_file(a, name, &n), *y = test_read_file(b, name, &m);
    bool same = x && y && n == m && memcmp(x, y, n) == 0;
    free(x);
    free(y);
    return same;
}

uint64_t test_random(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

uint64_t test_xorshift(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}
