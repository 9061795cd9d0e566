/* One tokenizer, many threads, each with a scratch of its own: every thread must get the ids that a
 * single one gets. Meant for ThreadSanitizer. usage: stress_tokenizer [THREADS] */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "test/common.h"
#include "tokenizer/tokenizer.h"
#include "base/hash.h"
#include "base/memory.h"
#include "base/strbuf.h"

static const char json[] =
    "{\"added_tokens\":[{\"id\":8,\"content\":\"<e>\",\"special\":true,\"single_word\":true}],"
    "\"normalizer\":{\"type\":\"NFC\"},\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":["
    "{"
    "\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\p{L}+|\\\\s+\"},\"behavior\":\"Isolated\"},{"
    "\"type\":"
    "\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}]},\"decoder\":{\"type\":"
    "\"ByteLevel\"},"
    "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"\\u0120\":2,\"\\u00c3\":3,"
    "\"\\u00a9\":4,\"ab\":5,"
    "\"aab\":6,\"abab\":7},\"merges\":[\"a b\",\"a ab\",\"ab ab\"]}}";

enum { N_TEXTS = 300, MAX_THREADS = 64 };

typedef struct job {
    const td_tokenizer *tok;
    uint64_t hash; /* of all ids and all decoded texts */
    bool failed;
} job;

static size_t make_text(unsigned k, char *buf, size_t size) {
    static const char *const parts[] = {"a", "ab", " ", "e\xcc\x81", "<e>", "aabab", "\xc3\xa9"};
    size_t n = 0;
    for (unsigned x = k * 2654435761u + 1, i = 0; i < k % 70; i++) {
        x = x * 1664525u + 1013904223u;
        const char *p = parts[(x >> 16) % TD_ARRAY_LEN(parts)];
        if (n + strlen(p) < size) {
            memcpy(buf + n, p, strlen(p));
            n += strlen(p);
        }
    }
    return n;
}

static void *work(void *arg) {
    job *j = arg;
    td_tok_scratch *s = NULL;
    td_ids ids = {0};
    td_strbuf text = {0};
    j->failed = td_tok_scratch_create(j->tok, &s, NULL) != TD_OK;
    for (unsigned k = 0; k < N_TEXTS && !j->failed; k++) {
        char buf[512];
        size_t n = make_text(k, buf, sizeof buf), before = ids.n;
        j->failed = td_tokenizer_encode(j->tok, s, buf, n, true, &ids, NULL) != TD_OK ||
                    td_tokenizer_decode(j->tok, ids.ids + before, ids.n - before, false, &text,
                                        NULL) != TD_OK;
    }
    if (!j->failed)
        j->hash = td_hash64(ids.ids, ids.n * sizeof *ids.ids) ^ td_hash64(text.data, text.len);
    td_ids_free(&ids);
    td_strbuf_free(&text);
    td_tok_scratch_free(s);
    return NULL;
}

int main(int argc, char **argv) {
    int n = argc > 1 ? atoi(argv[1]) : 4, n_bad = 0;
    char *dir = test_temp_dir();
    td_tokenizer *tok = NULL;
    td_error err = {0};
    if (n < 1 || n > MAX_THREADS)
        return 2;
    test_write_file(dir, "tokenizer.json", json, sizeof json - 1);
    td_status rc = td_tokenizer_load(dir, &tok, &err);
    if (rc != TD_OK) {
        fprintf(stderr, "stress_tokenizer: %s\n", err.text);
        return 1;
    }
    job alone = {.tok = tok}, jobs[MAX_THREADS];
    pthread_t threads[MAX_THREADS];
    work(&alone);
    int n_started = 0;
    for (; n_started < n; n_started++) {
        jobs[n_started] = (job){.tok = tok};
        if (pthread_create(&threads[n_started], NULL, work, &jobs[n_started]) != 0)
            break;
    }
    for (int i = 0; i < n_started; i++) {
        pthread_join(threads[i], NULL);
        n_bad += jobs[i].failed || jobs[i].hash != alone.hash;
    }
    td_tokenizer_free(tok);
    printf("stress_tokenizer: %d threads, %d differ\n", n_started, n_bad);
    return alone.failed || n_bad || n_started < n;
}
