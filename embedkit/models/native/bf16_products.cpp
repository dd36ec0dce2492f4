/* Matrix products of bf16: rows of activations, rounded as in kernels.cpp, times weights that are packed once.
 * Compiled for this processor by compile_kernels.py, and called by packed_products.py.
 *
 * Sums are in fp32 and begin with the bias; products are added in the order of the inputs. So a result is the same, to
 * the bit, in any company of other rows.
 */
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#define LANES 16
#if defined(__AMX_BF16__) && defined(__linux__)
#define TILE_DOT TILE_DOT_BF16
#endif
#include "panels.h"

struct Halves {
    typedef uint16_t Weight, Input;
    typedef uint16_t Part __attribute__((may_alias));
    typedef float Sum __attribute__((may_alias));
    typedef floats Sums;
    typedef floats_at SumsAt;
    static const int group = 2;
    static const bool adds_blocks = false;
    static const bool are_parts = true;
    static const bool starts_differ = false;
    INLINE Part part(Input x) { return x; }
    INLINE floats results(floats sums, const float *) { return sums; }
    INLINE float result(float sum, const float *) { return sum; }
#if defined(__AVX512BF16__)
#define NAME "AVX512-BF16"
    INLINE floats dot(floats sums, ints activations, ints weights) {
        return (floats)_mm512_dpbf16_ps((__m512)sums, (__m512bh)activations, (__m512bh)weights);
    }
#else
/* The same for tests, at a fraction of the speed: a product of two numbers of bf16 is exact in fp32. */
#define NAME "plain C++"
    INLINE floats dot(floats sums, ints activations, ints weights) {
        sums += (floats)(activations & ~0xffff) * (floats)(weights & ~0xffff);
        return sums + (floats)(activations << 16) * (floats)(weights << 16);
    }
#endif
};

/* The size of packed weights, in words. */
extern "C" int64_t embedkit_bf16_packed(int64_t outputs, int64_t inputs) { return packed_words<Halves>(outputs, inputs); }

/* The size of the workspace of embedkit_bf16_multiply for n rows, in words. */
extern "C" int64_t embedkit_bf16_workspace(int64_t n, int64_t inputs) { return workspace_words<Halves>(n, inputs); }

/* Packs weights [outputs, inputs] of bf16 and the bias of each output. */
extern "C" void embedkit_bf16_pack(const uint16_t *weights, const float *bias, int64_t outputs, int64_t inputs,
                                   int32_t *packed) {
    pack<Halves>(weights, outputs, inputs, packed);
    for (int64_t o = 0; o < outputs; o++) __builtin_memcpy(start_of<Halves>(packed, o, inputs), bias + o, sizeof *bias);
}

/* Multiplies rows of bf16; see Multiply. The products have the bias. */
extern "C" void embedkit_bf16_multiply(const void *rows, int64_t n, const Weights *of, int64_t share, int64_t shares,
                                       float *products, int32_t *workspace) {
    multiply<Halves>(rows, n, of, share, shares, products, workspace);
}

/* The same, straight to where the products go; nullptr if that is not faster. */
#if defined(TILE_DOT)
static void multiply_halves(const void *rows, int64_t n, const Weights *of, int64_t share, int64_t shares, float *products,
                            int32_t *workspace) {
    multiply<Halves, false>(rows, n, of, share, shares, products, workspace);
}
#endif
extern "C" Multiply *embedkit_bf16_sums(void) {
#if defined(TILE_DOT)
    if (has_tiles) return multiply_halves;
#endif
    return nullptr;
}

/* The instructions that multiply here. */
extern "C" const char *embedkit_bf16_instructions(void) {
#if defined(TILE_DOT)
    if (has_tiles) return "AMX-BF16";
#endif
    return NAME;
}
