/* Opens mutated safetensors files; every byte of what is accepted must be readable.
 * Usage: fuzz_safetensors [iterations [seed]]. Run it under the address sanitizer. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "mutate.h"
#include "base/safetensors.h"

int main(int argc, char **argv) {
    static const char header[] =
        "{\"__metadata__\":{\"format\":\"pt\"},"
        "\"w\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},"
        "\"b\":{\"dtype\":\"BF16\",\"shape\":[4],\"data_offsets\":[24,32]},"
        "\"s\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[32,33]}}";
    long n_iterations = argc > 1 ? atol(argv[1]) : 5000;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
    unsigned char base[512] = {0}, buf[1024];
    size_t h = sizeof header - 1, n = 8 + h + 33;
    base[0] = (unsigned char)h; /* the header is shorter than 256 bytes */
    memcpy(base + 8, header, h);
    _Static_assert(sizeof header - 1 < 256, "one length byte");

    /* In memory: thousands of files on a disk take minutes. */
    char path[40];
    int fd = memfd_create("fuzz.safetensors", 0);
    if (fd < 0) {
        perror("memfd_create");
        return 1;
    }
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    long n_accepted = 0;
    uint64_t sum = 0;
    int rc = 0;
    for (long i = 0; i < n_iterations && rc == 0; i++) {
        memcpy(buf, base, n);
        /* The first input is the valid one; half of the others keep the length prefix right. */
        size_t m = i == 0 ? n : mutate(buf, n, sizeof buf, &seed);
        if (i && m > 8 && mutate_rand(&seed) % 2) {
            size_t len = mutate_rand(&seed) % 4 ? h + m - n : mutate_rand(&seed) % m;
            for (int k = 0; k < 8; k++)
                buf[k] = (unsigned char)(len >> (8 * k));
        }
        if (ftruncate(fd, 0) != 0 || pwrite(fd, buf, m, 0) != (ssize_t)m) {
            perror(path);
            rc = 1;
            break;
        }
        td_safetensors *st;
        td_error e = {0};
        if (td_safetensors_open(path, TD_E_MODEL, &st, &e) != TD_OK) {
            if (e.code != TD_E_MODEL || !e.text[0]) {
                fprintf(stderr, "iteration %ld: refused without a reason\n", i);
                rc = 1;
            }
            continue;
        }
        n_accepted++;
        for (size_t k = 0; k < td_safetensors_count(st); k++) {
            const td_st_tensor *t = td_safetensors_at(st, k);
            for (size_t j = 0; j < t->size_bytes; j++)
                sum += ((const unsigned char *)t->data)[j];
            if (td_safetensors_find(st, t->name) != t) {
                fprintf(stderr, "iteration %ld: tensor %s is not found by its name\n", i, t->name);
                rc = 1;
            }
        }
        td_safetensors_close(st);
    }
    close(fd);
    if (n_accepted == 0) {
        fprintf(stderr, "not even the valid file was accepted\n");
        rc = 1;
    }
    printf("%ld inputs, %ld accepted (checksum %llu)\n", n_iterations, n_accepted,
           (unsigned long long)sum);
    return rc;
}
