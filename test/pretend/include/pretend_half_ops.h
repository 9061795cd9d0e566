/* What __half and __nv_bfloat16 offer under the same names: arithmetic, comparisons, pairs.
 * Included once for each type, with PRETEND_T, PRETEND_T2                       the type and its
 * pair PRETEND_FROM_FLOAT(x), PRETEND_FROM_BITS(u) how one is made which it takes back at its end.
 * Hence no include guard. */
static inline float __low2float(PRETEND_T2 v) {
    return (float)v.x;
}
static inline float __high2float(PRETEND_T2 v) {
    return (float)v.y;
}
static inline PRETEND_T __ldg(const PRETEND_T *p) {
    return *p;
}

static inline PRETEND_T __hadd(PRETEND_T a, PRETEND_T b) {
    return PRETEND_FROM_FLOAT((float)a + (float)b);
}
static inline PRETEND_T __hsub(PRETEND_T a, PRETEND_T b) {
    return PRETEND_FROM_FLOAT((float)a - (float)b);
}
static inline PRETEND_T __hmul(PRETEND_T a, PRETEND_T b) {
    return PRETEND_FROM_FLOAT((float)a * (float)b);
}
static inline PRETEND_T __hdiv(PRETEND_T a, PRETEND_T b) {
    return PRETEND_FROM_FLOAT((float)a / (float)b);
}
/* The exact sum of product and addend, in f64, is rounded twice here: f64 to f32 to 16 bits. */
static inline PRETEND_T __hfma(PRETEND_T a, PRETEND_T b, PRETEND_T c) {
    return PRETEND_FROM_FLOAT((float)((double)(float)a * (double)(float)b + (double)(float)c));
}
static inline PRETEND_T __hneg(PRETEND_T a) {
    return PRETEND_FROM_BITS(a.pretend_bits ^ 0x8000u);
}
static inline PRETEND_T __habs(PRETEND_T a) {
    return PRETEND_FROM_BITS(a.pretend_bits & 0x7fffu);
}
static inline PRETEND_T __hmax(PRETEND_T a, PRETEND_T b) {
    return PRETEND_FROM_FLOAT(fmaxf((float)a, (float)b));
}
static inline PRETEND_T __hmin(PRETEND_T a, PRETEND_T b) {
    return PRETEND_FROM_FLOAT(fminf((float)a, (float)b));
}
static inline bool __hisnan(PRETEND_T a) {
    return (float)a != (float)a;
}
static inline int __hisinf(PRETEND_T a) {
    return isinf((float)a) ? ((float)a < 0 ? -1 : 1) : 0;
}
static inline bool __heq(PRETEND_T a, PRETEND_T b) {
    return (float)a == (float)b;
}
static inline bool __hlt(PRETEND_T a, PRETEND_T b) {
    return (float)a < (float)b;
}
static inline bool __hle(PRETEND_T a, PRETEND_T b) {
    return (float)a <= (float)b;
}
static inline bool __hgt(PRETEND_T a, PRETEND_T b) {
    return (float)a > (float)b;
}
static inline bool __hge(PRETEND_T a, PRETEND_T b) {
    return (float)a >= (float)b;
}
static inline PRETEND_T hexp(PRETEND_T a) {
    return PRETEND_FROM_FLOAT(expf((float)a));
}
static inline PRETEND_T operator+(PRETEND_T a, PRETEND_T b) {
    return __hadd(a, b);
}
static inline PRETEND_T operator-(PRETEND_T a, PRETEND_T b) {
    return __hsub(a, b);
}
static inline PRETEND_T operator*(PRETEND_T a, PRETEND_T b) {
    return __hmul(a, b);
}
static inline PRETEND_T operator/(PRETEND_T a, PRETEND_T b) {
    return __hdiv(a, b);
}
static inline PRETEND_T operator-(PRETEND_T a) {
    return __hneg(a);
}
static inline PRETEND_T &operator+=(PRETEND_T &a, PRETEND_T b) {
    return a = __hadd(a, b);
}
static inline PRETEND_T &operator*=(PRETEND_T &a, PRETEND_T b) {
    return a = __hmul(a, b);
}
static inline bool operator==(PRETEND_T a, PRETEND_T b) {
    return __heq(a, b);
}
static inline bool operator!=(PRETEND_T a, PRETEND_T b) {
    return !__heq(a, b);
}
static inline bool operator<(PRETEND_T a, PRETEND_T b) {
    return __hlt(a, b);
}
static inline bool operator>(PRETEND_T a, PRETEND_T b) {
    return __hgt(a, b);
}
static inline bool operator<=(PRETEND_T a, PRETEND_T b) {
    return __hle(a, b);
}
static inline bool operator>=(PRETEND_T a, PRETEND_T b) {
    return __hge(a, b);
}
static inline PRETEND_T2 __hadd2(PRETEND_T2 a, PRETEND_T2 b) {
    return PRETEND_T2(__hadd(a.x, b.x), __hadd(a.y, b.y));
}
static inline PRETEND_T2 __hsub2(PRETEND_T2 a, PRETEND_T2 b) {
    return PRETEND_T2(__hsub(a.x, b.x), __hsub(a.y, b.y));
}
static inline PRETEND_T2 __hmul2(PRETEND_T2 a, PRETEND_T2 b) {
    return PRETEND_T2(__hmul(a.x, b.x), __hmul(a.y, b.y));
}
static inline PRETEND_T2 __hfma2(PRETEND_T2 a, PRETEND_T2 b, PRETEND_T2 c) {
    return PRETEND_T2(__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y));
}
static inline PRETEND_T2 __hmax2(PRETEND_T2 a, PRETEND_T2 b) {
    return PRETEND_T2(__hmax(a.x, b.x), __hmax(a.y, b.y));
}

#undef PRETEND_T
#undef PRETEND_T2
#undef PRETEND_FROM_FLOAT
#undef PRETEND_FROM_BITS
