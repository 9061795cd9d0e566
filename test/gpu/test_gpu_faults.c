/* What happens when a call of the CUDA runtime fails, a kernel faults or memory runs out: at every
 * point of a small run (two devices, a session of two stages over experts, copies over the host)
 * the error comes back with a device's name, and nothing crashes, hangs, leaks or gives wrong
 * numbers.
 *
 * Only on the CUDA-on-CPU layer (test/pretend), which fails the calls that it is told to. Each run
 * is a child process, since a lost device is lost for the process; the parent never touches CUDA.
 *
 *   test_gpu_faults [STRIDE]   every STRIDE-th call and launch: 1 is all of them, and takes
 * minutes; without it a prime that meets every kind of call in tens of seconds
 */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "pretend.h"
#include "device/device.h"
#include "model/model.h"
#include "base/hash.h"
#include "base/memory.h"

#define MODEL_DIR TD_SOURCE_DIR "/test/fixtures/families/qwen3_moe"

enum { TOKENS = 23, SEQS = 3, TOP_K = 4, BATCHES = 3, LIMIT_S = 60 };

/* What a child tells its parent. */
typedef struct outcome {
    td_status status;
    uint64_t hash;  /* of what was captured */
    uint64_t calls; /* runtime calls made */
    uint64_t live;  /* device allocations still held at the end */
    bool timed_out; /* the wait gave up: nothing was torn down */
    char text[512]; /* of the error */
    /* Added by the parent. */
    bool reported;    /* the child lived to tell */
    int how_it_ended; /* as waitpid says */
    char
        failed_call[64]; /* the planned failure, as the layer announced it; "" when it never came */
} outcome;

/* --- the run ---------------------------------------------------------------------------------- */

static td_status compute(td_session *session, const td_model_config *cfg, double timeout_s,
                         uint64_t *hash, td_error *err) {
    int32_t ids[TOKENS], rows[TOKENS], targets[TOKENS];
    const int32_t offsets[SEQS + 1] = {0, 1, 9, TOKENS};
    const td_batch b = {TOKENS, SEQS, TOKENS, ids, offsets, rows, targets, NULL, NULL};
    td_captured c;
    td_status st = TD_OK;
    for (int32_t n = 0; n < BATCHES && !st; n++) {
        for (int32_t i = 0; i < TOKENS; i++) {
            ids[i] = (i * 7 + n * 13) % cfg->n_vocab;
            targets[i] = (i * 5) % cfg->n_vocab;
            rows[i] = i;
        }
        if ((st = td_session_submit(session, n % 3, &b, err)) != TD_OK ||
            (st = td_session_wait(session, n % 3, timeout_s, &c, err)) != TD_OK)
            break;
        for (int32_t i = 0; i < c.n_rows; i++)
            if (!isfinite(c.logsumexp[i]))
                return td_error_set(err, TD_E_INTERNAL, "row %d is not finite, in silence", i);
        *hash = *hash * 31 + td_hash64(c.topk_logprobs, sizeof(float) * TOP_K * TOKENS);
        *hash = *hash * 31 + td_hash64(c.logsumexp, sizeof(float) * TOKENS);
    }
    return st;
}

static td_status run(double timeout_s, outcome *o, td_error *err) {
    td_device_info *info = NULL;
    td_device *dev[2] = {NULL, NULL};
    td_weights *w = NULL;
    td_session *session = NULL;
    td_model_config cfg;
    td_stage stages[2];
    int32_t n = 0;
    uint64_t got;
    td_status st = td_device_enumerate("cuda", 0, &info, &n, err);
    if (!st && n != 2) /* a failed count is no machine without devices */
        st = td_error_set(err, TD_E_INTERNAL, "%d cuda devices were found, not 2", n);
    for (int32_t i = 0; !st && i < 2; i++)
        st = td_device_open(&info[i], &dev[i], err);
    if (!st)
        st = dev[0]->ops->reserve(dev[0], 64 << 20, &got, err);
    if (!st)
        st = td_model_config_load(MODEL_DIR, &cfg, err);
    if (!st)
        st = td_weights_open(MODEL_DIR, &cfg, &w, err);
    for (int32_t i = 0; !st && i < 2; i++)
        stages[i] =
            (td_stage){dev[i], (cfg.n_layers + 2) * i / 2, (cfg.n_layers + 2) * (i + 1) / 2};
    if (!st)
        st = td_weights_load(w, stages, 2, TD_F32, NULL, err);
    const td_session_limits lim = {.max_tokens = TOKENS,
                                   .max_seqs = SEQS,
                                   .max_rows = TOKENS,
                                   .n_slots = 3,
                                   .capture_rows = 16,
                                   .narrow_attention = true};
    const td_capture_spec spec = {.top_k = TOP_K, .n_vocab = cfg.n_vocab, .n_valid = cfg.n_vocab};
    if (!st)
        st = td_session_create(w, stages, 2, &lim, &spec, &session, err);
    if (!st)
        st = compute(session, &cfg, timeout_s, &o->hash, err);
    if (st && strstr(err->text, "no answer within")) {
        o->timed_out = true; /* what hangs cannot be waited for: the program would leave here */
        return st;
    }
    td_session_destroy(session);
    td_weights_close(w);
    for (int32_t i = 0; i < 2; i++)
        td_device_close(dev[i]);
    free(info);
    return st;
}

