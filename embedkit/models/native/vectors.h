/* What kernels.cpp and attention.cpp share: vectors of as many numbers as a register holds, and work on a row.
 *
 * All arrays are row-major and float32 unless their type says otherwise. A row of a result depends on its own text
 * alone, to the bit. What is not finite stays so.
 */
/* math.h, which takes a quarter of a second to read in C++, is left out; its functions are builtins. */
#include "structs.h"

#if defined(LANES)
/* Attention by tiles has 16 numbers with any instructions. */
#elif defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef int32_t ints __attribute__((vector_size(LANES * 4)));
/* The same, unaligned. */
typedef float vec_at __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))
/* Work of a whole row that many call: inlined, it would take a quarter of the time that this file compiles in. */
#define APART static inline __attribute__((noinline))

INLINE vec load(const float *at) { return *(const vec_at *)at; }
/* The same, kept in a register: a compiler would load it again for each product, and wait for the memory. */
INLINE vec kept(const float *at) {
    vec x = load(at);
#if defined(__x86_64__) && (LANES < 16 || defined(__AVX512F__))
    __asm__("" : "+v"(x));
#elif defined(__aarch64__)
    __asm__("" : "+w"(x));
#endif
    return x;
}
INLINE void store(float *at, vec x) { *(vec_at *)at = x; }
INLINE vec all(float x) { return x - vec{}; }
INLINE vec largest(vec a, vec b) { return a > b ? a : b; }

/* a / b to 2e-7 of itself, for b from 1 to 2^126. A division of 512 bits takes as long as 30 products: instead, a
 * reciprocal of 14 bits, and a step of Newton's that doubles them. */
INLINE vec quotient(vec a, vec b) {
#if defined(__AVX512F__)
    const vec near = (vec)__builtin_ia32_rcp14ps512_mask(b, vec{}, (uint16_t)-1);
    return a * (near * (2.0f - b * near));
#else
    return a / b;
#endif
}

/* Shuffles two vectors: number j of the result is number f(s, j) of both, concatenated. */
#if LANES == 16
#define EACH(f, s)                                                                                                   \
    f(s, 0), f(s, 1), f(s, 2), f(s, 3), f(s, 4), f(s, 5), f(s, 6), f(s, 7), f(s, 8), f(s, 9), f(s, 10), f(s, 11),     \
        f(s, 12), f(s, 13), f(s, 14), f(s, 15)
#elif LANES == 8
#define EACH(f, s) f(s, 0), f(s, 1), f(s, 2), f(s, 3), f(s, 4), f(s, 5), f(s, 6), f(s, 7)
#else
#define EACH(f, s) f(s, 0), f(s, 1), f(s, 2), f(s, 3)
#endif
#ifdef __clang__
#define SHUFFLED(a, b, f, s) __builtin_shufflevector(a, b, EACH(f, s))
#else
#define SHUFFLED(a, b, f, s) __builtin_shuffle(a, b, ints{EACH(f, s)})
#endif
#define TURNED(s, j) ((j) + (s)) % LANES
#define UPPER(s, j) ((j) & (s) ? LANES + (j) - (s) : (j))
#define LOWER(s, j) ((j) & (s) ? LANES + (j) : (j) + (s))

/* The sum of a vector, in all lanes. */
template <int half = LANES / 2> INLINE vec sum_of(vec x) {
    x += SHUFFLED(x, x, TURNED, half);
    if constexpr (half == 1) return x;
    else return sum_of<half / 2>(x);
}

/* The largest of a vector, in all lanes. */
template <int half = LANES / 2> INLINE vec largest_of(vec x) {
    x = largest(x, SHUFFLED(x, x, TURNED, half));
    if constexpr (half == 1) return x;
    else return largest_of<half / 2>(x);
}

