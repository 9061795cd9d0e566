/* The capture kernel, launched directly, against the definitions of td_capture_args in long double.
 *
 * Runs over the pretend layer, where tanhf is the host's: so the reference can finish the logits to
 * the same bits, and ids, order and ranks are compared exactly in every case. The one freedom is
 * the last bit of fl32(log S), which is taken from the first log-prob after it was checked. Every
 * row is also captured alone, at another alignment, and must give the same bits.
 */
#include <cfloat>
#include <climits>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <algorithm>
#include <random>
#include <string>
#include <vector>
#include <cuda_runtime_api.h>
#include "gpu/kernels.h"
#include "pretend.h"

static int n_failures, n_rows_checked;
static uint64_t n_captures;

#define CHECK(condition, ...)                                                                      \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            if (n_failures++ < 30) {                                                               \
                fprintf(stderr, "FAILED %s: ", #condition);                                        \
                fprintf(stderr, __VA_ARGS__);                                                      \
                fprintf(stderr, "\n");                                                             \
            }                                                                                      \
        }                                                                                          \
    } while (0)
#define MUST_CUDA(call)                                                                            \
    do {                                                                                           \
        cudaError_t rc_ = (call);                                                                  \
        if (rc_ != cudaSuccess) {                                                                  \
            fprintf(stderr, "%s: error %d\n", #call, (int)rc_);                                    \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

static const td_gpu_chip chip = {90, 132, 227 * 1024};

struct how {
    int k = 5, n_valid = 0; /* 0: all */
    float divisor = 1, softcap = 0;
    std::vector<float> temperatures;
};

struct outputs {
    std::vector<int32_t> ids, rank;
    std::vector<float> lps, lse, lse_t, tail, target_lp, entropy;
};

template <class T> struct device_array {
    T *data = nullptr, *base = nullptr;
    size_t n;
    /* shift: elements between the allocation's start and data */
    device_array(const std::vector<T> &from, size_t shift = 0) : n(from.size()) {
        MUST_CUDA(cudaMalloc((void **)&base, (n + shift + 1) * sizeof(T)));
        data = base + shift;
        if (n)
            MUST_CUDA(cudaMemcpy(data, from.data(), n * sizeof(T), cudaMemcpyHostToDevice));
    }
    device_array(const device_array &) = delete;
    device_array &operator=(const device_array &) = delete;
    ~device_array() {
        cudaFree(base);
    }
    std::vector<T> host() {
        std::vector<T> v(n);
        if (n)
            MUST_CUDA(cudaMemcpy(v.data(), data, n * sizeof(T), cudaMemcpyDeviceToHost));
        return v;
    }
};

static outputs capture(const std::vector<float> &x, const std::vector<int32_t> &targets, int v,
                       const how &h, size_t shift) {
    const size_t n = targets.size(), nt = h.temperatures.size();
    device_array<float> dx(x, shift), lps(std::vector<float>(n * h.k, -7)),
        lse(std::vector<float>(n, -7)), lse_t(std::vector<float>(n * nt, -7)),
        tail(std::vector<float>(n, -7)), target_lp(std::vector<float>(n, -7)),
        entropy(std::vector<float>(n, -7));
    device_array<int32_t> dt(targets), ids(std::vector<int32_t>(n * h.k, -7)),
        rank(std::vector<int32_t>(n, -7));
    td_capture_args a = {};
    a.logits = dx.data;
    a.targets = dt.data;
    a.n_rows = (int32_t)n, a.n_vocab = v, a.top_k = h.k, a.n_temperatures = (int32_t)nt;
    a.n_valid = h.n_valid ? h.n_valid : v;
    a.divisor = h.divisor, a.softcap = h.softcap;
    a.temperatures = h.temperatures.data();
    a.topk_ids = ids.data, a.topk_logprobs = lps.data;
    a.logsumexp = lse.data, a.logsumexp_t = nt ? lse_t.data : nullptr;
    a.tail_mass = tail.data, a.target_logprob = target_lp.data;
    a.target_rank = rank.data, a.entropy = entropy.data;
    device_array<char> scratch(std::vector<char>(td_gpu_capture_scratch_bytes(&a, &chip)));
    pretend_set_seed(n_captures++); /* another order of the threads each time */
    MUST_CUDA(td_gpu_capture(&a, &chip, scratch.data, nullptr));
    MUST_CUDA(cudaStreamSynchronize(nullptr));
    return {ids.host(),   rank.host(), lps.host(),       lse.host(),
            lse_t.host(), tail.host(), target_lp.host(), entropy.host()};
}

static float finish(float x, const how &h) {
    volatile float z = x / h.divisor, q;
    if (h.softcap > 0) {
        q = z / h.softcap;
        q = tanhf(q);
        z = h.softcap * q;
    }
    return x == INFINITY ? x : z;
}

static void close_to(double got, long double want, long double tolerance, const char *what,
                     const std::string &name, int row) {
    CHECK(std::isinf((float)want) ? got == (float)want
                                  : fabsl((long double)got - want) <= tolerance,
          "%s row %d: %s is %.9g, not %.9Lg", name.c_str(), row, what, got, want);
}

static void check_row(const outputs &o, const float *x, int target, int row, int v, const how &h,
                      const std::string &name) {
    const int k = h.k, n = h.n_valid ? h.n_valid : v, nt = (int)h.temperatures.size();
    const char *at = name.c_str();
    std::vector<float> z(n);
    float m = -INFINITY;
    bool bad = false;
    n_rows_checked++;
    for (int i = 0; i < n; i++) {
        z[i] = finish(x[i], h);
        bad |= std::isnan(z[i]) || z[i] == INFINITY;
        m = std::max(m, z[i]);
    }
    if (bad || m == -INFINITY) {
        CHECK(std::isnan(o.lse[row]), "%s row %d: a bad row gives %g", at, row, o.lse[row]);
        CHECK(o.tail[row] == 0 && o.entropy[row] == 0 && o.target_lp[row] == 0 && o.rank[row] == 0,
              "%s row %d", at, row);
        for (int i = 0; i < k; i++)
            CHECK(o.ids[(size_t)row * k + i] == 0 && o.lps[(size_t)row * k + i] == 0, "%s row %d",
                  at, row);
        for (int i = 0; i < nt; i++)
            CHECK(o.lse_t[(size_t)row * nt + i] == 0, "%s row %d", at, row);
        return;
    }
    long double rest = 0, w = 0, second = 0; /* S - 1, and its largest term */
    bool one = false;
    for (int i = 0; i < n; i++) {
        const long double d = (long double)z[i] - m;
        if (z[i] == m && !one)
            one = true;
        else if (z[i] > -INFINITY)
            rest += expl(d), w += expl(d) * d, second = std::max(second, expl(d));
    }
    const long double S = 1 + rest, log_s = log1pl(rest), share = rest / S;
    /* z - m has an error of half a unit in its last place, 6e-8 of itself; log is f64's. */
    const long double term = 2e-7L + 6e-8L * (second > 0 ? -logl(second) : 0);
    close_to(o.lse[row], m + log_s, 6e-8L * fabsl(m + log_s) + term * share, "logsumexp", name,
             row);
    close_to(o.entropy[row], log_s - w / S, 2 * term * (log_s - w / S) + 3e-16L, "entropy", name,
             row);
    for (int t = 0; t < nt; t++) {
        long double s = 0;
        for (int i = 0; i < n; i++)
            s += expl(((long double)z[i] - m) / h.temperatures[t]);
        const long double want = (long double)m / h.temperatures[t] + logl(s);
        close_to(o.lse_t[(size_t)row * nt + t], want, 6e-8L * fabsl(want) + 5e-7L, "logsumexp_t",
                 name, row);
        if (h.temperatures[t] == 1)
            CHECK(o.lse_t[(size_t)row * nt + t] == o.lse[row], "%s row %d", at, row);
    }
    float log_s32 = (float)log_s;
    if (k > 0) {
        log_s32 = -o.lps[(size_t)row * k];
        close_to(log_s32, log_s, 6e-8L * log_s + term * share + 3e-16L, "log S", name, row);
    }
    std::vector<float> lp(n);
    for (int i = 0; i < n; i++) {
        volatile float d = z[i] - m;
        lp[i] = d - log_s32;
    }
    auto before = [&](int a, int b) { return lp[a] > lp[b] || (lp[a] == lp[b] && a < b); };
    std::vector<int> order(n);
    for (int i = 0; i < n; i++)
        order[i] = i;
    const int n_sorted = std::min(k, n);
    std::partial_sort(order.begin(), order.begin() + n_sorted, order.end(), before);
    int n_taken = 0;
    for (int i = 0; i < k; i++) {
        const bool there = i < n && lp[order[i]] > -INFINITY;
        const int id = o.ids[(size_t)row * k + i];
        n_taken += there;
        CHECK(id == (there ? order[i] : -1), "%s row %d place %d: id %d, not %d", at, row, i, id,
              there ? order[i] : -1);
        CHECK(o.lps[(size_t)row * k + i] == (there ? lp[order[i]] : -INFINITY),
              "%s row %d place %d: %.9g", at, row, i, o.lps[(size_t)row * k + i]);
    }
    std::vector<bool> taken(n);
    for (int i = 0; i < n_taken; i++)
        taken[order[i]] = true;
    long double tail = 0, largest = 0;
    for (int i = 0; i < n; i++)
        if (!taken[i] && z[i] > -INFINITY) {
            const long double e = expl((long double)z[i] - m);
            tail += e;
            largest = std::max(largest, e);
        }
    const long double depth = largest > 0 ? -logl(largest) : 0;
    close_to(o.tail[row], tail / S, (tail / S) * (3e-7L + 6e-8L * depth) + 1e-37L, "tail_mass",
             name, row);
    CHECK(o.tail[row] >= 0, "%s row %d", at, row);
    if (target < 0 || target >= n) {
        CHECK(o.target_lp[row] == -INFINITY && o.rank[row] == -1, "%s row %d", at, row);
        return;
    }
    int rank = 0;
    for (int i = 0; i < n; i++)
        rank += before(i, target);
    if (k > 0) { /* else the last bit of log S is unknown */
        CHECK(o.rank[row] == rank, "%s row %d: rank %d, not %d", at, row, o.rank[row], rank);
        CHECK(o.target_lp[row] == lp[target], "%s row %d", at, row);
    } else if (lp[target] > -INFINITY) {
        close_to(o.target_lp[row], lp[target], 1.3e-7L * fabsl(lp[target]) + 2e-7L, "target", name,
                 row);
    }
}

template <class T>
static void same(const std::vector<T> &a, size_t at, const std::vector<T> &one,
                 const std::string &name, const char *what) {
    CHECK(one.empty() ||
              memcmp(a.data() + at * one.size(), one.data(), one.size() * sizeof(T)) == 0,
          "%s row %zu: %s depends on the batch", name.c_str(), at, what);
}

static void run(const std::string &name, const std::vector<float> &x,
                const std::vector<int32_t> &targets, int v, const how &h) {
    const outputs o = capture(x, targets, v, h, 0);
    for (size_t r = 0; r < targets.size(); r++) {
        check_row(o, x.data() + r * v, targets[r], (int)r, v, h, name);
        const std::vector<float> row(x.begin() + r * v, x.begin() + (r + 1) * v);
        const outputs one = capture(row, {targets[r]}, v, h, 1 + r % 4);
        same(o.ids, r, one.ids, name, "ids");
        same(o.lps, r, one.lps, name, "log-probs");
        same(o.rank, r, one.rank, name, "rank");
        same(o.lse, r, one.lse, name, "logsumexp");
        same(o.lse_t, r, one.lse_t, name, "logsumexp_t");
        same(o.tail, r, one.tail, name, "tail");
        same(o.target_lp, r, one.target_lp, name, "target");
        same(o.entropy, r, one.entropy, name, "entropy");
    }
}

/* --- rows ------------------------------------------------------------------------------------- */

static std::mt19937 rng(20260);
static float normal() {
    return std::normal_distribution<float>()(rng);
}
static int below(int n) {
    return std::uniform_int_distribution<int>(0, n - 1)(rng);
}
static float up(float x, int n) {
    for (; n > 0; n--)
        x = nextafterf(x, INFINITY);
    return x;
}

typedef std::function<float(int)> generator;
struct kind {
    const char *name;
    std::function<generator(int v)> make;
};

static const kind kinds[] = {
    {"normal", [](int) { return [](int) { return 3 * normal(); }; }},
    {"sure",
     [](int v) {
         const int best = below(v);
         return [best](int i) { return i == best ? 30.0f + normal() : 4 * normal(); };
     }},
    {"wide", [](int) { return [](int) { return 40 * normal(); }; }},
    {"all equal", [](int) { return [](int) { return -2.75f; }; }},
    {"ascending", [](int) { return [](int i) { return 0.001f * (float)i; }; }},
    {"descending", [](int) { return [](int i) { return -0.001f * (float)i; }; }},
    {"levels", [](int) { return [](int) { return (float)below(5); }; }},
    {"one huge",
     [](int v) {
         const int best = below(v);
         return [best](int i) { return i == best ? 200.0f : -200.0f; };
     }},
    {"units apart", [](int) { return [](int) { return up(5.0f, below(12)); }; }},
    {"units apart, shifted",
     [](int) { return [](int i) { return i % 97 ? up(5.0f, below(40)) : 9.0f + normal(); }; }},
    {"ties after rounding", [](int) { return [](int i) { return 20.0f + 1e-9f * (float)i; }; }},
    {"small beside one large",
     [](int v) {
         const int best = below(v);
         return [best](int i) { return i == best ? 100.0f : 1e-6f * normal(); };
     }},
    {"far from zero", [](int) { return [](int) { return 3e6f + 2 * normal(); }; }},
    {"infinite blocks",
     [](int) { return [](int i) { return i / 200 % 3 ? -INFINITY : 2 * normal(); }; }},
    {"few finite", [](int) { return [](int i) { return i % 100 ? -INFINITY : normal(); }; }},
    {"one finite",
     [](int v) {
         const int best = below(v);
         return [best](int i) { return i == best ? 3.0f : -INFINITY; };
     }},
    {"extremes",
     [](int) {
         return [](int) { return below(3) ? 1e30f * normal() : FLT_MAX * (float)below(2); };
     }},
    {"all below", [](int) { return [](int) { return -3e38f + 1e37f * normal(); }; }},
};

/* One call with a row of each kind. Targets: random, the best, or one whose z many share. */
static void run_kinds(const std::string &name, int v, const how &h, size_t first = 0,
                      size_t last = SIZE_MAX) {
    std::vector<float> x;
    std::vector<int32_t> targets;
    const int n = h.n_valid ? h.n_valid : v;
    for (size_t i = first; i < std::min(last, sizeof kinds / sizeof kinds[0]); i++) {
        const generator g = kinds[i].make(n);
        const size_t at = x.size();
        for (int j = 0; j < v; j++)
            x.push_back(j < n ? g(j) : j % 3 ? INFINITY : NAN);
        const int best =
            (int)(std::max_element(x.begin() + at, x.begin() + at + n) - x.begin() - at);
        targets.push_back(i % 4 == 3 ? best : i % 7 == 6 ? -1 : below(v));
    }
    run(name + " v=" + std::to_string(v) + " k=" + std::to_string(h.k), x, targets, v, h);
}

/* The target's log-prob, or nearly so, at one other id. */
static void twins() {
    const int v = 1500, n_rows = 60;
    std::vector<float> x(n_rows * v);
    std::vector<int32_t> targets(n_rows);
    for (int r = 0; r < n_rows; r++) {
        float *z = x.data() + r * v;
        for (int i = 0; i < v; i++)
            z[i] = 3 * normal();
        const int target = below(v);
        targets[r] = target;
        z[(target + 1 + below(v - 1)) % v] = r % 3 ? up(z[target], r % 3 - 1) : z[target];
    }
    how h;
    h.k = 3;
    run("twins", x, targets, v, h);
}

/* A segment whose logits are alike but far below m, where z - m does not fit in an f32: the
 * rounding must not be multiplied into all of its terms. */
static void tail_keeps_its_digits() {
    const int v = 1000;
    std::vector<float> x(v, -40.3f);
    x[130] = 0.0012345f;
    how h;
    h.k = 1;
    const outputs o = capture(x, {5}, v, h, 0);
    long double tail = 0;
    for (int i = 0; i < v; i++) /* those beside the best share its segment and its rounding */
        if (i / 128 != 1)
            tail += expl((long double)-40.3f - 0.0012345f);
    tail += 127 * expl((long double)(-40.3f - 0.0012345f));
    close_to(o.tail[0], tail, 2.5e-7L * tail, "tail", "one far above", 0);
}

static void bad_rows() {
    const int v = 1237;
    std::vector<float> x(8 * v);
    for (float &z : x)
        z = normal();
    x[1 * v + 1236] = NAN;
    x[2 * v + 0] = -NAN;
    x[3 * v + 700] = INFINITY;
    for (int i = 0; i < v; i++)
        x[4 * v + i] = x[6 * v + i] = -INFINITY;
    x[6 * v + 300] = NAN; /* the only one that is not -inf */
    x[7 * v + 5] = INFINITY;
    x[7 * v + 6] = NAN;
    const std::vector<int32_t> targets = {0, 1, 2, 700, 4, 5, 6, 7};
    how h;
    h.k = 9;
    h.temperatures = {2, 1};
    run("bad rows", x, targets, v, h);
    h.softcap = 30, h.divisor = 3;
    run("bad rows, finished", x, targets, v, h);
}

static void arguments_are_checked() {
    td_capture_args a = {};
    float t = 1;
    a.n_rows = 1, a.n_vocab = a.n_valid = 4, a.divisor = 1, a.temperatures = &t;
    a.logsumexp_t = &t;
    const auto refused = [&](td_capture_args b) {
        return td_gpu_capture(&b, &chip, nullptr, nullptr) == cudaErrorInvalidValue;
    };
    td_capture_args b = a;
    b.top_k = 1025;
    CHECK(refused(b), "top_k");
    b = a, b.n_temperatures = 17;
    CHECK(refused(b), "temperatures");
    b = a, b.n_vocab = b.n_valid = 1 << 23;
    CHECK(refused(b), "vocabulary");
}

int main(int argc, char **argv) {
    const bool large = argc < 2 || strcmp(argv[1], "--small") != 0;
    how plain, tempered, finished;
    tempered.temperatures = {1, 2, 0.5f, 10};
    finished.softcap = 30;
    for (int v : {1, 2, 31, 257, 1000, 4099})
        for (int k : {1, 5, 64, 1024}) {
            how h = k == 5 ? tempered : plain;
            h.k = k;
            run_kinds("plain", v, h);
        }
    {
        how h;
        h.k = 0;
        run_kinds("no top-k", 999, h);
        h.k = 20;
        for (int i = 0; i < 16; i++)
            h.temperatures.push_back(0.05f * (float)(1 << i / 2) + 0.01f * (float)i);
        run_kinds("sixteen temperatures", 1500, h);
        h.temperatures = {1e-3f, 1e-10f, 1e-38f, 1e6f, 1e30f};
        run_kinds("odd temperatures", 1500, h, 0, 12);
        h = how(), h.k = 33, h.n_valid = 1536;
        run_kinds("masked", 1537, h);
        h.n_valid = 1;
        run_kinds("masked to one", 700, h);
        h.n_valid = 1501, h.softcap = 30, h.divisor = 16, h.temperatures = {3};
        run_kinds("finished", 1537, h);
        h.divisor = 3;
        run_kinds("finished, no power of two", 1537, h);
        h = how(), h.k = 40, h.divisor = 0.25f;
        run_kinds("divided", 2048, h, 0, 12);
        h.divisor = 1, h.softcap = 2; /* most are at the cap: equal */
        run_kinds("at the cap", 5000, h);
    }
    twins();
    tail_keeps_its_digits();
    bad_rows();
    arguments_are_checked();
    for (int v : {32000, 128256, 262144}) {
        if (!large)
            break;
        for (int k : {64, 1024}) {
            how h;
            h.k = k;
            if (k == 64)
                h.temperatures = {2};
            run_kinds("large", v, h, 0, v < 100000 ? SIZE_MAX : 6);
        }
    }
    printf("%d rows checked, %d failures\n", n_rows_checked, n_failures);
    return n_failures != 0;
}
