/* Seeded mutations of the shipped inventories: each is either read into sound devices or refused
 * with a message. ARGS: [iterations] [seed]. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "mutate.h"
#include "test/common.h"
#include "plan/plan.h"
#include "base/file.h"
#include "base/memory.h"

enum { MAX_TEXT = 4096 };

static uint64_t rng_state;

static size_t rnd(size_t n) {
    return (size_t)(test_random(&rng_state) >> 32) % n;
}

/* A few edits in place; returns the new length. */
static size_t mutate_ini(char *text, size_t n) {
    static const char *const words[] = {
        "[",   "]",    "\n", " = ", "=", "[x]\n", "count = 2\n", "\t",  "1e99",     "-1",
        "nan", "0x10", ";",  "#",   "9", "\r",    "\xff\n",      "\n ", "[a100]\n", ":"};
    for (size_t edits = 1 + rnd(6); edits; edits--) {
        size_t at = rnd(n + 1), len;
        switch (rnd(4)) {
        case 0: /* flip */
            if (at < n)
                text[at] = (char)rnd(256);
            break;
        case 1: /* remove */
            len = rnd(40);
            len = TD_MIN(len, n - at);
            n = cut_out(text, n, at, len);
            break;
        case 2: { /* insert */
            const char *w = words[rnd(TD_ARRAY_LEN(words))];
            n = put_in(text, n, MAX_TEXT, at, w, strlen(w));
            break;
        }
        default: /* repeat a piece */
            len = rnd(300);
            len = TD_MIN(len, n - at);
            n = put_in(text, n, MAX_TEXT, at, NULL, len);
        }
    }
    return n;
}

static int check(const char *path, size_t *n_read) {
    td_inventory inv = {0};
    td_error err = {0};
    td_status st = td_inventory_load(path, &inv, &err);
    if (st != TD_OK) {
        if (st == TD_E_CONFIG && err.code == st && err.text[0] && !inv.devices)
            return 0;
        fprintf(stderr, "status %d with \"%s\"\n", st, err.text);
        return 1;
    }
    ++*n_read;
    int bad = inv.n_devices < 1;
    for (int32_t i = 0; i < inv.n_devices; i++) {
        const td_plan_device *d = &inv.devices[i];
        bad |= d->index != i || !d->memory_bytes || !d->type[0] || !isfinite(d->tflops) ||
               d->tflops < 0 || d->mem_gbs < 0 || d->link_gbs < 0 || !d->has_f32;
    }
    td_inventory_free(&inv);
    if (bad)
        fputs("read into devices that cannot be\n", stderr);
    return bad;
}

int main(int argc, char **argv) {
    static const char *const seeds[] = {"8xa100-80gb.ini", "4xa100-4xv100.ini"};
    long iterations = argc > 1 ? strtol(argv[1], NULL, 10) : 3000;
    rng_state = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    char *seed[2], path[64], name[512];
    size_t size[2], n_read = 0;
    td_error err;
    for (int i = 0; i < 2; i++) {
        snprintf(name, sizeof name, "%s/conf/inventory/%s", TD_SOURCE_DIR, seeds[i]);
        if (td_file_read(name, MAX_TEXT, TD_E_CONFIG, &seed[i], &size[i], &err) != TD_OK) {
            fprintf(stderr, "%s\n", err.text);
            return 1;
        }
    }
    int fd = memfd_create("inventory", 0);
    if (fd < 0)
        return 1;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int bad = 0;
    for (long i = 0; i < iterations && !bad; i++) {
        char text[MAX_TEXT];
        uint64_t state = rng_state;
        int which = (int)rnd(2);
        memcpy(text, seed[which], size[which]);
        size_t n = mutate_ini(text, size[which]);
        bad = ftruncate(fd, 0) || pwrite(fd, text, n, 0) != (ssize_t)n || check(path, &n_read);
        if (bad)
            fprintf(stderr, "iteration %ld, state %llu:\n%.*s\n", i, (unsigned long long)state,
                    (int)n, text);
    }
    close(fd);
    free(seed[0]);
    free(seed[1]);
    /* Mutations that always fail, or never, test nothing. */
    if (!bad && iterations >= 1000 && (n_read == 0 || n_read == (size_t)iterations)) {
        fprintf(stderr, "%zu of %ld files were read\n", n_read, iterations);
        bad = 1;
    }
    printf("%ld mutated inventories, %zu read\n", iterations, n_read);
    return bad;
}