/* --- children --------------------------------------------------------------------------------- */

static void child(const char *variable, const char *value, double timeout_s, int out) {
    outcome o = {0};
    td_error err = {0};
    if (variable)
        setenv(variable, value, 1);
    alarm(LIMIT_S);
    o.status = run(timeout_s, &o, &err);
    o.calls = pretend_calls();
    o.live = pretend_live_allocations(NULL);
    snprintf(o.text, sizeof(o.text), "%s", o.status ? err.text : "");
    if (write(out, &o, sizeof(o)) != sizeof(o))
        _exit(3);
    /* A process that has lost its devices cannot ask CUDA to free anything: it leaves by exec. */
    if (o.timed_out || o.status == TD_E_DEVICE_LOST)
        _exit(0);
    exit(0); /* through LeakSanitizer, where there is one */
}

/* "pretend: NAME fails as planned" in what the child wrote to stderr. */
static void find_failed_call(const char *log, char out[64]) {
    const char *end = strstr(log, " fails as planned"), *p = end;
    if (!end)
        return;
    while (p > log && p[-1] != ' ' && p[-1] != '\n')
        p--;
    snprintf(out, 64, "%.*s", (int)TD_MIN(end - p, 63), p);
}

static outcome in_child(const char *variable, const char *value, double timeout_s, char *log,
                        size_t log_bytes) {
    outcome o = {0};
    int result[2], errors[2];
    if (pipe(result) || pipe(errors)) {
        perror("pipe");
        exit(1);
    }
    fflush(NULL);
    const pid_t pid = fork();
    if (pid < 0) {
        perror("fork");
        exit(1);
    }
    if (pid == 0) {
        dup2(errors[1], 2);
        close(result[0]), close(errors[0]), close(errors[1]);
        child(variable, value, timeout_s, result[1]);
    }
    close(result[1]), close(errors[1]);
    size_t n_log = 0, n_result = 0;
    struct pollfd fds[2] = {{result[0], POLLIN, 0}, {errors[0], POLLIN, 0}};
    char ignored[4096];
    while (fds[0].fd >= 0 || fds[1].fd >= 0) {
        if (poll(fds, 2, -1) < 0 && errno != EINTR)
            break;
        for (int i = 0; i < 2; i++) {
            if (fds[i].fd < 0 || !fds[i].revents)
                continue;
            const size_t space = i ? log_bytes - 1 - n_log : sizeof(o) - n_result;
            char *to = !space ? ignored : i ? log + n_log : (char *)&o + n_result;
            const ssize_t n = read(fds[i].fd, to, space ? space : sizeof(ignored));
            if (n <= 0)
                fds[i].fd = -1;
            else if (space)
                *(i ? &n_log : &n_result) += (size_t)n;
        }
    }
    log[n_log] = 0;
    close(result[0]), close(errors[0]);
    o.reported = n_result == sizeof(o);
    while (waitpid(pid, &o.how_it_ended, 0) < 0 && errno == EINTR)
        ;
    find_failed_call(log, o.failed_call);
    return o;
}

/* --- judgement -------------------------------------------------------------------------------- */

static int n_passed, n_failed;

static void verdict(const outcome *o, const char *value, const char *log, const char *why) {
    if (!why) {
        n_passed++;
        return;
    }
    n_failed++;
    if (n_failed <= 20) {
        printf("FAILED: %s (%s): %s\n    status %d, \"%s\", %llu allocations held\n", value,
               o->failed_call[0] ? o->failed_call : "no call failed", why, (int)o->status, o->text,
               (unsigned long long)o->live);
        printf("%.2000s\n", log);
        fflush(stdout);
    }
}

/* NULL when the child ended as it should. `want` TD_OK: any device error will do. */
static const char *judge(const outcome *o, const outcome *good, td_status want, bool may_pass) {
    static char text[200];
    if (WIFSIGNALED(o->how_it_ended)) {
        snprintf(text, sizeof(text), "%s",
                 WTERMSIG(o->how_it_ended) == SIGALRM ? "it hung"
                                                      : strsignal(WTERMSIG(o->how_it_ended)));
        return text;
    }
    if (!o->reported)
        return "it ended without a word";
    /* A release that was made to fail keeps what it held, and so does a device that could not be
     * made current for it; a lost process keeps everything. */
    const bool release = strstr(o->failed_call, "Free") || strstr(o->failed_call, "Destroy") ||
                         (!o->status && !strcmp(o->failed_call, "cudaSetDevice"));
    if (WEXITSTATUS(o->how_it_ended) != 0 && !release)
        return "it ended with another exit code (a sanitizer's?)";
    if (o->status == TD_OK) {
        if (!may_pass)
            return "it went through";
        if (o->hash != good->hash)
            return "it went through with other numbers";
    } else {
        if (o->status != TD_E_DEVICE && o->status != TD_E_DEVICE_OOM &&
            o->status != TD_E_DEVICE_LOST)
            return "this is not the status of a device's failure";
        if (want && o->status != want)
            return "another status was expected";
        if (!strstr(o->text, "cuda"))
            return "the text names no device";
    }
    if (o->status != TD_E_DEVICE_LOST && !o->timed_out && !release && o->live > 0)
        return "device memory was not given back";
    return NULL;
}

