/* The products of attention in fp32 by tiles of bf16: a number is the exact sum of three of bf16, its parts, and a product
 * the sum of the six products of parts that are above fp32's rounding, as in split_products.h.
 *
 * A sum starts from 0 in each block of keys: it is rounded less than one that goes on through a text. */
#pragma once
#include "attention_tiles.h"

struct Split {
    static const int parts = 3, key_block = 128, score_stride = key_block + TILE;
    static const int weight_stride = parts * key_block / 2 + TILE;
    static const int pauses_of_step = 2;
    static const bool adds_weights = true;

    /* Turns each of n numbers x into 2^x, or into 0 if that is below 2^-126: see FlushedToZero. */
    template <int n> INLINE void make_weights(vec *x) {
#if defined(__AVX512DQ__)
        /* As power_of_two, where instructions find the nearest integer and multiply by its power. */
        vec f[n], p[n];
        for (int i = 0; i < n; i++) f[i] = (vec)_mm512_reduce_ps((__m512)x[i], 0);
        for (int i = 0; i < n; i++) x[i] -= f[i];
        for (int i = 0; i < n; i++) p[i] = f[i] * 0.0013276503887027502f + 0.009675542823970318f;
        for (int i = 0; i < n; i++) p[i] = p[i] * f[i] + 0.05550713092088699f;
        for (int i = 0; i < n; i++) p[i] = p[i] * f[i] + 0.24022120237350464f;
        for (int i = 0; i < n; i++) p[i] = p[i] * f[i] + 0.6931469440460205f;
        for (int i = 0; i < n; i++) p[i] = p[i] * f[i] + 1.0f;
        for (int i = 0; i < n; i++) x[i] = (vec)_mm512_scalef_ps((__m512)p[i], (__m512)x[i]);
#else
        for (int i = 0; i < n; i++) x[i] = x[i] < -126.0f ? vec{} : power_of_two(x[i]);
#endif
    }

    /* The parts of n pairs of vectors, number i of both: rounded, rounded, and the rest, which bf16 holds; or cut, with a
     * `half` of 0. NaN and infinity reach one of them. */
    template <int n, uint32_t half> INLINE void split(const vec *low, const vec *high, ints *of_parts) {
        vec a[n], b[n];
        for (int i = 0; i < n; i++) a[i] = low[i], b[i] = high[i];
        for (int part = 0; part < 2; part++) {
            words below[n], above[n];
            for (int i = 0; i < n; i++) {
                below[i] = ((words)a[i] + half) & 0xffff0000;
                above[i] = ((words)b[i] + half) & 0xffff0000;
            }
            for (int i = 0; i < n; i++) {
                of_parts[part * n + i] = (ints)(below[i] >> 16 | above[i]);
                a[i] -= (vec)below[i];
                b[i] -= (vec)above[i];
            }
        }
        for (int i = 0; i < n; i++) of_parts[2 * n + i] = cut(a[i], b[i]);
    }

    INLINE void pair(vec low, vec high, ints *of_parts) { split<1, 0x8000>(&low, &high, of_parts); }
    INLINE void pair_numbers(vec low, vec high, ints *of_parts) { pair(low, high, of_parts); }
    INLINE void pair_tokens(vec low, vec high, ints *of_parts) { pair(low, high, of_parts); }
    /* One of two factors may be cut: products of their small parts stay below fp32's rounding. */
    template <int n> INLINE void pair_weights(const vec *low, const vec *high, ints *of_parts) {
        split<n, 0>(low, high, of_parts);
    }

    /* Writes PAIRS numbers of TILE keys. */
    INLINE void write_keys(vec *low, vec *high, int32_t *to) {
        transpose(low);
        transpose(high);
        for (int i = 0; i < TILE; i++) {
            ints of_parts[parts];
            pair(low[i], high[i], of_parts);
            for (int part = 0; part < parts; part++) store_words(to + part * SQUARE + i * TILE, of_parts[part]);
        }
    }

    /* Of the parts' products, those of neighbours in this order share a part that is loaded. */
    template <bool two, bool wide, class Pause>
    INLINE void add_step(const int32_t *rows, int64_t row_words, int64_t part_words, const int32_t *squares, int64_t apart,
                         Pause pause) {
        load_rows<two>(rows, row_words);
        load_columns<wide>(squares + 2 * SQUARE, apart);
        add_products<two, wide>();
        load_columns<wide>(squares + SQUARE, apart);
        add_products<two, wide>();
        load_rows<two>(rows + part_words, row_words);
        add_products<two, wide>();
        pause();
        load_columns<wide>(squares, apart);
        add_products<two, wide>();
        load_rows<two>(rows + 2 * part_words, row_words);
        add_products<two, wide>();
        load_rows<two>(rows, row_words);
        add_products<two, wide>();
        pause();
    }
};
typedef ByTiles<Split> SplitTiles;
