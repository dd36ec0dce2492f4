/* Matrix products of bytes: rows of activations, quantised as in kernels.cpp, times weights that are packed once.
 * Compiled for this processor by compile_kernels.py, and called by packed_products.py.
 *
 * Sums are exact in 32 bits (for up to 130,000 inputs), so a result is the same, to the bit, with any instruction set
 * and in any company of other rows.
 */

/* Intrinsics for AVX2 and SSE2 are left out: to read this header takes three times as long as to compile the rest. */
#if defined(__AVX512BW__) || defined(__AVXVNNI__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

#if defined(__AVX512BW__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif
#if defined(__AMX_INT8__) && defined(__linux__)
#define TILE_DOT TILE_DOT_BYTES
#elif LANES == 8 && !defined(__AVXVNNI__)
/* Products take long enough for the next weights to come in. */
#define AHEAD 1
/* Of 16 registers, one has ones and one has products before they are added. */
#define ROWS 3
#define VECTORS 3
#endif
#include "panels.h"

/* SHIFT is added to activations: 128 where an instruction takes unsigned ones. */
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define NAME "AVX-512 VNNI"
#define GROUP 4
#define SHIFT 128
INLINE ints add_dot(ints sums, ints activations, ints weights) {
    return (ints)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)activations, (__m512i)weights);
}
#elif defined(__AVXVNNI__)
#define NAME "AVX-VNNI"
#define GROUP 4
#define SHIFT 128
INLINE ints add_dot(ints sums, ints activations, ints weights) {
    return (ints)_mm256_dpbusd_avx_epi32((__m256i)sums, (__m256i)activations, (__m256i)weights);
}
#elif defined(__ARM_FEATURE_DOTPROD)
#define NAME "ARM dot products"
#define GROUP 4
#define SHIFT 0
INLINE ints add_dot(ints sums, ints activations, ints weights) {
    return (ints)vdotq_s32((int32x4_t)sums, (int8x16_t)activations, (int8x16_t)weights);
}
#elif defined(__AVX2__)
#include "pairs_of_bytes.h"
#define GROUP 4
#define SHIFT 0
#if LANES == 16
#define NAME "AVX-512"
#else
#define NAME "AVX2"
#endif
INLINE ints add_dot(ints sums, ints activations, ints weights) { return add_pairs(sums, activations, weights); }
#elif defined(__SSE2__)
/* Without such an instruction: products of 16 bits, which cannot overflow. */
#define NAME "SSE2"
#define GROUP 2
#define SHIFT 0
typedef int16_t halves __attribute__((vector_size(LANES * 4)));
INLINE ints add_dot(ints sums, ints activations, ints weights) {
    return sums + (ints)__builtin_ia32_pmaddwd128((halves)activations, (halves)weights);
}
#else
#define NAME "plain C++"
#define GROUP 1
#define SHIFT 0
INLINE ints add_dot(ints sums, ints activations, ints weights) { return sums + activations * weights; }
#endif

#if GROUP == 4
typedef int8_t part_of_word __attribute__((may_alias));
#elif GROUP == 2
typedef int16_t part_of_word __attribute__((may_alias));
#else
typedef int32_t part_of_word __attribute__((may_alias));
#endif

struct Bytes {
    typedef int8_t Weight;
    typedef uint8_t Input; /* 128 for 0 */
    typedef part_of_word Part;
    typedef int32_t Sum __attribute__((may_alias));
    typedef ints Sums;
    typedef ints_at SumsAt;
    static const int group = GROUP;
    static const bool adds_blocks = false;
    static const bool are_parts = GROUP == 4 && SHIFT == 128;
#if defined(PAIRS)
    static const bool starts_differ = true;
    INLINE int64_t beside_words(int64_t n, int64_t groups) { return bounded_words(n, groups); }
    static void prepare(const Input *rows, int64_t n, int64_t inputs, int32_t *words, int32_t *beside) {
        bound_rows(rows, n, inputs, words, beside);
    }
    static void start(const int32_t *beside, int64_t n, const int32_t *weights, Sum *sums) {
        start_rows(beside, n, weights, sums);
    }
#else
    static const bool starts_differ = false;
#endif
    INLINE Part part(Input x) { return (Part)(x - (128 - SHIFT)); }
    INLINE ints dot(ints sums, ints activations, ints weights) { return add_dot(sums, activations, weights); }
    INLINE floats results(ints sums, const float *scale) {
        return __builtin_convertvector(sums, floats) * *(const floats_at *)scale;
    }
    INLINE float result(int32_t sum, const float *scale) { return (float)sum * *scale; }
};

/* The size of packed weights, in words. */
extern "C" int64_t embedkit_int8_packed(int64_t outputs, int64_t inputs) { return packed_words<Bytes>(outputs, inputs); }

/* The size of the workspace of embedkit_int8_multiply for n rows, in words. */
extern "C" int64_t embedkit_int8_workspace(int64_t n, int64_t inputs) { return workspace_words<Bytes>(n, inputs); }

/* Packs weights [outputs, inputs], from -127 to 127. */
extern "C" void embedkit_int8_pack(const int8_t *weights, int64_t outputs, int64_t inputs, int32_t *packed) {
    pack<Bytes>(weights, outputs, inputs, packed);
    for (int64_t o = 0; o < outputs; o++)
        for (int64_t i = 0; i < inputs; i++) *start_of<Bytes>(packed, o, inputs) -= SHIFT * weights[o * inputs + i];
#if defined(PAIRS)
    shift_weights(packed, packed_words<Bytes>(outputs, inputs));
#endif
}

/* Multiplies rows of bytes, 128 for 0; see Multiply. */
extern "C" void embedkit_int8_multiply(const void *rows, int64_t n, const Weights *of, int64_t share, int64_t shares,
                                       float *products, int32_t *workspace) {
    multiply<Bytes>(rows, n, of, share, shares, products, workspace);
}

/* The same, but writes sums instead of products; nullptr if that is not faster. */
#if defined(TILE_DOT)
static void sum_bytes(const void *rows, int64_t n, const Weights *of, int64_t share, int64_t shares, float *products,
                      int32_t *workspace) {
    multiply<Bytes, false>(rows, n, of, share, shares, products, workspace);
}
#endif
extern "C" Multiply *embedkit_int8_sums(void) {
#if defined(TILE_DOT)
    if (has_tiles) return sum_bytes;
#endif
    return nullptr;
}

/* The instructions that multiply here. */
extern "C" const char *embedkit_int8_instructions(void) {
#if defined(TILE_DOT)
    if (has_tiles) return "AMX-INT8";
#endif
    return NAME;
}