/* Calls whose failure changed nothing, by name. */
static struct {
    char name[64];
    int n;
} tolerated[64];
static int n_tolerated;

static void tolerate(const char *name) {
    for (int i = 0; i < n_tolerated; i++)
        if (!strcmp(tolerated[i].name, name)) {
            tolerated[i].n++;
            return;
        }
    if (n_tolerated < (int)TD_ARRAY_LEN(tolerated)) {
        snprintf(tolerated[n_tolerated].name, 64, "%s", name[0] ? name : "(none)");
        tolerated[n_tolerated++].n = 1;
    }
}

int main(int argc, char **argv) {
    static char log[1 << 16];
    const long stride = argc > 1 ? strtol(argv[1], NULL, 10) : 13;
    char value[80];
    if (stride < 1) {
        fprintf(stderr, "usage: test_gpu_faults [STRIDE]\n");
        return 2;
    }
    setenv("TDGEN_PRETEND_GPUS", "Pretend A100:8.0:4:1*2", 1);
    setenv("TDGEN_PRETEND_NO_PEER", "1", 1); /* copies over the host make more calls */
    const outcome good = in_child(NULL, NULL, 0, log, sizeof(log));
    const char *why = judge(&good, &good, TD_OK, true);
    verdict(&good, "no failure", log, why);
    if (why || good.status) {
        printf("test_gpu_faults: %d passed, %d failed\n", n_passed, n_failed + !why);
        return 1;
    }

    /* Every call. */
    for (uint64_t at = 1; at <= good.calls; at += (uint64_t)stride) {
        snprintf(value, sizeof(value), "any %llu", (unsigned long long)at);
        const outcome o = in_child("TDGEN_PRETEND_FAIL", value, 0, log, sizeof(log));
        why = judge(&o, &good, TD_OK, true);
        /* The number of calls differs a little from run to run: threads of the loader ask whether
         * something is done. */
        if (!why && !o.failed_call[0] && o.calls >= at)
            why = "the planned failure never came";
        if (o.status == TD_OK)
            tolerate(o.failed_call);
        verdict(&o, value, log, why);
    }
    printf("%llu calls. Failures that did no harm to the results:", (unsigned long long)good.calls);
    for (int i = 0; i < n_tolerated; i++)
        printf(" %s %d%s", tolerated[i].name, tolerated[i].n, i + 1 < n_tolerated ? "," : "");
    printf("\n");

    /* Every launch of a kernel on the second device, some on the first; then memory. */
    static const char *const kinds[] = {"illegal_address", "launch_failure", "ecc"};
    uint64_t at = 1;
    for (bool met = true; met; at += (uint64_t)stride) {
        snprintf(value, sizeof(value), "%d kernel * %llu %s", at % 3 ? 1 : 0,
                 (unsigned long long)at, kinds[at % 3]);
        const outcome o = in_child("TDGEN_PRETEND_FAULT", value, 0, log, sizeof(log));
        met = o.status != TD_OK || at < 5;
        why = judge(&o, &good, TD_E_DEVICE_LOST, !met);
        verdict(&o, value, log, why);
        if (at > 10000) {
            printf("FAILED: no end of launches\n");
            n_failed++;
            break;
        }
    }
    printf("%llu launches\n", (unsigned long long)at - 1);
    for (int i = 0; i < 2; i++) {
        snprintf(value, sizeof(value), "%d kernel attention 1 hang", i);
        const outcome o = in_child("TDGEN_PRETEND_FAULT", value, 1, log, sizeof(log));
        why = judge(&o, &good, TD_E_DEVICE, false);
        verdict(&o, value, log, why ? why : o.timed_out ? NULL : "the wait did not give up");
    }
    for (int i = 0; i < 2; i++)
        for (size_t bytes = 0, met = 1; met; bytes = bytes * 2 + 4096) {
            snprintf(value, sizeof(value), "%d oom_after %zu", i, bytes);
            const outcome o = in_child("TDGEN_PRETEND_FAULT", value, 0, log, sizeof(log));
            met = o.status != TD_OK;
            verdict(&o, value, log, judge(&o, &good, TD_E_DEVICE_OOM, bytes > 1 << 20));
            if (bytes > (size_t)1 << 31) {
                printf("FAILED: no memory is enough\n");
                n_failed++;
                break;
            }
        }
    printf("test_gpu_faults: %d passed, %d failed\n", n_passed, n_failed);
    return n_failed ? 1 : 0;
}
