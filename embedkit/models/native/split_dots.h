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

    /* Turns each of n numbers x into 2^x, or into 0 if that is below 2^-126. */
    template <int n> INLINE void make_weights(vec *x) {
        vec shifted[n], p[n];
        for (int i = 0; i < n; i++) shifted[i] = x[i] + 12582912.0f;
        vec f[n];
        for (int i = 0; i < n; i++) f[i] = x[i] - (shifted[i] - 12582912.0f);
        for (int i = 0; i < n; i++) p[i] = f[i] * 0.0013276503887027502f + 0.009675542823970318f;
        for (int i = 0; i < n; i++) p[i] = p[i] * f[i] + 0.05550713092088699f;
        for (int i = 0; i < n; i++) p[i] = p[i] * f[i] + 0.24022120237350464f;
        for (int i = 0; i < n; i++) p[i] = p[i] * f[i] + 0.6931469440460205f;
        for (int i = 0; i < n; i++) p[i] = p[i] * f[i] + 1.0f;
        for (int i = 0; i < n; i++)
            x[i] = x[i] < -126.0f ? vec{} : p[i] * (vec)(((ints)shifted[i] << 23) + 0x3f800000);
    }

    /* The parts of n pairs of vectors, number i of both: rounded, rounded, and the rest, which bf16 holds. NaN and infinity
     * reach one of them. */
    template <int n> INLINE void split(const vec *low, const vec *high, ints *of_parts) {
        vec a[n], b[n];
        for (int i = 0; i < n; i++) a[i] = low[i], b[i] = high[i];
        for (int part = 0; part < 2; part++) {
            words below[n], above[n];
            for (int i = 0; i < n; i++) {
                below[i] = ((words)a[i] + 0x8000) & 0xffff0000;
                above[i] = ((words)b[i] + 0x8000) & 0xffff0000;
            }
            for (int i = 0; i < n; i++) {
                of_parts[part * n + i] = (ints)(below[i] >> 16 | above[i]);
                a[i] -= (vec)below[i];
                b[i] -= (vec)above[i];
            }
        }
        for (int i = 0; i < n; i++) of_parts[2 * n + i] = cut(a[i], b[i]);
    }

    INLINE void pair(vec low, vec high, ints *of_parts) { split<1>(&low, &high, of_parts); }
    INLINE void pair_numbers(vec low, vec high, ints *of_parts) { pair(low, high, of_parts); }
    INLINE void pair_tokens(vec low, vec high, ints *of_parts) { pair(low, high, of_parts); }
    template <int n> INLINE void pair_weights(const vec *low, const vec *high, ints *of_parts) { split<n>(low, high, of_parts); }

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
