/* Matrix products of bytes: rows of activations, quantised as in kernels.cpp, times weights that are packed once.
 * Compiled for this processor by compile_kernels.py, and called by int8_products.py.
 *
 * Sums are exact in 32 bits (for up to 130,000 inputs), so a result is the same, to the bit, with any instruction set
 * and in any company of other rows.
 *
 * A word of 32 bits holds GROUP inputs. An instruction adds, to each of LANES sums, the dot product of its word of
 * weights and of a word of activations that all sums share.
 */
#include "structs.h"

/* Intrinsics for AVX2 and SSE2 are left out: to read this header takes three times as long as to compile the rest. */
#if defined(__AVX512BW__) || defined(__AVXVNNI__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

#define INLINE static inline __attribute__((always_inline))

#if defined(__AVX512BW__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif

/* Rows and vectors of outputs whose sums are in registers together: of 32 registers or of 16. */
#if defined(__AVX512BW__) || defined(__aarch64__)
#define ROWS 8
#define VECTORS 3
#else
#define ROWS 6
#define VECTORS 2
#endif
#define OUTPUTS (VECTORS * LANES)

typedef int32_t ints __attribute__((vector_size(LANES * 4), may_alias));
typedef int32_t word __attribute__((may_alias, aligned(1)));
typedef int32_t ints_at __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef float floats __attribute__((vector_size(LANES * 4)));
typedef float floats_at __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

/* SHIFT is added to activations: 128 where an instruction takes unsigned ones. */
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define NAME "AVX-512 VNNI"
#define GROUP 4
#define SHIFT 128
INLINE ints dot(ints sums, ints activations, ints weights) {
    return (ints)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)activations, (__m512i)weights);
}
#elif defined(__AVXVNNI__)
#define NAME "AVX-VNNI"
#define GROUP 4
#define SHIFT 128
INLINE ints dot(ints sums, ints activations, ints weights) {
    return (ints)_mm256_dpbusd_avx_epi32((__m256i)sums, (__m256i)activations, (__m256i)weights);
}
#elif defined(__ARM_FEATURE_DOTPROD)
#define NAME "ARM dot products"
#define GROUP 4
#define SHIFT 0
INLINE ints dot(ints sums, ints activations, ints weights) {
    return (ints)vdotq_s32((int32x4_t)sums, (int8x16_t)activations, (int8x16_t)weights);
}
#elif defined(__SSE2__)
/* Without such an instruction: products of 16 bits, which cannot overflow. */
#define GROUP 2
#define SHIFT 0
#if LANES == 16
#define NAME "AVX-512"
#elif LANES == 8
#define NAME "AVX2"
#else
#define NAME "SSE2"
#endif
typedef int16_t halves __attribute__((vector_size(LANES * 4)));
INLINE ints dot(ints sums, ints activations, ints weights) {
#if LANES == 16
    return sums + (ints)_mm512_madd_epi16((__m512i)activations, (__m512i)weights);
#elif LANES == 8
    return sums + (ints)__builtin_ia32_pmaddwd256((halves)activations, (halves)weights);
#else
    return sums + (ints)__builtin_ia32_pmaddwd128((halves)activations, (halves)weights);
#endif
}
#else
#define NAME "plain C++"
#define GROUP 1
#define SHIFT 0
INLINE ints dot(ints sums, ints activations, ints weights) { return sums + activations * weights; }
#endif

#if GROUP == 4
typedef int8_t part __attribute__((may_alias));
#elif GROUP == 2
typedef int16_t part __attribute__((may_alias));
#else
typedef int32_t part __attribute__((may_alias));
#endif

/* Groups of a panel of weights that stay in the first cache while all rows pass. */
#ifndef GROUPS
#define GROUPS 192
#endif
/* Words of activations that stay in the second. */
#ifndef WORDS
#define WORDS (1 << 16)
#endif

/* A panel has the weights of OUTPUTS outputs: first what their sums start from, then a word for each group. */
INLINE int64_t groups_of(int64_t inputs) { return (inputs + GROUP - 1) / GROUP; }
INLINE int64_t panel_words(int64_t inputs) { return (1 + groups_of(inputs)) * OUTPUTS; }
INLINE int64_t panels_of(int64_t outputs) { return (outputs + OUTPUTS - 1) / OUTPUTS; }

/* Whether bytes are words already. */
INLINE bool are_words(int64_t inputs) { return GROUP == 4 && SHIFT == 128 && inputs % GROUP == 0; }

/* Rows of activations that are multiplied together. */
INLINE int64_t rows_at_once(int64_t n, int64_t inputs) {
    int64_t most = WORDS / groups_of(inputs) / ROWS * ROWS;
    if (most < ROWS) most = ROWS;
    return n < most ? n : most;
}

/* The size of packed weights, in words. */
extern "C" int64_t embedkit_int8_packed(int64_t outputs, int64_t inputs) {
    return panels_of(outputs) * panel_words(inputs);
}

/* The size of the workspace of embedkit_int8_multiply for n rows, in words. */
extern "C" int64_t embedkit_int8_workspace(int64_t n, int64_t inputs) {
    return rows_at_once(n, inputs) * (groups_of(inputs) + OUTPUTS);
}

