/* Attention within packed texts, as in attention.cpp, for models in int8 and bf16: queries, keys, values and the weights
 * of a softmax are rounded to bf16, and products are summed in fp32. Compiled for this processor by compile_kernels.py,
 * and called by kernels.py. */
#include "bf16_dots.h"

/* Size of the workspace of embedkit_bf16_attend for texts of up to `length` tokens and rows of projections of this width, in
 * words. */
extern "C" int64_t embedkit_bf16_attend_workspace(int64_t length, int64_t head_dim, int64_t width) {
    return TiledHead<Dots>::workspace_words(length, head_dim, width);
}

template <class Way>
static void attend_by(const Products *from, const Texts *texts, const Attention *rules, const Rows *out, float *workspace,
                      int64_t share, int64_t shares) {
    TiledHead<Way> of;
    of.begin(rules, workspace, from->width);
    attend(&of, from, texts, rules, out, share, shares);
}

/* Attention within packed texts; see embedkit_attend. Nothing is multiplied by distances. */
extern "C" void embedkit_bf16_attend(const Products *from, const Texts *texts, const Attention *rules, const Rows *out,
                                     float *workspace, int64_t share, int64_t shares) {
    [[maybe_unused]] const FlushedToZero flushed;
#if defined(TILES)
    if (has_tiles) {
        shape_tiles(2 * TILE_ROWS);
        attend_by<Tiles>(from, texts, rules, out, workspace, share, shares);
        release_tiles();
        return;
    }
#endif
    attend_by<Dots>(from, texts, rules, out, workspace, share, shares);
}

/* Whether this is faster here than attention in fp32. AMD's instruction for a vector is; Intel's takes as long as two of
 * fp32's, which leaves nothing for the rounding. */
extern "C" int64_t embedkit_bf16_attend_is_fast(void) {
#if defined(TILES)
    if (has_tiles) return 1;
#endif
#if defined(__AVX512BF16__)
    __builtin_cpu_init();
    return __builtin_cpu_is("amd") ? 1 : 0;
#else
    return 0;
#endif
}
