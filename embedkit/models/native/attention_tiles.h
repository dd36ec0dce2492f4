/* The products of tiled_attention.h by tiles of AMX, of any number of parts. */
#pragma once
#include "tiled_attention.h"

/* Loads one tile of rows, or two, into 4 and 5; and of columns, whose squares are `apart`, into 6 and 7. */
template <bool two> INLINE void load_rows(const int32_t *rows, int64_t row_words) {
    TILE_LOAD(4, rows, row_words * 4);
    if constexpr (two) TILE_LOAD(5, rows + TILE * row_words, row_words * 4);
}

template <bool wide> INLINE void load_columns(const int32_t *squares, int64_t apart) {
    TILE_LOAD(6, squares, TILE * 4);
    if constexpr (wide) TILE_LOAD(7, squares + apart, TILE * 4);
}

template <bool two, bool wide> INLINE void add_products() {
    TILE_DOT_BF16(0, 4, 6);
    if constexpr (wide) TILE_DOT_BF16(1, 4, 7);
    if constexpr (two) TILE_DOT_BF16(2, 5, 6);
    if constexpr (two && wide) TILE_DOT_BF16(3, 5, 7);
}

/* Two tiles of rows and two of columns go together: each that is loaded is multiplied twice. */
template <class Numbers> struct ByTiles : Numbers {
    using Numbers::key_block, Numbers::parts, Numbers::score_stride, Numbers::weight_stride;

    /* The sums of the products of rows, each of n words of tiles, and of columns, n squares that are `next` to each other. */
    template <bool two, bool wide, class Pause>
    INLINE void multiply(const int32_t *rows, int64_t row_words, int64_t part_words, const int32_t *squares, int64_t next,
                         int64_t apart, int64_t n, float *to, int64_t stride, Pause pause) {
        TILE_ZERO(0);
        TILE_ZERO(1);
        TILE_ZERO(2);
        TILE_ZERO(3);
        for (int64_t i = 0; i < n; i++, rows += TILE, squares += next)
            Numbers::template add_step<two, wide>(rows, row_words, part_words, squares, apart, pause);
        TILE_STORE(0, to, stride * 4);
        if constexpr (wide) TILE_STORE(1, to + TILE, stride * 4);
        if constexpr (two) TILE_STORE(2, to + TILE * stride, stride * 4);
        if constexpr (two && wide) TILE_STORE(3, to + TILE * stride + TILE, stride * 4);
    }

    template <bool two, class Pause>
    INLINE void score_tiles(const int32_t *queries, const int32_t *keys, int64_t half, int64_t n, float *scores, Pause pause) {
        const int64_t panel = parts * half * TILE, row = parts * half, next = parts * SQUARE, steps = half / TILE;
        for (; n > 1; n -= 2, keys += 2 * panel, scores += 2 * TILE)
            multiply<two, true>(queries, row, half, keys, next, panel, steps, scores, score_stride, pause);
        if (n) multiply<two, false>(queries, row, half, keys, next, panel, steps, scores, score_stride, pause);
    }

    /* scores[q][k] = queries[q] . keys[k], of `count` queries and n panels of keys; `half` is the words of a head. */
    template <class Pause>
    INLINE void score(const int32_t *queries, int64_t count, const int32_t *keys, int64_t half, int64_t n, float *scores,
                      Pause pause) {
        if (count > TILE) score_tiles<true>(queries, keys, half, n, scores, pause);
        else score_tiles<false>(queries, keys, half, n, scores, pause);
    }

    template <bool two, class Pause>
    INLINE void weigh_tiles(const int32_t *weights, const int32_t *values, int64_t head, int64_t n, float *sums,
                            float *totals, const ints *ones, Pause pause) {
        const int64_t block = parts * head * TILE, square = parts * SQUARE;
        for (int64_t d = 0; d < head; d += PAIRS, values += 2 * square)
            multiply<two, true>(weights, weight_stride, key_block / 2, values, block, square, n, sums + d, head, pause);
        if constexpr (!Numbers::adds_weights)
            multiply<two, false>(weights, weight_stride, key_block / 2, (const int32_t *)ones, 0, 0, n, totals, TILE, pause);
    }

    /* sums[q] = the values of n blocks, weighted by weights[q]: [count, head]; and all of totals[q] = the sum of the weights,
     * unless these are added while they are made. */
    template <class Pause>
    INLINE void weigh(const int32_t *weights, int64_t count, const int32_t *values, int64_t head, int64_t n, float *sums,
                      vec *totals, const ints *ones, Pause pause) {
        if (count > TILE) weigh_tiles<true>(weights, values, head, n, sums, (float *)totals, ones, pause);
        else weigh_tiles<false>(weights, values, head, n, sums, (float *)totals, ones, pause);
    }

    /* The pauses in the scores and in the sums of n panels of keys. */
    INLINE int64_t pauses(int64_t head, int64_t n) { return 2 * Numbers::pauses_of_step * ((n + 1) / 2) * (head / PAIRS); }
};
