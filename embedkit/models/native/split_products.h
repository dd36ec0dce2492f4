/* Matrix products of fp32 by tiles of bf16: a number is the exact sum of three of bf16, its parts, and a product is the
 * sum of the six products of parts that are above fp32's rounding (Henry, Tang and Heinecke 2019, arXiv 1904.06376).
 *
 * What fp32_products.cpp includes after panels.h. Weights lie in blocks of SPLIT_OUTPUTS outputs: first what their sums
 * start from, then, for each STEP inputs, a pair of tiles of each part, the last part first. Rows lie in blocks of SPLIT_ROWS, likewise, but
 * the first part first: so both are read as they lie. */
#pragma once
#include "tiles.h"

#define SPLIT_ROWS (2 * TILE_ROWS)
#define SPLIT_OUTPUTS 32
/* Inputs of a tile, and words of two tiles of each part. */
#define STEP 32
#define PAIR (2 * TILE_ROWS * TILE_WORDS)
#define STEP_WORDS (3 * PAIR)
/* Words of rows in parts that stay in the second cache. */
#ifndef SPLIT_WORDS
#define SPLIT_WORDS (1 << 18)
#endif

INLINE int64_t split_steps(int64_t inputs) { return (inputs + STEP - 1) / STEP; }
INLINE int64_t split_panels(int64_t outputs) { return (outputs + SPLIT_OUTPUTS - 1) / SPLIT_OUTPUTS; }
INLINE int64_t split_panel_words(int64_t inputs) { return SPLIT_OUTPUTS + split_steps(inputs) * STEP_WORDS; }

/* Rows that are multiplied together: whole blocks. */
INLINE int64_t split_at_once(int64_t n, int64_t inputs) {
    int64_t blocks = SPLIT_WORDS / (split_steps(inputs) * STEP_WORDS);
    if (blocks < 1) blocks = 1;
    const int64_t wanted = (n + SPLIT_ROWS - 1) / SPLIT_ROWS;
    return (wanted < blocks ? wanted : blocks) * SPLIT_ROWS;
}

INLINE int64_t split_packed_words(int64_t outputs, int64_t inputs) {
    return split_panels(outputs) * split_panel_words(inputs);
}
INLINE int64_t split_workspace_words(int64_t n, int64_t inputs) {
    return split_at_once(n, inputs) / SPLIT_ROWS * split_steps(inputs) * STEP_WORDS;
}

/* Writes the parts of LANES numbers at three places: rounded, rounded, and the rest, which bf16 holds. NaN and infinity
 * reach one of them. */
INLINE void split(floats x, uint16_t *first, uint16_t *second, uint16_t *third) {
    typedef uint32_t bits __attribute__((vector_size(LANES * 4)));
    typedef uint16_t halves __attribute__((vector_size(LANES * 2), aligned(2), may_alias));
    const bits high = ((bits)x + 0x8000) & 0xffff0000;
    x -= (floats)high;
    const bits middle = ((bits)x + 0x8000) & 0xffff0000;
    x -= (floats)middle;
    *(halves *)first = __builtin_convertvector(high >> 16, halves);
    *(halves *)second = __builtin_convertvector(middle >> 16, halves);
    *(halves *)third = __builtin_convertvector((bits)x >> 16, halves);
}

/* Splits n rows; the rows and inputs that a block lacks are 0. */
static void split_rows(const float *rows, int64_t n, int64_t inputs, int32_t *words) {
    const int64_t steps = split_steps(inputs);
    for (int64_t block = 0; block < n; block += SPLIT_ROWS, words += steps * STEP_WORDS)
        for (int64_t r = 0; r < SPLIT_ROWS; r++) {
            const float *row = rows + (block + r) * inputs;
            for (int64_t i = 0; i < steps * STEP; i += LANES) {
                floats x = {};
                if (block + r < n && i + LANES <= inputs) x = *(const floats_at *)(row + i);
                else if (block + r < n && i < inputs) __builtin_memcpy(&x, row + i, sizeof *row * (inputs - i));
                uint16_t *to = (uint16_t *)(words + i / STEP * STEP_WORDS + r * TILE_WORDS) + i % STEP;
                split(x, to, to + 2 * PAIR, to + 4 * PAIR);
            }
        }
}