/* Packs weights [outputs, inputs], from -127 to 127. */
extern "C" void embedkit_int8_pack(const int8_t *weights, int64_t outputs, int64_t inputs, int32_t *packed) {
    int64_t words = embedkit_int8_packed(outputs, inputs);
    for (int64_t i = 0; i < words; i++) packed[i] = 0;
    for (int64_t o = 0; o < outputs; o++) {
        int32_t *panel = packed + o / OUTPUTS * panel_words(inputs) + o % OUTPUTS;
        for (int64_t i = 0; i < inputs; i++) {
            part *word = (part *)(panel + (1 + i / GROUP) * OUTPUTS);
            int8_t weight = weights[o * inputs + i];
            __builtin_memcpy(word + i % GROUP, &(const part &)(part)weight, sizeof(part));
            panel[0] -= SHIFT * weight;
        }
    }
}

/* Part of the sums of some rows and of a panel of outputs. */
struct Tile {
    const int32_t *activations; /* of the first row; rows are `stride` words apart */
    int64_t stride;
    const int32_t *weights;
    int64_t groups;
    const int32_t *from; /* what the sums start from: rows are `step` apart */
    int64_t step;
    int32_t *to;         /* the sums, OUTPUTS a row; or, if nullptr: */
    float *products;     /* the sums times `scale`; rows are `outputs` apart */
    const float *scale;
    int64_t outputs;
};

template <int rows> static void add_products(const Tile *tile) {
    const int64_t stride = tile->stride, groups = tile->groups;
    const int32_t *activations = tile->activations, *weights = tile->weights;
    ints sums[rows][VECTORS];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECTORS; v++) sums[r][v] = *(const ints_at *)(tile->from + r * tile->step + v * LANES);
    for (int64_t g = 0; g < groups; g++) {
        ints of_weights[VECTORS];
        for (int v = 0; v < VECTORS; v++) of_weights[v] = *(const ints_at *)(weights + g * OUTPUTS + v * LANES);
        for (int r = 0; r < rows; r++) {
            ints shared = activations[r * stride + g] - ints{};
            for (int v = 0; v < VECTORS; v++) sums[r][v] = dot(sums[r][v], shared, of_weights[v]);
        }
    }
    if (tile->to) {
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < VECTORS; v++) *(ints_at *)(tile->to + r * OUTPUTS + v * LANES) = sums[r][v];
        return;
    }
    for (int v = 0; v < VECTORS; v++) {
        floats scale = *(const floats_at *)(tile->scale + v * LANES);
        for (int r = 0; r < rows; r++)
            *(floats_at *)(tile->products + r * tile->outputs + v * LANES) = __builtin_convertvector(sums[r][v], floats) * scale;
    }
}

/* The same for 1 to `rows` rows. */
template <int rows = ROWS> static void add_some(int64_t count, const Tile *tile) {
    if constexpr (rows > 1)
        if (count < rows) return add_some<rows - 1>(count, tile);
    add_products<rows>(tile);
}

/* Writes n rows of bytes as words. */
static void widen(const uint8_t *__restrict bytes, int64_t n, int64_t inputs, int32_t *__restrict words) {
    int64_t groups = groups_of(inputs);
    for (int64_t t = 0; t < n; t++) {
        const uint8_t *row = bytes + t * inputs;
        part *to = (part *)(words + t * groups);
        for (int64_t i = 0; i < inputs; i++) to[i] = (part)(row[i] - (128 - SHIFT));
        for (int64_t i = inputs; i < groups * GROUP; i++) to[i] = 0;
    }
}

/* Multiplies rows of bytes [n, inputs], 128 for 0; see Multiply. */
extern "C" void embedkit_int8_multiply(const void *bytes, int64_t n, const Weights *of, int64_t share, int64_t shares,
                                       float *products, int32_t *workspace) {
    const int64_t inputs = of->inputs, outputs = of->outputs, groups = groups_of(inputs), at_once = rows_at_once(n, inputs);
    const int64_t first = panels_of(outputs) * share / shares, last = panels_of(outputs) * (share + 1) / shares;
    int32_t *sums = workspace + at_once * groups;
    for (int64_t begin = 0; begin < n; begin += at_once) {
        const int64_t rows = n - begin < at_once ? n - begin : at_once;
        const uint8_t *some_bytes = (const uint8_t *)bytes + begin * inputs;
        const int32_t *words = are_words(inputs) ? (const word *)some_bytes : workspace;
        if (!are_words(inputs)) widen(some_bytes, rows, inputs, workspace);
        for (int64_t p = first; p < last; p++) {
            const int32_t *panel = of->packed + p * panel_words(inputs), *weights = panel + OUTPUTS;
            const int64_t at = p * OUTPUTS, count = outputs - at;
            const float *scale = of->scale + at;
            float *to = products + begin * outputs + at;
            for (int64_t g = 0; g < groups; g += GROUPS) {
                /* The last sums of a whole panel are scaled while they are in registers. */
                const bool scales = g + GROUPS >= groups && count >= OUTPUTS;
                for (int64_t t = 0; t < rows; t += ROWS) {
                    int32_t *of_rows = sums + t * OUTPUTS;
                    Tile tile = {words + t * groups + g, groups, weights + g * OUTPUTS, groups - g < GROUPS ? groups - g : GROUPS,
                                 g ? of_rows : panel, g ? OUTPUTS : 0, scales ? nullptr : of_rows,
                                 to + t * outputs, scale, outputs};
                    add_some(rows - t, &tile);
                }
            }
            if (count < OUTPUTS)
                for (int64_t t = 0; t < rows; t++)
                    for (int64_t o = 0; o < count; o++) to[t * outputs + o] = (float)sums[t * OUTPUTS + o] * scale[o];
        }
    }
}

/* The instructions that multiply here. */
extern "C" const char *embedkit_int8_instructions(void) { return NAME; }