/* Transposes a square: exchanges halves, then halves of these. */
template <int half = LANES / 2> INLINE void transpose(vec rows[LANES]) {
    for (int i = 0; i < LANES; i++)
        if (!(i & half)) {
            vec upper = SHUFFLED(rows[i], rows[i + half], UPPER, half);
            rows[i + half] = SHUFFLED(rows[i], rows[i + half], LOWER, half);
            rows[i] = upper;
        }
    if constexpr (half > 1) transpose<half / 2>(rows);
}

#define LOG2_E 1.44269504f

/* 2^x to 2e-7 of itself, for x from -126 to 127: 2^n times a polynomial in the rest, fitted to 2^x on
 * -0.5..0.5 for the smallest maximum relative error. */
INLINE vec power_of_two(vec x) {
    /* Adding 1.5 * 2^23 leaves the nearest integer in the low bits. */
    vec shifted = x + 12582912.0f;
    vec f = x - (shifted - 12582912.0f);
    vec p = f * 0.0013276503887027502f + 0.009675542823970318f;
    p = p * f + 0.05550713092088699f;
    p = p * f + 0.24022120237350464f;
    p = p * f + 0.6931469440460205f;
    p = p * f + 1.0f;
    return p * (vec)(((ints)shifted << 23) + 0x3f800000);
}

INLINE vec exponential(vec x) {
    x = x * LOG2_E;
    x = x < -126.0f ? all(-126.0f) : x;
    return power_of_two(x > 127.0f ? all(127.0f) : x);
}

/* The value of products at i; widths are multiples of LANES. If they are sums of bytes, each is scaled first, as those who
 * multiply would do. */
template <bool are_sums>
INLINE vec value_of(const float *row, const float *of_outputs, const float *scale, const float *bias, int64_t i) {
    typedef ints ints_at __attribute__((aligned(4), may_alias));
    if (!are_sums) return scale ? load(row + i) * *scale + load(bias + i) : load(row + i);
    return __builtin_convertvector(*(const ints_at *)(row + i), vec) * load(of_outputs + i) * *scale + load(bias + i);
}

/* Compares as integers, so that NaN and infinity are largest and reach the scale. */
INLINE ints larger(ints size, vec x) {
    ints of_x = (ints)x & 0x7fffffff;
    return of_x > size ? of_x : size;
}

template <int half = LANES / 2> INLINE ints largest_size(ints x) {
    ints other = SHUFFLED(x, x, TURNED, half);
    x = other > x ? other : x;
    if constexpr (half == 1) return x;
    else return largest_size<half / 2>(x);
}

APART void quantise_row(const float *__restrict row, ints size, int64_t width, uint8_t *__restrict bytes,
                        float *scale) {
    float most = ((vec)largest_size(size))[0];
    /* Rows of zeros have a scale too. */
    if (most < 1e-36f) most = 1e-36f;
    float steps = 127.0f / most;
    int64_t i = 0;
#if LANES == 16
    /* A compiler for Intel's processors would take vectors of half the size. */
    typedef uint8_t some __attribute__((vector_size(LANES)));
    typedef some some_at __attribute__((aligned(1), may_alias));
    for (; i + LANES <= width; i += LANES)
        *(some_at *)(bytes + i) = __builtin_convertvector(__builtin_convertvector(load(row + i) * steps + 128.5f, ints), some);
#endif
    for (; i < width; i++) bytes[i] = (uint8_t)(int32_t)(row[i] * steps + 128.5f);
    *scale = most / 127.0f;
}

/* Rounds a row to bf16, to the even number if it is halfway. */
APART void round_row(const float *__restrict row, int64_t width, uint16_t *__restrict halves) {
    for (int64_t i = 0; i < width; i++) {
        uint32_t bits;
        __builtin_memcpy(&bits, row + i, sizeof bits);
        uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1), of_nan = bits | 1 << 22;
        halves[i] = (uint16_t)((row[i] != row[i] ? of_nan : rounded) >> 16);
    }
}