/* Packs weights [outputs, inputs]; sums start from the bias. */
static void split_pack(const float *weights, const float *bias, int64_t outputs, int64_t inputs, int32_t *packed) {
    __builtin_memset(packed, 0, sizeof *packed * split_packed_words(outputs, inputs));
    for (int64_t p = 0; p < split_panels(outputs); p++) {
        int32_t *panel = packed + p * split_panel_words(inputs);
        const int64_t at = p * SPLIT_OUTPUTS, count = outputs - at < SPLIT_OUTPUTS ? outputs - at : SPLIT_OUTPUTS;
        __builtin_memcpy(panel, bias + at, sizeof *bias * count);
        /* Some inputs of all outputs come first: the words that are written stay in the first cache. */
        for (int64_t i = 0; i < inputs; i += LANES)
            for (int64_t column = 0; column < count; column++) {
                int32_t pairs[3][LANES / 2];
                uint16_t *parts = (uint16_t *)pairs;
                const float *from = weights + (at + column) * inputs + i;
                floats x = {};
                if (i + LANES <= inputs) x = *(const floats_at *)from;
                else __builtin_memcpy(&x, from, sizeof *from * (inputs - i));
                split(x, parts, parts + LANES, parts + 2 * LANES);
                int32_t *to = panel + SPLIT_OUTPUTS + i / STEP * STEP_WORDS + column / TILE_WORDS * (PAIR / 2) +
                              i % STEP / 2 * TILE_WORDS + column % TILE_WORDS;
                for (int part = 0; part < 3; part++)
                    for (int j = 0; j < LANES / 2; j++) to[(2 - part) * PAIR + j * TILE_WORDS] = pairs[part][j];
            }
    }
}

#define LOAD_ROWS(part)                                  \
    TILE_LOAD(4, rows + (part) * PAIR, TILE_WORDS * 4);  \
    TILE_LOAD(5, rows + (part) * PAIR + PAIR / 2, TILE_WORDS * 4)
#define LOAD_WEIGHTS(part)                                        \
    TILE_LOAD(6, weights + (2 - (part)) * PAIR, TILE_WORDS * 4);  \
    TILE_LOAD(7, weights + (2 - (part)) * PAIR + PAIR / 2, TILE_WORDS * 4)
#define DOT_PARTS          \
    TILE_DOT_BF16(0, 4, 6); \
    TILE_DOT_BF16(1, 4, 7); \
    TILE_DOT_BF16(2, 5, 6); \
    TILE_DOT_BF16(3, 5, 7)

/* Computes the sums of a block of rows and a panel, [SPLIT_ROWS, SPLIT_OUTPUTS]. Of the parts' products, those of
 * neighbours in this order share a part that is loaded. */
static void split_sums(const int32_t *rows, const int32_t *panel, int64_t steps, float *sums) {
    const int32_t *weights = panel + SPLIT_OUTPUTS;
    TILE_LOAD(0, panel, 0);
    TILE_LOAD(1, panel + TILE_WORDS, 0);
    TILE_LOAD(2, panel, 0);
    TILE_LOAD(3, panel + TILE_WORDS, 0);
    for (int64_t step = 0; step < steps; step++, rows += STEP_WORDS, weights += STEP_WORDS) {
        LOAD_ROWS(0);
        LOAD_WEIGHTS(2);
        DOT_PARTS;
        LOAD_WEIGHTS(1);
        DOT_PARTS;
        LOAD_ROWS(1);
        DOT_PARTS;
        LOAD_WEIGHTS(0);
        DOT_PARTS;
        LOAD_ROWS(2);
        DOT_PARTS;
        LOAD_ROWS(0);
        DOT_PARTS;
    }
    TILE_STORE(0, sums, SPLIT_OUTPUTS * 4);
    TILE_STORE(1, sums + TILE_WORDS, SPLIT_OUTPUTS * 4);
    TILE_STORE(2, sums + TILE_ROWS * SPLIT_OUTPUTS, SPLIT_OUTPUTS * 4);
    TILE_STORE(3, sums + TILE_ROWS * SPLIT_OUTPUTS + TILE_WORDS, SPLIT_OUTPUTS * 4);
}

/* Multiplies rows of floats; see Multiply. */
static void split_multiply(const float *rows, int64_t n, const Weights *of, int64_t share, int64_t shares, float *products,
                           int32_t *workspace) {
    alignas(64) float sums[SPLIT_ROWS * SPLIT_OUTPUTS];
    const int64_t inputs = of->inputs, outputs = of->outputs, steps = split_steps(inputs);
    const int64_t at_once = split_at_once(n, inputs), panels = split_panels(outputs);
    shape_tiles(SPLIT_ROWS);
    for (int64_t begin = 0; begin < n; begin += at_once) {
        const int64_t end = n - begin < at_once ? n : begin + at_once;
        split_rows(rows + begin * inputs, end - begin, inputs, workspace);
        for (int64_t p = panels * share / shares; p < panels * (share + 1) / shares; p++) {
            const int32_t *panel = of->packed + p * split_panel_words(inputs), *block = workspace;
            const int64_t at = p * SPLIT_OUTPUTS, count = outputs - at < SPLIT_OUTPUTS ? outputs - at : SPLIT_OUTPUTS;
            for (int64_t t = begin; t < end; t += SPLIT_ROWS, block += steps * STEP_WORDS) {
                split_sums(block, panel, steps, sums);
                for (int64_t r = 0; r < SPLIT_ROWS && t + r < end; r++) {
                    float *to = products + (t + r) * outputs + at;
                    const float *from = sums + r * SPLIT_OUTPUTS;
                    if (count == SPLIT_OUTPUTS) __builtin_memcpy(to, from, sizeof *to * SPLIT_OUTPUTS);
                    else __builtin_memcpy(to, from, sizeof *to * count);
                }
            }
        }
    }
    release_tiles();
}
