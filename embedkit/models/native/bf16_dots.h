/* The products of bf16_attention.cpp: scores of queries and keys, and sums of weighted values, of 16 queries at a time.
 *
 * A word of 32 bits holds two numbers of bf16. An instruction adds, to each of 16 sums, the products of its word and of
 * one that all sums share; with AMX, of 16 rows of each at once.
 *
 * Keys lie in panels of TILE: [head / 2][TILE] words of neighbouring numbers. Values lie in blocks of PAIRS tokens:
 * [head / TILE][TILE][TILE] words, word d of row i of tokens i and i + TILE. Rows of queries and of weights are in the
 * same order. */
#pragma once
#if defined(__AVX512DQ__)
#include <immintrin.h>
#endif

#define LANES 16
#include "attention.h"
#if defined(__AMX_BF16__) && defined(__linux__)
#include "tiles.h"
#endif

/* Numbers in a row of a tile of sums, and rows of one: queries, keys, or numbers of a head. */
#define TILE 16
/* Numbers of bf16 in a row of a tile. */
#define PAIRS (2 * TILE)
/* Keys of a block: a multiple of PAIRS. */
#ifndef KEY_BLOCK
#define KEY_BLOCK 256
#endif
/* Words between rows of scores, and of weights: rows of a power of two would share lines of the cache. */
#define SCORES (KEY_BLOCK + TILE)
#define WEIGHTS (KEY_BLOCK / 2 + TILE)
/* Two ones of bf16. */
#define ONES 0x3f803f80

typedef uint32_t words __attribute__((vector_size(LANES * 4)));
typedef ints ints_at __attribute__((aligned(4), may_alias));

INLINE ints load_words(const int32_t *at) { return *(const ints_at *)at; }
INLINE void store_words(int32_t *at, ints x) { *(ints_at *)at = x; }

/* Words of the upper halves of two vectors: number i of both. */
INLINE ints cut(vec low, vec high) { return (ints)((words)low >> 16 | ((words)high & 0xffff0000)); }

#if defined(__AVX512BF16__)
/* Rounds two vectors: number i of both. */
INLINE ints paired(vec low, vec high) {
    static const int16_t order[] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                    8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
    return (ints)_mm512_permutexvar_epi16(_mm512_loadu_si512(order), both);
}
/* The same in any order, but always the same one. */
INLINE ints rounded(vec low, vec high) { return (ints)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low); }
INLINE vec dot(vec sums, ints shared, ints of) {
    return (vec)_mm512_dpbf16_ps((__m512)sums, (__m512bh)shared, (__m512bh)of);
}
#else
INLINE vec nearest(vec x) {
    ints bits = (ints)x, up = bits + 0x7fff + (bits >> 16 & 1);
    return (vec)(x == x ? up : bits | 1 << 22);
}
INLINE ints paired(vec low, vec high) { return cut(nearest(low), nearest(high)); }
INLINE ints rounded(vec low, vec high) { return paired(low, high); }
INLINE vec dot(vec sums, ints shared, ints of) {
    sums += (vec)(shared & ~0xffff) * (vec)(of & ~0xffff);
    return sums + (vec)(shared << 16) * (vec)(of << 16);
}
#endif

/* Products by an instruction for a vector. */
struct Dots {
    static const int rows = 8;

    template <int count>
    INLINE void score_panels(const int32_t *queries, const int32_t *keys, int64_t half, float *scores) {
        vec sums[rows][count] = {};
        for (int64_t d = 0; d < half; d++)
            for (int k = 0; k < count; k++) {
                const ints key = load_words(keys + (k * half + d) * TILE);
                for (int q = 0; q < rows; q++) sums[q][k] = dot(sums[q][k], queries[q * half + d] - ints{}, key);
            }
        for (int q = 0; q < rows; q++)
            for (int k = 0; k < count; k++) store(scores + q * SCORES + k * TILE, sums[q][k]);
    }

    /* scores[q][k] = queries[q] . keys[k], of TILE queries and n panels of keys; `half` is the words of a head. */
    INLINE void score(const int32_t *queries, const int32_t *keys, int64_t half, int64_t n, float *scores) {
        for (int q = 0; q < TILE; q += rows)
            for (int64_t k = 0; k < n; k += 2) {
                const int32_t *of = queries + q * half, *panel = keys + k * half * TILE;
                float *to = scores + q * SCORES + k * TILE;
                if (n - k > 1) score_panels<2>(of, panel, half, to);
                else score_panels<1>(of, panel, half, to);
            }
    }