/* The largest numbers of a row, for quantise_row. */
INLINE ints sizes(const float *row, int64_t width) {
    ints size = {};
    for (int64_t i = 0; i < width; i += LANES) size = larger(size, load(row + i));
    return size;
}

/* Writes row t of a result, whose largest numbers are `size`, in the form of the result. */
INLINE void write_inputs(const Rows *out, int64_t t, const float *row, ints size, int64_t width) {
    if (out->form == BYTES) quantise_row(row, size, width, (uint8_t *)out->inputs + t * width, out->scale + t);
    if (out->form == BF16) round_row(row, width, (uint16_t *)out->inputs + t * width);
}

#define CHAINS 4

INLINE vec square(vec x) { return x * x; }

/* Normalises a row, perhaps in place. Returns its largest numbers, for quantise_row. */
APART ints normalise(const float *from, const Norm *norm, int64_t width, float *to) {
    const float *weight = norm->weight, *bias = norm->bias;
    /* Several independent sums: an addition need not wait for the one before. */
    int64_t whole = width - width % LANES, unrolled = width - width % (CHAINS * LANES);
    float mean = 0.0f, rest = 0.0f;
    if (!norm->rms) {
        vec sums[CHAINS] = {};
        for (int64_t i = 0; i < unrolled; i += CHAINS * LANES)
            for (int c = 0; c < CHAINS; c++) sums[c] += load(from + i + c * LANES);
        for (int64_t i = unrolled; i < whole; i += LANES) sums[0] += load(from + i);
        for (int64_t i = whole; i < width; i++) rest += from[i];
        mean = (sum_of((sums[0] + sums[1]) + (sums[2] + sums[3]))[0] + rest) / width;
    }
    vec squares[CHAINS] = {};
    rest = 0.0f;
    for (int64_t i = 0; i < unrolled; i += CHAINS * LANES)
        for (int c = 0; c < CHAINS; c++) squares[c] += square(load(from + i + c * LANES) - mean);
    for (int64_t i = unrolled; i < whole; i += LANES) squares[0] += square(load(from + i) - mean);
    for (int64_t i = whole; i < width; i++) rest += (from[i] - mean) * (from[i] - mean);
    float total = sum_of((squares[0] + squares[1]) + (squares[2] + squares[3]))[0] + rest;
    float inverse = 1.0f / __builtin_sqrtf(total / width + norm->eps);
    ints size = {};
    for (int64_t i = 0; i < whole; i += LANES) {
        vec x = (load(from + i) - mean) * inverse * load(weight + i);
        if (bias) x += load(bias + i);
        store(to + i, x);
        size = larger(size, x);
    }
    for (int64_t i = whole; i < width; i++) to[i] = (from[i] - mean) * inverse * weight[i] + (bias ? bias[i] : 0.0f);
    return size;
}

/* Queries, and vectors of keys or of values, that are processed together: their products fill 32 registers or 16. */
#if LANES == 16 || defined(__aarch64__)
#define QUERIES 8
#else
#define QUERIES 4
#endif
#define KEYS 3
#define WIDE 3

/* scores[q][k..] = queries[q] . keys[k..], of QUERIES queries and `count` vectors of keys; rows are so far apart. */
template <int count>
INLINE void score(const float *queries, int64_t query_stride, const float *keys, int64_t key_stride, int64_t head,
                  float *scores, int64_t score_stride) {
    vec sums[QUERIES][count] = {};
    for (int64_t d = 0; d < head; d++) {
        vec key[count];
        for (int k = 0; k < count; k++) key[k] = kept(keys + d * key_stride + k * LANES);
        for (int q = 0; q < QUERIES; q++)
            for (int k = 0; k < count; k++) sums[q][k] += queries[q * query_stride + d] * key[k];
    }
    for (int q = 0; q < QUERIES; q++)
        for (int k = 0; k < count; k++) store(scores + q * score_stride + k * LANES, sums[q][k]);
}
