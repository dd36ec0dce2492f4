/* Matrix products of fp32: rows of activations times weights that are packed once.
 * Compiled for this processor by compile_kernels.py, and called by packed_products.py.
 *
 * Products are added in the order of the inputs, in blocks of 192, whose sums are added to the bias. So a result is the
 * same, to the bit, in any company of other rows, and with any instruction set that rounds a product and a sum together:
 * all of them have the same GROUPS. Tiles (split_products.h) have an order, and last bits, of their own.
 */
#if defined(__AVX512F__)
#define LANES 16
#define NAME "AVX-512"
#elif defined(__AVX2__) && defined(__FMA__)
#define LANES 8
#define NAME "AVX2"
/* 7 words are loaded for 12 products, and 8 with 6 rows of 2 vectors, which take 1 to 5 % longer. */
#define ROWS 4
#define VECTORS 3
#elif defined(__aarch64__)
#define LANES 4
#define NAME "NEON"
#else
#define LANES 4
#define NAME "plain C++"
#endif
/* The weights of a model are in the third cache or in memory: they are brought in ahead, and many rows share them. */
#define AHEAD 1
#define WORDS (1 << 18)
#define MOST_ROWS 128
#include "panels.h"
#if defined(__AMX_BF16__) && defined(__linux__)
#define SPLIT
#include "split_products.h"
#endif

struct Floats {
    typedef float Weight, Input;
    typedef float Part __attribute__((may_alias));
    typedef float Sum __attribute__((may_alias));
    typedef floats Sums;
    typedef floats_at SumsAt;
    static const int group = 1;
    static const bool adds_blocks = true;
    static const bool are_parts = true;
    static const bool starts_differ = false;
    INLINE Part part(Input x) { return x; }
    /* The compiler makes one instruction of both. */
    INLINE floats dot(floats sums, ints activations, ints weights) {
        return sums + (floats)activations * (floats)weights;
    }
    INLINE floats results(floats sums, const float *) { return sums; }
    INLINE float result(float sum, const float *) { return sum; }
};

/* The size of packed weights, in words. */
extern "C" int64_t embedkit_fp32_packed(int64_t outputs, int64_t inputs) {
#if defined(SPLIT)
    if (has_tiles) return split_packed_words(outputs, inputs);
#endif
    return packed_words<Floats>(outputs, inputs);
}

/* The size of the workspace of embedkit_fp32_multiply for n rows, in words. */
extern "C" int64_t embedkit_fp32_workspace(int64_t n, int64_t inputs) {
#if defined(SPLIT)
    if (has_tiles) return split_workspace_words(n, inputs);
#endif
    return workspace_words<Floats>(n, inputs);
}

/* Packs weights [outputs, inputs] and the bias of each output. */
extern "C" void embedkit_fp32_pack(const float *weights, const float *bias, int64_t outputs, int64_t inputs,
                                   int32_t *packed) {
#if defined(SPLIT)
    if (has_tiles) return split_pack(weights, bias, outputs, inputs, packed);
#endif
    pack<Floats>(weights, outputs, inputs, packed);
    for (int64_t o = 0; o < outputs; o++) __builtin_memcpy(start_of<Floats>(packed, o, inputs), bias + o, sizeof *bias);
}

/* Multiplies rows of floats; see Multiply. The products have the bias. */
extern "C" void embedkit_fp32_multiply(const void *rows, int64_t n, const Weights *of, int64_t share, int64_t shares,
                                       float *products, int32_t *workspace) {
#if defined(SPLIT)
    if (has_tiles) return split_multiply((const float *)rows, n, of, share, shares, products, workspace);
#endif
    multiply<Floats>(rows, n, of, share, shares, products, workspace);
}

/* The instructions that multiply here. */
extern "C" const char *embedkit_fp32_instructions(void) {
#if defined(SPLIT)
    if (has_tiles) return "AMX-BF16";
#endif
    return NAME;
}
