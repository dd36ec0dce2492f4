/* Everything between the matrix products of a layer, each part in one pass over memory: attention within packed
 * texts, activations, and residuals with their norm. Compiled for this processor by compile_kernels.py, and called by
 * kernels.py, which declares the same structs.
 *
 * All arrays are row-major and float32 unless their type says otherwise. A row of a result depends on its own text
 * alone, to the bit. What is not finite stays so.
 */
/* math.h, which takes a quarter of a second to read in C++, is left out; its functions are builtins. */
#include <stdint.h>

/* The output of a linear layer, [n, width]: row t is values[t] * scale[t] + bias, or values[t] if scale is nullptr. */
struct Products {
    float *values;
    const float *scale, *bias;
    int64_t n, width;
};

/* A result. If bytes is not nullptr, it is quantised too: unsigned, 128 for 0, with scale[t] the step of row t. */
struct Rows {
    float *values;
    uint8_t *bytes;
    float *scale;
};

struct Norm {
    const float *weight, *bias;
    float eps;
};

/* Packed texts: the tokens of each, and [heads, length, length] that is added to its scores; nullptr for nothing. */
struct Texts {
    int64_t count;
    const int64_t *lengths;
    const float *const *biases;
};

#if defined(__AVX512F__)
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
#define APART static __attribute__((noinline))

INLINE vec load(const float *at) { return *(const vec_at *)at; }
INLINE void store(float *at, vec x) { *(vec_at *)at = x; }
INLINE vec all(float x) { return x - vec{}; }
INLINE vec largest(vec a, vec b) { return a > b ? a : b; }

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

/* erf(x) to 4e-7 of itself: x times the ratio of two polynomials in x^2, fitted to erf(x) / x on 0..3.9 for the
 * smallest maximum relative error. Above 3.9 it is 1 in float32. */
INLINE vec error_function(vec x) {
    x = x < -3.9f ? all(-3.9f) : x;
    x = x > 3.9f ? all(3.9f) : x;
    vec u = x * x;
    vec p = u * 2.0664929252234288e-06f + 0.0002850630262400955f;
    p = p * u + 0.0037383276503533125f;
    p = p * u + 0.05266802757978439f;
    p = p * u + 0.18966621160507202f;
    p = p * u + 1.1283791065216064f;
    vec q = u * 3.827027103397995e-05f + 0.001157374121248722f;
    q = q * u + 0.014914237894117832f;
    q = q * u + 0.11381872743368149f;
    q = q * u + 0.5014200806617737f;
    q = q * u + 1.0f;
    return x * p / q;
}

enum Activation { GELU, GELU_TANH, RELU, SILU };

template <int kind> INLINE vec activated(vec x) {
    if (kind == GELU) return 0.5f * x * (1.0f + error_function(x * 0.70710678f));
    if (kind == GELU_TANH) return x / (1.0f + exponential(-1.59576912f * (x + 0.044715f * x * x * x)));
    if (kind == RELU) return x < 0.0f ? vec{} : x;
    return x / (1.0f + exponential(-x));
}

/* The value of products at i; widths are multiples of LANES. */
INLINE vec value_of(const float *row, const float *scale, const float *bias, int64_t i) {
    return scale ? load(row + i) * *scale + load(bias + i) : load(row + i);
}

/* Compares as integers, so that NaN and infinity are largest and reach the scale. */
INLINE ints larger(ints size, vec x) {
    ints of_x = (ints)x & 0x7fffffff;
    return of_x > size ? of_x : size;
}

APART void quantise_row(const float *__restrict row, ints size, int64_t width, uint8_t *__restrict bytes,
                        float *scale) {
    int32_t bits[LANES];
    __builtin_memcpy(bits, &size, sizeof bits);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) bits[i] = bits[i] > bits[i + half] ? bits[i] : bits[i + half];
    float most;
    __builtin_memcpy(&most, bits, sizeof most);
    /* Rows of zeros have a scale too. */
    if (most < 1e-36f) most = 1e-36f;
    float steps = 127.0f / most;
    for (int64_t i = 0; i < width; i++) bytes[i] = (uint8_t)(int32_t)(row[i] * steps + 128.5f);
    *scale = most / 127.0f;
}

