/* collectives.cpp - shuffles, votes, indices, tensor-core operations and 16-bit numbers against
 * plain loops. */
#include <math.h>

#include <vector>

#include "check.h"
#include "gpu/ptx.cuh"
#include "mma.h"
#include "pretend.h"

namespace {

__global__ void shuffles(int *out) {
    const int i = threadIdx.x, n = blockDim.x;
    int *o = out + i;
    o[0 * n] = __shfl_sync(0xffffffffu, i * 3, 5);
    o[1 * n] = __shfl_sync(0xffffffffu, i * 3, 9, 8);
    o[2 * n] = __shfl_xor_sync(0xffffffffu, i * 3, 12);
    o[3 * n] = __shfl_xor_sync(0xffffffffu, i * 3, 12, 8); /* out of its 8 lanes upwards: own */
    o[4 * n] = __shfl_up_sync(0xffffffffu, i * 3, 2);
    o[5 * n] = __shfl_up_sync(0xffffffffu, i * 3, 2, 4);
    o[6 * n] = __shfl_down_sync(0xffffffffu, i * 3, 7);
    o[7 * n] = __shfl_down_sync(0xffffffffu, i * 3, 1, 2);
    o[8 * n] = (int)__ballot_sync(0xffffffffu, i % 3 == 0);
    o[9 * n] = __any_sync(0xffffffffu, i == 40) + 2 * __all_sync(0xffffffffu, i < 64);
    o[10 * n] = (int)__match_any_sync(0xffffffffu, i % 5);
    o[11 * n] = __reduce_add_sync(0xffffffffu, i) + __reduce_max_sync(0xffffffffu, -i);
    o[12 * n] = (int)(__shfl_sync(0xffffffffu, (double)i * 1e9, 3) / 1e9);
    /* Halves of a warp on ways of their own. */
    if (i & 16)
        o[13 * n] = __shfl_xor_sync(0xffff0000u, i, 1) + __shfl_xor_sync(0xffff0000u, i, 2);
    else
        o[13 * n] = __shfl_xor_sync(0x0000ffffu, i, 8) * 100;
}

int shuffled(int row, int i) {
    const int l = i & 31, w = i & ~31;
    switch (row) {
    case 0:
        return (w + 5) * 3;
    case 1:
        return ((i & ~7) + 1) * 3;
    case 2:
        return (i ^ 12) * 3;
    case 3:
        return ((l ^ 12) > (l | 7) ? i : i ^ 12) * 3;
    case 4:
        return (l >= 2 ? i - 2 : i) * 3;
    case 5:
        return ((l & 3) >= 2 ? i - 2 : i) * 3;
    case 6:
        return (l + 7 < 32 ? i + 7 : i) * 3;
    case 7:
        return (i | 1) * 3;
    case 8: {
        unsigned b = 0;
        for (int j = 0; j < 32; j++)
            b |= (unsigned)((w + j) % 3 == 0) << j;
        return (int)b;
    }
    case 9:
        return (w <= 40 && 40 < w + 32) + 2 * (w + 32 <= 64);
    case 10: {
        unsigned b = 0;
        for (int j = 0; j < 32; j++)
            b |= (unsigned)((w + j) % 5 == i % 5) << j;
        return (int)b;
    }
    case 11:
        return w * 32 + 496 - w;
    case 12:
        return w + 3;
    default:
        return i & 16 ? (i ^ 1) + (i ^ 2) : (i ^ 8) * 100;
    }
}

__global__ void indices(int *count) {
    const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    atomicAdd(&count[block * blockDim.x * blockDim.y * blockDim.z + thread], 1);
}

__global__ void votes(int *out) {
    const int n = __syncthreads_count(threadIdx.x % 3 == 0);
    const int all = __syncthreads_and(threadIdx.x < 70), some = __syncthreads_or(threadIdx.x == 69);
    out[threadIdx.x] = n * 4 + all * 2 + some;
}

/* A [16, 16] row-major, B^T [8, 16], C [16, 8]. */
template <class T> __global__ void mma(const T *a, const T *b, float *c) {
    TD_DYNAMIC_SHARED(T, tile);
    for (int i = threadIdx.x; i < 256; i += 32)
        tile[i] = a[i];
    __syncwarp();
    const int l = threadIdx.x, g = l / 4, t = l % 4;
    uint32_t fa[4], fb[2];
    float d[4];
    td_ldmatrix_x4(fa, tile + (l & 15) * 16 + (l >> 4) * 8);
    memcpy(&fb[0], b + g * 16 + 2 * t, 4);
    memcpy(&fb[1], b + g * 16 + 2 * t + 8, 4);
    for (int i = 0; i < 4; i++)
        d[i] = c[(g + i / 2 * 8) * 8 + 2 * t + i % 2];
    td_mma_16816(d, fa, fb, T());
    for (int i = 0; i < 4; i++)
        c[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = d[i];
}

__global__ void ldmatrix_trans(const uint16_t *in, uint32_t *out) {
    TD_DYNAMIC_SHARED(uint16_t, tile);
    for (int i = threadIdx.x; i < 256; i += 32)
        tile[i] = in[i];
    __syncwarp();
    uint32_t r[4];
    td_ldmatrix_x4_trans(r, tile + threadIdx.x * 8);
    for (int i = 0; i < 4; i++)
        out[i * 32 + threadIdx.x] = r[i];
}

using namespace nvcuda;
template <class LA, class LB>
__global__ void wmma_product(const __half *a, const __half *b, float *d) {
    wmma::fragment<wmma::matrix_a, 16, 16, 16, __half, LA> fa;
    wmma::fragment<wmma::matrix_b, 16, 16, 16, __half, LB> fb;
    wmma::fragment<wmma::accumulator, 16, 16, 16, float> acc;
    wmma::fill_fragment(acc, 0.5f);
    wmma::load_matrix_sync(fa, a, 16);
    wmma::load_matrix_sync(fb, b, 16);
    wmma::mma_sync(acc, fa, fb, acc);
    for (int i = 0; i < acc.num_elements; i++)
        acc.x[i] *= 2.0f;
    wmma::store_matrix_sync(d, acc, 20, wmma::mem_row_major);
    wmma::load_matrix_sync(acc, d, 20, wmma::mem_row_major);
    wmma::store_matrix_sync(d + 16 * 20, acc, 16, wmma::mem_col_major);
}

float number(int i) {
    return (float)((i * 37 + 11) % 29 - 14) / 8.0f;
}

template <class T> void check_mma(const char *name) {
    device_array<T> a(256), b(128);
    device_array<float> c(128);
    T ha[256], hb[128];
    float hc[128], got[128];
    for (int i = 0; i < 256; i++)
        ha[i] = T(number(i));
    for (int i = 0; i < 128; i++) {
        hb[i] = T(number(i + 1000));
        hc[i] = number(i + 2000);
    }
    a.put(ha);
    b.put(hb);
    c.put(hc);
    MUST(TD_LAUNCH(mma<T>, 1, 32, 512, nullptr, a.data, b.data, c.data));
    MUST(cudaStreamSynchronize(nullptr));
    c.get(got);
    for (int m = 0; m < 16; m++)
        for (int n = 0; n < 8; n++) {
            double sum = hc[m * 8 + n];
            for (int k = 0; k < 16; k++)
                sum += (double)(float)ha[m * 16 + k] * (double)(float)hb[n * 16 + k];
            CHECK(fabs(sum - (double)got[m * 8 + n]) < 1e-5, "%s [%d, %d]: %g, not %g", name, m, n,
                  (double)got[m * 8 + n], sum);
        }
}

template <class LA, class LB> void check_wmma(const char *name, bool a_rows, bool b_rows) {
    device_array<__half> a(256), b(256);
    device_array<float> d(16 * 20 + 256);
    __half ha[256], hb[256];
    std::vector<float> got(16 * 20 + 256);
    for (int i = 0; i < 256; i++) {
        ha[i] = __half(number(i));
        hb[i] = __half(number(i + 1000));
    }
    a.put(ha);
    b.put(hb);
    MUST(TD_LAUNCH((wmma_product<LA, LB>), 1, 32, 0, nullptr, a.data, b.data, d.data));
    MUST(cudaStreamSynchronize(nullptr));
    d.get(got.data());
    for (int m = 0; m < 16; m++)
        for (int n = 0; n < 16; n++) {
            double sum = 0.5;
            for (int k = 0; k < 16; k++)
                sum += (double)(float)ha[a_rows ? m * 16 + k : k * 16 + m] *
                       (double)(float)hb[b_rows ? k * 16 + n : n * 16 + k];
            CHECK(fabs(2 * sum - (double)got[(size_t)(m * 20 + n)]) < 1e-4, "wmma %s [%d, %d]",
                  name, m, n);
            CHECK(got[(size_t)(m * 20 + n)] == got[(size_t)(320 + n * 16 + m)],
                  "wmma column-major");
        }
}

} // namespace

void test_warp_collectives() {
    enum { N = 96, ROWS = 14 };
    for (uint64_t seed = 1; seed <= 5; seed++) {
        pretend_set_seed(seed);
        device_array<int> out(N * ROWS);
        std::vector<int> got(N * ROWS);
        MUST(TD_LAUNCH(shuffles, 1, N, 0, nullptr, out.data));
        MUST(cudaStreamSynchronize(nullptr));
        out.get(got.data());
        for (int row = 0; row < ROWS; row++)
            for (int i = 0; i < N; i++)
                CHECK(got[(size_t)(row * N + i)] == shuffled(row, i), "collective %d, lane %d: %d",
                      row, i, got[(size_t)(row * N + i)]);
        device_array<int> v(70);
        std::vector<int> votes_of(70);
        MUST(TD_LAUNCH(votes, 1, 70, 0, nullptr, v.data));
        MUST(cudaStreamSynchronize(nullptr));
        v.get(votes_of.data());
        for (int x : votes_of)
            CHECK(x == 24 * 4 + 3, "block vote: %d", x);
    }
    const dim3 grid(5, 3, 2), block(4, 2, 5);
    device_array<int> count(5 * 3 * 2 * 40);
    std::vector<int> got(count.n);
    MUST(cudaMemset(count.data, 0, count.n * 4));
    MUST(TD_LAUNCH(indices, grid, block, 0, nullptr, count.data));
    MUST(cudaStreamSynchronize(nullptr));
    count.get(got.data());
    for (size_t i = 0; i < got.size(); i++)
        CHECK(got[i] == 1, "thread %zu ran %d times", i, got[i]);
}

void test_tensor_cores() {
    check_mma<__nv_bfloat16>("mma bf16");
    check_mma<__half>("mma f16");
    check_wmma<wmma::row_major, wmma::row_major>("row, row", true, true);
    check_wmma<wmma::row_major, wmma::col_major>("row, col", true, false);
    check_wmma<wmma::col_major, wmma::row_major>("col, row", false, true);
    device_array<uint16_t> in(256);
    device_array<uint32_t> out(128);
    uint16_t h[256];
    uint32_t got[128];
    for (int i = 0; i < 256; i++)
        h[i] = (uint16_t)(i * 7);
    in.put(h);
    MUST(TD_LAUNCH(ldmatrix_trans, 1, 32, 512, nullptr, in.data, out.data));
    MUST(cudaStreamSynchronize(nullptr));
    out.get(got);
    for (int m = 0; m < 4; m++)
        for (int l = 0; l < 32; l++) {
            /* elements [l/4][2(l%4), +1] of the transpose */
            const int row = l / 4, col = l % 4 * 2;
            const uint32_t want = (uint32_t)h[m * 64 + col * 8 + row] |
                                  (uint32_t)h[m * 64 + (col + 1) * 8 + row] << 16;
            CHECK(got[m * 32 + l] == want, "ldmatrix.trans matrix %d lane %d", m, l);
        }
}

/* The nearest 16-bit number, ties to the even one, searched among all finite ones that do not
 * exceed `largest`. */
template <class T> void check_rounding(const char *name, uint16_t infinity) {
    const auto value = [](uint16_t bits) {
        T x;
        memcpy(&x, &bits, 2);
        return (double)(float)x;
    };
    const auto bits_of = [](float f) {
        const T x(f);
        uint16_t b;
        memcpy(&b, &x, 2);
        return b;
    };
    for (uint16_t b = 0; b < infinity; b++) {
        const double here = value(b);
        CHECK(bits_of((float)here) == b && bits_of((float)-here) == (b | 0x8000),
              "%s %04x does not survive", name, b);
        if (b + 1 == infinity)
            break;
        const double next = value((uint16_t)(b + 1)), middle = (here + next) / 2;
        const float m = (float)middle;
        if ((double)m != middle)
            continue; /* bf16's subnormals: not in f32 */
        CHECK(bits_of(m) == ((b & 1) ? b + 1 : b), "%s: tie above %04x", name, b);
        CHECK(bits_of(nextafterf(m, INFINITY)) == b + 1, "%s: over the middle above %04x", name, b);
        CHECK(bits_of(nextafterf(m, -INFINITY)) == b, "%s: under the middle above %04x", name, b);
    }
    CHECK(bits_of(INFINITY) == infinity && bits_of(-INFINITY) == (infinity | 0x8000), "%s inf",
          name);
    CHECK((bits_of(NAN) & 0x7fff) > infinity, "%s NaN", name);
    CHECK(isnan(value(0xffff)), "%s: 0xff bytes are NaN", name);
}

void test_numbers() {
    check_rounding<__half>("f16", 0x7c00);
    check_rounding<__nv_bfloat16>("bf16", 0x7f80);
    const __half2 pair = __floats2half2_rn(1.5f, -2.0f);
    uint32_t bits;
    memcpy(&bits, &pair, 4);
    CHECK(bits == 0xc0003e00u, "half2 is %08x", bits);
    CHECK((float)(__half(3.0f) * __half(0.5f) + __half(1.0f)) == 2.5f, "arithmetic");
    CHECK((float)__float2half_rz(65519.0f) == 65504.0f, "to zero");
    CHECK(__popc(0xf0u) == 4 && __ffs(8) == 4 && __clz(1) == 31 && __clz(0) == 32 && __ffs(0) == 0,
          "bits");
    CHECK(__byte_perm(0x33221100u, 0x77665544u, 0x6240u) == 0x66224400u, "byte_perm");
    CHECK(__float2int_rn(2.5f) == 2 && __float2int_rn(NAN) == 0 &&
              __float2int_rz(-1e20f) == INT_MIN,
          "conversions");
    CHECK(td_exp2_approx(-INFINITY) == 0.0f && td_exp2_approx(3.0f) == 8.0f, "exp2");
}
