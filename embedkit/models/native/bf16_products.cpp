/* Matrix products of bf16: rows of activations, rounded as in kernels.cpp, times weights that are packed once.
 * Compiled for this processor by compile_kernels.py, and called by bf16_products.py.
 *
 * Sums are in fp32 and begin with the bias; products are added in the order of the inputs. So a result is the same, to
 * the bit, in any company of other rows.
 *
 * A word of 32 bits holds two inputs. The instruction adds, to each of LANES sums, the two products of its word of
 * weights and of a word of activations that all sums share.
 */
#include <stdint.h>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

#define LANES 16
/* Rows and vectors of outputs whose sums are in registers together. */
#define ROWS 8
#define VECTORS 3
#define OUTPUTS (VECTORS * LANES)

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef uint32_t words __attribute__((vector_size(LANES * 4)));
typedef float vec_at __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint32_t words_at __attribute__((vector_size(LANES * 4), aligned(2), may_alias));
typedef uint32_t word_at __attribute__((aligned(2), may_alias));

#if defined(__AVX512BF16__)
#define NAME "AVX512-BF16"
INLINE vec dot(vec sums, words activations, words weights) {
    return (vec)_mm512_dpbf16_ps((__m512)sums, (__m512bh)activations, (__m512bh)weights);
}
#else
/* The same for tests, at a fraction of the speed: a product of two numbers of bf16 is exact in fp32. */
#define NAME "plain C++"
INLINE vec dot(vec sums, words activations, words weights) {
    sums += (vec)(activations & 0xffff0000u) * (vec)(weights & 0xffff0000u);
    return sums + (vec)(activations << 16) * (vec)(weights << 16);
}
#endif

/* Words of a panel of weights, for each output, that stay in the first cache while all rows pass. */
#ifndef DEPTH
#define DEPTH 192
#endif
/* Words of activations that stay in the second. */
#ifndef WORDS
#define WORDS (1 << 16)
#endif

/* A panel has the weights of OUTPUTS outputs: first the bias of each, then a word of each for every two inputs. */
INLINE int64_t panel_words(int64_t inputs) { return (1 + inputs / 2) * OUTPUTS; }
INLINE int64_t panels_of(int64_t outputs) { return (outputs + OUTPUTS - 1) / OUTPUTS; }

/* Rows of activations that are multiplied together. */
INLINE int64_t rows_at_once(int64_t n, int64_t inputs) {
    int64_t most = WORDS / (inputs / 2) / ROWS * ROWS;
    if (most < ROWS) most = ROWS;
    return n < most ? n : most;
}

/* The number of panels of packed weights. */
extern "C" int64_t embedkit_bf16_panels(int64_t outputs) { return panels_of(outputs); }

/* The size of packed weights, in words. */
extern "C" int64_t embedkit_bf16_packed(int64_t outputs, int64_t inputs) {
    return panels_of(outputs) * panel_words(inputs);
}

/* The size of the workspace of embedkit_bf16_multiply for n rows, in numbers. */
extern "C" int64_t embedkit_bf16_workspace(int64_t n, int64_t inputs) { return rows_at_once(n, inputs) * OUTPUTS; }

/* Packs weights [outputs, inputs] of bf16 and their bias; the number of inputs is even. */
extern "C" void embedkit_bf16_pack(const uint16_t *weights, const float *bias, int64_t outputs, int64_t inputs,
                                   uint32_t *packed) {
    __builtin_memset(packed, 0, sizeof(uint32_t) * embedkit_bf16_packed(outputs, inputs));
    for (int64_t o = 0; o < outputs; o++) {
        uint32_t *panel = packed + o / OUTPUTS * panel_words(inputs) + o % OUTPUTS;
        __builtin_memcpy(panel, bias + o, sizeof *bias);
        for (int64_t i = 0; i < inputs; i += 2)
            panel[(1 + i / 2) * OUTPUTS] = *(const word_at *)(weights + o * inputs + i);
    }
}

/* Adds the products of a tile to its sums. Rows of activations are `stride` numbers apart, those of the sums `step`
 * and `to_step`. */
template <int rows>
static void add_products(const uint16_t *activations, int64_t stride, const uint32_t *weights, int64_t depth,
                         const float *from, int64_t step, float *to, int64_t to_step) {
    vec sums[rows][VECTORS];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECTORS; v++) sums[r][v] = *(const vec_at *)(from + r * step + v * LANES);
    for (int64_t d = 0; d < depth; d++) {
        words of_weights[VECTORS];
        for (int v = 0; v < VECTORS; v++) of_weights[v] = *(const words_at *)(weights + d * OUTPUTS + v * LANES);
        for (int r = 0; r < rows; r++) {
            words shared = *(const word_at *)(activations + r * stride + 2 * d) - words{};
            for (int v = 0; v < VECTORS; v++) sums[r][v] = dot(sums[r][v], shared, of_weights[v]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECTORS; v++) *(vec_at *)(to + r * to_step + v * LANES) = sums[r][v];
}

/* The same for 1 to `rows` rows. */
template <int rows = ROWS>
static void add_some(int64_t count, const uint16_t *activations, int64_t stride, const uint32_t *weights,
                     int64_t depth, const float *from, int64_t step, float *to, int64_t to_step) {
    if constexpr (rows > 1)
        if (count < rows)
            return add_some<rows - 1>(count, activations, stride, weights, depth, from, step, to, to_step);
    add_products<rows>(activations, stride, weights, depth, from, step, to, to_step);
}

/* Multiplies rows of bf16 [n, inputs] with the weights of the panels [first, last).
 *
 * products: [n, outputs], with the bias.
 * workspace: see embedkit_bf16_workspace.
 */
extern "C" void embedkit_bf16_multiply(const uint16_t *activations, int64_t n, int64_t inputs, const uint32_t *packed,
                                       int64_t outputs, int64_t first, int64_t last, float *products,
                                       float *workspace) {
    int64_t depth = inputs / 2, at_once = rows_at_once(n, inputs);
    for (int64_t begin = 0; begin < n; begin += at_once) {
        int64_t rows = n - begin < at_once ? n - begin : at_once;
        for (int64_t p = first; p < last; p++) {
            const uint32_t *panel = packed + p * panel_words(inputs), *weights = panel + OUTPUTS;
            int64_t at = p * OUTPUTS, count = outputs - at < OUTPUTS ? outputs - at : OUTPUTS;
            /* The last panel may be wider than the result. */
            float *result = products + begin * outputs + at, *sums = count == OUTPUTS ? result : workspace;
            int64_t step = count == OUTPUTS ? outputs : OUTPUTS;
            for (int64_t d = 0; d < depth; d += DEPTH)
                for (int64_t t = 0; t < rows; t += ROWS)
                    add_some(rows - t, activations + (begin + t) * inputs + 2 * d, inputs, weights + d * OUTPUTS,
                             depth - d < DEPTH ? depth - d : DEPTH, d ? sums + t * step : (const float *)panel,
                             d ? step : 0, sums + t * step, step);
            if (count < OUTPUTS)
                for (int64_t t = 0; t < rows; t++)
                    __builtin_memcpy(result + t * outputs, workspace + t * OUTPUTS, sizeof(float) * count);
        }
    }
}

/* The instructions that multiply here. */
extern "C" const char *embedkit_bf16_instructions(void) { return NAME; }