APART void quantise_rows(const float *values, int64_t n, int64_t width, uint8_t *bytes, float *scale) {
    for (int64_t t = 0; t < n; t++) {
        const float *row = values + t * width;
        ints size = {};
        for (int64_t i = 0; i < width; i += LANES) size = larger(size, load(row + i));
        quantise_row(row, size, width, bytes + t * width, scale + t);
    }
}

template <int kind> static void activate(const Products *products, const Rows *out) {
    const float *scale = products->scale, *bias = products->bias;
    int64_t width = products->width;
    for (int64_t t = 0; t < products->n; t++) {
        float *row = products->values + t * width;
        ints size = {};
        for (int64_t i = 0; i < width; i += LANES) {
            vec x = activated<kind>(value_of(row, scale ? scale + t : nullptr, bias, i));
            store(row + i, x);
            size = larger(size, x);
        }
        if (out->bytes) quantise_row(row, size, width, out->bytes + t * width, out->scale + t);
    }
}

/* Quantises rows [n, width]. */
extern "C" void embedkit_quantise(const Rows *rows, int64_t n, int64_t width) {
    quantise_rows(rows->values, n, width, rows->bytes, rows->scale);
}

/* Applies an activation in place; only bytes and scale of `out` are used. */
extern "C" void embedkit_activate(const Products *products, int kind, const Rows *out) {
    auto work = kind == GELU        ? activate<GELU>
                : kind == GELU_TANH ? activate<GELU_TANH>
                : kind == RELU      ? activate<RELU>
                                    : activate<SILU>;
    work(products, out);
}

#define CHAINS 4

INLINE vec square(vec x) { return x * x; }

INLINE vec joined(const float *row, const float *scale, const float *bias, const float *residual, float *to, int64_t i) {
    vec x = value_of(row, scale, bias, i) + load(residual + i);
    store(to + i, x);
    return x;
}

/* Layer norm of products + residual, [n, width], into `out`, which may be either of them. */
extern "C" void embedkit_residual_norm(const Products *products, const float *residual, const Norm *norm,
                                       const Rows *out) {
    const float *scale = products->scale, *bias = products->bias, *weight = norm->weight, *shift = norm->bias;
    float eps = norm->eps;
    int64_t width = products->width;
    for (int64_t t = 0; t < products->n; t++) {
        const float *row = products->values + t * width, *beside = residual + t * width;
        const float *by = scale ? scale + t : nullptr;
        float *to = out->values + t * width;
        /* Several independent sums: an addition need not wait for the one before. */
        vec sums[CHAINS] = {}, squares[CHAINS] = {};
        int64_t whole = width - width % (CHAINS * LANES);
        for (int64_t i = 0; i < whole; i += CHAINS * LANES)
            for (int c = 0; c < CHAINS; c++) sums[c] += joined(row, by, bias, beside, to, i + c * LANES);
        for (int64_t i = whole; i < width; i += LANES) sums[0] += joined(row, by, bias, beside, to, i);
        float mean = sum_of((sums[0] + sums[1]) + (sums[2] + sums[3]))[0] / width;
        for (int64_t i = 0; i < whole; i += CHAINS * LANES)
            for (int c = 0; c < CHAINS; c++) squares[c] += square(load(to + i + c * LANES) - mean);
        for (int64_t i = whole; i < width; i += LANES) squares[0] += square(load(to + i) - mean);
        float inverse = 1.0f / __builtin_sqrtf(sum_of((squares[0] + squares[1]) + (squares[2] + squares[3]))[0] / width + eps);
        ints size = {};
        for (int64_t i = 0; i < width; i += LANES) {
            vec x = (load(to + i) - mean) * inverse * load(weight + i) + load(shift + i);
            store(to + i, x);
            size = larger(size, x);
        }
        if (out->bytes) quantise_row(to, size, width, out->bytes + t * width, out->scale + t);
    }
}

/* Queries and vectors of keys that are processed together: their products fill the registers. */
#define QUERIES 8
#define KEYS 3
#define WIDE 2