    /* Adds n blocks of values to sums[q], [TILE, head], weighted by weights[q], and the weights to all of totals[q]; the
     * first ones, if there are none before. */
    INLINE void weigh(const int32_t *weights, const int32_t *values, int64_t head, int64_t n, bool first_ones, float *sums,
                      vec *totals, const ints *ones) {
        const int64_t block = head * TILE;
        for (int q = 0; q < TILE; q++) {
            vec total = {};
            for (int64_t b = 0; b < n; b++) total = dot(total, load_words(weights + q * WEIGHTS + b * TILE), *ones);
            totals[q] = sum_of(total) + (first_ones ? vec{} : totals[q]);
        }
        for (int first = 0; first < TILE; first += rows)
            for (int64_t d = 0; d < head; d += 2 * TILE) {
                vec total[rows][2];
                for (int q = 0; q < rows; q++)
                    for (int v = 0; v < 2; v++)
                        total[q][v] = first_ones ? vec{} : load(sums + (first + q) * head + d + v * TILE);
                for (int64_t b = 0; b < n; b++)
                    for (int64_t i = 0; i < TILE; i++)
                        for (int v = 0; v < 2; v++) {
                            const ints value = load_words(values + b * block + (d + v * TILE + i) * TILE);
                            const int32_t *weight = weights + first * WEIGHTS + b * TILE + i;
                            for (int q = 0; q < rows; q++)
                                total[q][v] = dot(total[q][v], weight[q * WEIGHTS] - ints{}, value);
                        }
                for (int q = 0; q < rows; q++)
                    for (int v = 0; v < 2; v++) store(sums + (first + q) * head + d + v * TILE, total[q][v]);
            }
    }
};

#if defined(__AMX_BF16__) && defined(__linux__)
/* Products by tiles. */
struct Tiles {
    INLINE void score(const int32_t *queries, const int32_t *keys, int64_t half, int64_t n, float *scores) {
        const int64_t panel = half * TILE;
        for (int64_t k = 0; k < n; k += 2) {
            const bool two = n - k > 1;
            const int32_t *first = keys + k * panel, *second = two ? first + panel : first;
            TILE_ZERO(0);
            TILE_ZERO(1);
            for (int64_t d = 0; d < half; d += TILE) {
                TILE_LOAD(4, queries + d, half * 4);
                TILE_LOAD(6, first + d * TILE, 64);
                TILE_DOT_BF16(0, 4, 6);
                TILE_LOAD(7, second + d * TILE, 64);
                TILE_DOT_BF16(1, 4, 7);
            }
            TILE_STORE(0, scores + k * TILE, SCORES * 4);
            if (two) TILE_STORE(1, scores + (k + 1) * TILE, SCORES * 4);
        }
    }

    INLINE void weigh(const int32_t *weights, const int32_t *values, int64_t head, int64_t n, bool first_ones, float *sums,
                      vec *totals, const ints *ones) {
        const int64_t block = head * TILE;
        TILE_LOAD(5, ones, 64);
        if (first_ones) TILE_ZERO(2);
        else TILE_LOAD(2, totals, 64);
        for (int64_t d = 0; d < head; d += 2 * TILE) {
            if (first_ones) {
                TILE_ZERO(0);
                TILE_ZERO(1);
            } else {
                TILE_LOAD(0, sums + d, head * 4);
                TILE_LOAD(1, sums + d + TILE, head * 4);
            }
            for (int64_t b = 0; b < n; b++) {
                const int32_t *of = values + b * block + d * TILE;
                TILE_LOAD(4, weights + b * TILE, WEIGHTS * 4);
                TILE_LOAD(6, of, 64);
                TILE_DOT_BF16(0, 4, 6);
                TILE_LOAD(7, of + TILE * TILE, 64);
                TILE_DOT_BF16(1, 4, 7);
                if (d == 0) TILE_DOT_BF16(2, 4, 5);
            }
            TILE_STORE(0, sums + d, head * 4);
            TILE_STORE(1, sums + d + TILE, head * 4);
        }
        TILE_STORE(2, totals, 64);
    }
};
#endif
