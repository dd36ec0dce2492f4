/* The products of bf16_attention.cpp: of numbers that are rounded to bf16, one a part; see tiled_attention.h. */
#pragma once
#define LANES 16
#include "tiled_attention.h"

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

struct Rounded {
    static const int parts = 1, key_block = 256;
    /* Rows of a power of two would share lines of the cache. */
    static const int score_stride = key_block + TILE, weight_stride = key_block / 2 + TILE;
    static const bool adds_weights = false;

    INLINE void pair_numbers(vec low, vec high, ints *parts) { *parts = rounded(low, high); }
    INLINE void pair_tokens(vec low, vec high, ints *parts) { *parts = paired(low, high); }
    template <int n> INLINE void pair_weights(const vec *low, const vec *high, ints *parts) {
        for (int i = 0; i < n; i++) parts[i] = cut(low[i], high[i]);
    }

    /* 2^x, so that a number of bf16 which is cut from it is the nearest: the polynomial of 2^f, for f from 0 to 1 and to 0.002
     * of itself as bf16 has it, has half a step of bf16 added. Below 2^-126 it is 0: see FlushedToZero. */
    template <int n> INLINE void make_weights(vec *x) {
#if defined(__AVX512DQ__)
        vec f[n], p[n];
        for (int i = 0; i < n; i++) f[i] = (vec)_mm512_reduce_ps((__m512)x[i], 1);
        for (int i = 0; i < n; i++) p[i] = f[i] * 0.3371889591217041f + 0.657636821269989f;
        for (int i = 0; i < n; i++) p[i] = p[i] * f[i] + (1.0017246007919312f + 0.00390625f);
        for (int i = 0; i < n; i++) x[i] = (vec)_mm512_scalef_ps((__m512)p[i], (__m512)x[i]);
#else
        for (int i = 0; i < n; i++) x[i] = x[i] < -126.0f ? vec{} : (vec)((ints)power_of_two(x[i]) + 0x8000);
#endif
    }

    /* Writes PAIRS numbers of TILE keys. */
    INLINE void write_keys(const vec *low, const vec *high, int32_t *to) {
        vec square[TILE];
        for (int i = 0; i < TILE; i++) square[i] = (vec)rounded(low[i], high[i]);
        transpose(square);
        for (int i = 0; i < TILE; i++) store_words(to + i * TILE, (ints)square[i]);
    }
};

/* Products by an instruction for a vector. */
struct Dots : Rounded {
    static const int rows = 8;

    /* All weights are made between the products. */
    INLINE int64_t pauses(int64_t, int64_t) { return 1; }

    template <int count>
    INLINE void score_panels(const int32_t *queries, const int32_t *keys, int64_t half, float *scores) {
        vec sums[rows][count] = {};
        for (int64_t d = 0; d < half; d++)
            for (int k = 0; k < count; k++) {
                const ints key = load_words(keys + (k * half + d) * TILE);
                for (int q = 0; q < rows; q++) sums[q][k] = dot(sums[q][k], queries[q * half + d] - ints{}, key);
            }
        for (int q = 0; q < rows; q++)
            for (int k = 0; k < count; k++) store(scores + q * score_stride + k * TILE, sums[q][k]);
    }

    /* scores[q][k] = queries[q] . keys[k], of `count` queries and n panels of keys; `half` is the words of a head. */
    template <class Pause>
    INLINE void score(const int32_t *queries, int64_t count, const int32_t *keys, int64_t half, int64_t n, float *scores,
                      Pause) {
        for (int64_t q = 0; q < count; q += rows)
            for (int64_t k = 0; k < n; k += 2) {
                const int32_t *of = queries + q * half, *panel = keys + k * half * TILE;
                float *to = scores + q * score_stride + k * TILE;
                if (n - k > 1) score_panels<2>(of, panel, half, to);
                else score_panels<1>(of, panel, half, to);
            }
    }

    /* sums[q] = n blocks of values, weighted by weights[q]: [count, head]; and all of totals[q] = the sum of the weights. */
    template <class Pause>
    INLINE void weigh(const int32_t *weights, int64_t count, const int32_t *values, int64_t head, int64_t n, float *sums,
                      vec *totals, const ints *ones, Pause) {
        const int64_t block = head * TILE;
        for (int64_t q = 0; q < count; q++) {
            vec total = {};
            for (int64_t b = 0; b < n; b++) total = dot(total, load_words(weights + q * weight_stride + b * TILE), *ones);
            totals[q] = sum_of(total);
        }
        for (int64_t first = 0; first < count; first += rows)
            for (int64_t d = 0; d < head; d += 2 * TILE) {
                vec total[rows][2] = {};
                for (int64_t b = 0; b < n; b++)
                    for (int64_t i = 0; i < TILE; i++)
                        for (int v = 0; v < 2; v++) {
                            const ints value = load_words(values + b * block + (d + v * TILE + i) * TILE);
                            const int32_t *weight = weights + first * weight_stride + b * TILE + i;
                            for (int q = 0; q < rows; q++)
                                total[q][v] = dot(total[q][v], weight[q * weight_stride] - ints{}, value);
                        }
                for (int q = 0; q < rows; q++)
                    for (int v = 0; v < 2; v++) store(sums + (first + q) * head + d + v * TILE, total[q][v]);
            }
    }
};

#if defined(TILES)
#include "attention_tiles.h"

struct RoundedByTiles : Rounded {
    static const int pauses_of_step = 1;

    template <bool two, bool wide, class Pause>
    INLINE void add_step(const int32_t *rows, int64_t row_words, int64_t, const int32_t *squares, int64_t apart, Pause pause) {
        load_rows<two>(rows, row_words);
        load_columns<wide>(squares, apart);
        add_products<two, wide>();
        pause();
    }
};
typedef ByTiles<RoundedByTiles> Tiles;
#endif