/* scores[q][k..] = queries[q] . keys[k..], of QUERIES queries and `count` vectors of keys. */
INLINE void score(const float *queries, const float *keys, int64_t padded, int64_t head, int count, float *scores) {
    vec sums[QUERIES][KEYS] = {};
    for (int64_t d = 0; d < head; d++) {
        vec key[KEYS];
        for (int k = 0; k < count; k++) key[k] = load(keys + d * padded + k * LANES);
        for (int q = 0; q < QUERIES; q++)
            for (int k = 0; k < count; k++) sums[q][k] += queries[q * head + d] * key[k];
    }
    for (int q = 0; q < QUERIES; q++)
        for (int k = 0; k < count; k++) store(scores + q * padded + k * LANES, sums[q][k]);
}

/* sums[q] = the values, weighted by weights[q]; of QUERIES queries and `count` vectors of a value. */
INLINE void weigh(const float *weights, const float *values, int64_t length, int64_t padded, int64_t head,
                  int count, vec sums[QUERIES][WIDE]) {
    for (int64_t t = 0; t < length; t++) {
        vec value[WIDE];
        for (int w = 0; w < count; w++) value[w] = load(values + t * head + w * LANES);
        for (int q = 0; q < QUERIES; q++)
            for (int w = 0; w < count; w++) sums[q][w] += weights[q * padded + t] * value[w];
    }
}

/* One head of one text; its arrays are padded with zeros to whole vectors and to QUERIES rows. */
INLINE void attend_head(const float *queries, const float *keys, const float *values, const float *score_bias,
                        int64_t length, int64_t padded, int64_t head, int64_t head_dim, int64_t stride,
                        float *scores, float *context) {
    vec last;
    for (int i = 0; i < LANES; i++) last[i] = padded - LANES + i < length ? 0.0f : -__builtin_inff();
    for (int64_t first = 0; first < length; first += QUERIES) {
        int64_t rows = length - first < QUERIES ? length - first : QUERIES;
        int64_t k = 0;
        for (; k + KEYS * LANES <= padded; k += KEYS * LANES)
            score(queries + first * head, keys + k, padded, head, KEYS, scores + k);
        for (; k + 2 * LANES <= padded; k += 2 * LANES)
            score(queries + first * head, keys + k, padded, head, 2, scores + k);
        for (; k < padded; k += LANES) score(queries + first * head, keys + k, padded, head, 1, scores + k);
        if (score_bias)
            for (int64_t q = 0; q < rows; q++)
                for (int64_t t = 0; t < length; t++) scores[q * padded + t] += score_bias[(first + q) * length + t];
        /* All queries at once: none waits for another one's last step. */
        vec tops[QUERIES], totals[QUERIES] = {};
        for (int q = 0; q < QUERIES; q++) {
            float *end = scores + q * padded + padded - LANES;
            tops[q] = load(end) + last;
            store(end, tops[q]);
        }
        for (int64_t t = 0; t < padded - LANES; t += LANES)
            for (int q = 0; q < QUERIES; q++) tops[q] = largest(load(scores + q * padded + t), tops[q]);
        for (int q = 0; q < QUERIES; q++) tops[q] = largest_of(tops[q]) * LOG2_E;
        for (int64_t t = 0; t < padded; t += LANES)
            for (int q = 0; q < QUERIES; q++) {
                /* Scores far below the largest, as those of padding, add 1e-38, which is lost next to 1. */
                vec x = load(scores + q * padded + t) * LOG2_E - tops[q];
                vec e = power_of_two(x < -126.0f ? all(-126.0f) : x);
                store(scores + q * padded + t, e);
                totals[q] += e;
            }
        for (int q = 0; q < QUERIES; q++) totals[q] = 1.0f / sum_of(totals[q]);
        for (int64_t d = 0; d < head; d += WIDE * LANES) {
            vec sums[QUERIES][WIDE] = {};
            int count = head - d < WIDE * LANES ? 1 : WIDE;
            if (count == WIDE)
                weigh(scores, values + d, length, padded, head, WIDE, sums);
            else
                weigh(scores, values + d, length, padded, head, 1, sums);
            for (int64_t q = 0; q < rows; q++)
                for (int w = 0; w < count; w++) {
                    vec x = sums[q][w] * totals[q];
                    float *to = context + (first + q) * stride + d + w * LANES;
                    if (d + (w + 1) * LANES <= head_dim)
                        store(to, x);
                    else
                        for (int64_t i = 0; d + w * LANES + i < head_dim; i++) to[i] = x[i];
                }
        }
    }
}

