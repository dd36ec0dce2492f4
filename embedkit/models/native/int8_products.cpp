/* Matrix products of bytes: rows of activations, quantised as in kernels.cpp, times weights that are packed once.
 * Compiled for this processor by compile_kernels.py, and called by int8_products.py.
 *
 * Sums are exact in 32 bits (for up to 130,000 inputs), so a result is the same, to the bit, with any instruction set
 * and in any company of other rows.
 *
 * A word of 32 bits holds GROUP inputs. An instruction adds, to each of LANES sums, the dot product of its word of
 * weights and of a word of activations that all sums share.
 */
#include <stdint.h>

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
typedef int32_t ints_at __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
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

/* Adds the products of a tile to its sums. Rows of activations are `stride` words apart; `from` has a row of sums every
 * `step`, and `to` every OUTPUTS. */
template <int rows>
static void add_products(const int32_t *activations, int64_t stride, const int32_t *weights, int64_t groups,
                         const int32_t *from, int64_t step, int32_t *to) {
    ints sums[rows][VECTORS];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECTORS; v++) sums[r][v] = *(const ints_at *)(from + r * step + v * LANES);
    for (int64_t g = 0; g < groups; g++) {
        ints of_weights[VECTORS];
        for (int v = 0; v < VECTORS; v++) of_weights[v] = *(const ints_at *)(weights + g * OUTPUTS + v * LANES);
        for (int r = 0; r < rows; r++) {
            ints shared = activations[r * stride + g] - ints{};
            for (int v = 0; v < VECTORS; v++) sums[r][v] = dot(sums[r][v], shared, of_weights[v]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECTORS; v++) *(ints_at *)(to + r * OUTPUTS + v * LANES) = sums[r][v];
}

/* The same for 1 to `rows` rows. */
template <int rows = ROWS>
static void add_some(int64_t count, const int32_t *activations, int64_t stride, const int32_t *weights,
                     int64_t groups, const int32_t *from, int64_t step, int32_t *to) {
    if constexpr (rows > 1)
        if (count < rows) return add_some<rows - 1>(count, activations, stride, weights, groups, from, step, to);
    add_products<rows>(activations, stride, weights, groups, from, step, to);
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

/* Multiplies rows of bytes [n, inputs], 128 for 0, with the weights of the panels [first, last).
 *
 * products: [n, outputs]: each exact sum times the scale of its output.
 * workspace: see embedkit_int8_workspace.
 */
extern "C" void embedkit_int8_multiply(const uint8_t *bytes, int64_t n, int64_t inputs, const int32_t *packed,
                                       const float *scale, int64_t outputs, int64_t first, int64_t last,
                                       float *products, int32_t *workspace) {
    int64_t groups = groups_of(inputs), at_once = rows_at_once(n, inputs);
    int32_t *sums = workspace + at_once * groups;
    for (int64_t begin = 0; begin < n; begin += at_once) {
        int64_t rows = n - begin < at_once ? n - begin : at_once;
        widen(bytes + begin * inputs, rows, inputs, workspace);
        for (int64_t p = first; p < last; p++) {
            const int32_t *panel = packed + p * panel_words(inputs), *weights = panel + OUTPUTS;
            for (int64_t g = 0; g < groups; g += GROUPS) {
                int64_t some = groups - g < GROUPS ? groups - g : GROUPS;
                for (int64_t t = 0; t < rows; t += ROWS)
                    add_some(rows - t, workspace + t * groups + g, groups, weights + g * OUTPUTS, some,
                             g ? sums + t * OUTPUTS : panel, g ? OUTPUTS : 0, sums + t * OUTPUTS);
            }
            int64_t at = p * OUTPUTS, count = outputs - at < OUTPUTS ? outputs - at : OUTPUTS;
            for (int64_t t = 0; t < rows; t++) {
                float *to = products + (begin + t) * outputs + at;
                for (int64_t o = 0; o < count; o++) to[o] = (float)sums[t * OUTPUTS + o] * scale[at + o];
            }
        }
    }
}

/* The number of panels of packed weights. */
extern "C" int64_t embedkit_int8_panels(int64_t outputs) { return panels_of(outputs); }

/* The instructions that multiply here. */
extern "C" const char *embedkit_int8_instructions(void) { return NAME; }