INLINE int64_t rounded_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/* Copies one token's part of a head. */
INLINE void copy_head(float *to, const float *from, const float *scale, const float *bias, int64_t head_dim) {
    if (!scale) {
        __builtin_memcpy(to, from, sizeof(float) * head_dim);
        return;
    }
    int64_t d = 0;
    for (; d + LANES <= head_dim; d += LANES) store(to + d, load(from + d) * *scale + load(bias + d));
    for (; d < head_dim; d++) to[d] = from[d] * *scale + bias[d];
}

/* Numbers in a vector register. */
extern "C" int64_t embedkit_lanes(void) { return LANES; }

/* Size of the workspace of embedkit_attend for texts of up to `length` tokens, in numbers. */
extern "C" int64_t embedkit_attend_workspace(int64_t length, int64_t head_dim) {
    int64_t padded = rounded_up(length, LANES), head = rounded_up(head_dim, LANES);
    return (3 * padded + QUERIES + LANES) * head + QUERIES * padded;
}

/* Attention within packed texts.
 *
 * from: [T, 3 * heads * head_dim]: queries (scaled), keys, values.
 * out: [T, heads * head_dim].
 * workspace: see embedkit_attend_workspace.
 */
extern "C" void embedkit_attend(const Products *from, const Texts *texts, int64_t heads, int64_t head_dim,
                                const Rows *out, float *workspace) {
    const float *products = from->values, *scale = from->scale, *bias = from->bias;
    const float *const *biases = texts->biases;
    const int64_t *lengths = texts->lengths;
    float *context = out->values, *scale_out = out->scale;
    uint8_t *bytes = out->bytes;
    int64_t head = rounded_up(head_dim, LANES), width = heads * head_dim;
    for (int64_t text = 0; text < texts->count; text++) {
        int64_t length = lengths[text], padded = rounded_up(length, LANES);
        float *queries = workspace, *keys = queries + (padded + QUERIES) * head;
        float *values = keys + padded * head, *tile = values + padded * head, *scores = tile + LANES * head;
        /* The padding of a text stays zero for all of its heads. */
        if (!text || lengths[text - 1] != length)
            __builtin_memset(workspace, 0, sizeof(float) * embedkit_attend_workspace(length, head_dim));
        for (int64_t h = 0; h < heads; h++) {
            const float *at = products + h * head_dim, *add = bias ? bias + h * head_dim : nullptr;
            const float *add_key = bias ? add + width : nullptr, *add_value = bias ? add_key + width : nullptr;
            for (int64_t first = 0; first < length; first += LANES) {
                for (int64_t t = first; t < first + LANES; t++) {
                    float *key = tile + (t - first) * head;
                    if (t >= length) {
                        __builtin_memset(key, 0, sizeof(float) * head);
                        continue;
                    }
                    const float *token = at + t * 3 * width, *by = scale ? scale + t : nullptr;
                    copy_head(queries + t * head, token, by, add, head_dim);
                    copy_head(key, token + width, by, add_key, head_dim);
                    copy_head(values + t * head, token + 2 * width, by, add_value, head_dim);
                }
                for (int64_t d = 0; d < head; d += LANES) {
                    vec rows[LANES];
                    for (int i = 0; i < LANES; i++) rows[i] = load(tile + i * head + d);
                    transpose(rows);
                    for (int i = 0; i < LANES; i++) store(keys + (d + i) * padded + first, rows[i]);
                }
            }
            attend_head(queries, keys, values, biases ? biases[text] + h * length * length : nullptr, length, padded,
                        head, head_dim, width, scores, context + h * head_dim);
        }
        if (bytes) {
            quantise_rows(context, length, width, bytes, scale_out);
            bytes += length * width;
            scale_out += length;
        }
        products += length * 3 * width;
        context += length * width;
        if (scale) scale += length;
    }
}
