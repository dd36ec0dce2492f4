/* Matrix products of fp32 by tiles of bf16: a number is the exact sum of three of bf16, its parts, and a product is the
 * sum of the six products of parts that are above fp32's rounding (Henry, Tang and Heinecke 2019, arXiv 1904.06376).
 *
 * What fp32_products.cpp includes after panels.h. Weights lie in panels of SPLIT_OUTPUTS outputs: first what their sums
 * start from, then, for each STEP inputs, a pair of tiles of each part, the last part first. Rows lie in blocks of
 * SPLIT_ROWS, likewise, but the first part first: so both are read as they lie.
 *
 * A tile takes as long to come from the second cache (6 ns) as a product of two, and five times as long from the third.
 * So a few steps of a panel stay in the first cache while blocks of rows, which stay in the second, pass them, and bring
 * the next weights into the second. The order of additions is that of the inputs all the same. */
#pragma once
#include "tiles.h"

#define SPLIT_ROWS (2 * TILE_ROWS)
#define SPLIT_OUTPUTS 32
/* Inputs of a tile, and words of two tiles of each part. */
#define STEP 32
#define PAIR (2 * TILE_ROWS * TILE_WORDS)
#define STEP_WORDS (3 * PAIR)
/* Rows, and steps of them, whose parts stay in the second cache while all weights pass. */
#define SPLIT_MOST_ROWS 256
#define SPLIT_MOST_STEPS 12
/* Steps of a panel of weights that stay in the first cache while those rows pass. */
#define NEAR_STEPS 3
/* Lines of each step of weights that are brought in with one of its six products. */
#define LINES_EACH (STEP_WORDS / 6 / LINE)

INLINE int64_t split_steps(int64_t inputs) { return (inputs + STEP - 1) / STEP; }
INLINE int64_t split_panels(int64_t outputs) { return (outputs + SPLIT_OUTPUTS - 1) / SPLIT_OUTPUTS; }
INLINE int64_t split_panel_words(int64_t inputs) { return SPLIT_OUTPUTS + split_steps(inputs) * STEP_WORDS; }

INLINE int64_t least_of(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t split_blocks(int64_t n) { return (n + SPLIT_ROWS - 1) / SPLIT_ROWS; }

INLINE int64_t split_packed_words(int64_t outputs, int64_t inputs) {
    return split_panels(outputs) * split_panel_words(inputs);
}
/* Of each block: the parts of its rows, and sums. */
INLINE int64_t split_workspace_words(int64_t n, int64_t inputs) {
    return split_blocks(least_of(n, SPLIT_MOST_ROWS)) *
           (least_of(split_steps(inputs), SPLIT_MOST_STEPS) * STEP_WORDS + SPLIT_ROWS * SPLIT_OUTPUTS);
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

/* Rows of which some steps are to be split: of one block. */
struct Unsplit {
    const float *rows; /* [n, inputs] */
    int64_t n, inputs, step;
    int32_t *words; /* of that step */
};

/* Splits rows [first, last) of a block in one step; the rows and inputs that it lacks are 0. */
INLINE void split_rows(const Unsplit *of, int64_t first, int64_t last) {
    const int64_t at = of->step * STEP, inputs = of->inputs;
    for (int64_t r = first; r < last; r++) {
        const float *row = of->rows + r * inputs;
        for (int64_t i = at; i < at + STEP; i += LANES) {
            floats x = {};
            if (r < of->n && i + LANES <= inputs) x = *(const floats_at *)(row + i);
            else if (r < of->n && i < inputs) __builtin_memcpy(&x, row + i, sizeof *row * (inputs - i));
            uint16_t *to = (uint16_t *)(of->words + r * TILE_WORDS) + i % STEP;
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

/* Some steps of a block of rows and of a panel. */
struct Block {
    const int32_t *rows, *weights;
    int64_t steps;
    const int32_t *next_rows, *next_weights; /* of the block that comes after it */
    const float *from;                       /* what the sums start from: rows are `from_stride` apart */
    int64_t from_stride;
    float *to; /* the sums */
    int64_t to_stride;
    const int32_t *ahead; /* weights of later blocks, of which each product brings in `lines` lines */
    int64_t lines;
    Unsplit unsplit; /* rows of the next block, of which add_block<true> splits as many steps */
};

#define HALF (PAIR / 2)
#define LOAD(tile, at) TILE_LOAD(tile, at, TILE_WORDS * 4)
#define FOR_SUMS(DO, at, stride)                   \
    DO(0, at, (stride) * 4);                       \
    DO(1, (at) + TILE_WORDS, (stride) * 4);        \
    DO(2, (at) + TILE_ROWS * (stride), (stride) * 4); \
    DO(3, (at) + TILE_ROWS * (stride) + TILE_WORDS, (stride) * 4)
/* A product of two parts. The tiles of one side are loaded for the next product as soon as they are free. */
#define DOT_THEN_LOAD_ROWS(at)  \
    TILE_DOT_BF16(0, 4, 6);     \
    TILE_DOT_BF16(1, 4, 7);     \
    LOAD(4, at);                \
    TILE_DOT_BF16(2, 5, 6);     \
    TILE_DOT_BF16(3, 5, 7);     \
    LOAD(5, (at) + HALF)
#define DOT_THEN_LOAD_WEIGHTS(at) \
    TILE_DOT_BF16(0, 4, 6);       \
    TILE_DOT_BF16(2, 5, 6);       \
    LOAD(6, at);                  \
    TILE_DOT_BF16(1, 4, 7);       \
    TILE_DOT_BF16(3, 5, 7);       \
    LOAD(7, (at) + HALF)
/* Beside each of the six products, which leave most of the processor idle; a step is split before the sixth, in which the
 * next block may begin to load it. */
#define MEANWHILE(product)                                                             \
    for (int64_t l = 0; l < lines; l++, ahead += LINE) __builtin_prefetch(ahead, 0, 2); \
    if (splits) split_rows(&unsplit, (product) * 7, least_of((product) * 7 + 7, SPLIT_ROWS))

INLINE void load_first_parts(const int32_t *rows, const int32_t *weights) {
    LOAD(4, rows);
    LOAD(5, rows + HALF);
    LOAD(6, weights);
    LOAD(7, weights + HALF);
}

/* Adds the products of a block, whose first parts are loaded, and loads those of the next one. Of the parts' products,
 * those of neighbours in this order share a part. */
template <bool splits> static void add_block(const Block *block) {
    Unsplit unsplit = block->unsplit;
    const int32_t *rows = block->rows, *weights = block->weights, *ahead = block->ahead;
    const int64_t lines = block->lines;
    FOR_SUMS(TILE_LOAD, block->from, block->from_stride);
    for (int64_t left = block->steps; left > 0; left--) {
        const int32_t *next_rows = left > 1 ? rows + STEP_WORDS : block->next_rows;
        const int32_t *next_weights = left > 1 ? weights + STEP_WORDS : block->next_weights;
        DOT_THEN_LOAD_WEIGHTS(weights + PAIR);
        MEANWHILE(0);
        DOT_THEN_LOAD_ROWS(rows + PAIR);
        MEANWHILE(1);
        DOT_THEN_LOAD_WEIGHTS(weights + 2 * PAIR);
        MEANWHILE(2);
        DOT_THEN_LOAD_ROWS(rows + 2 * PAIR);
        MEANWHILE(3);
        DOT_THEN_LOAD_ROWS(rows);
        MEANWHILE(4);
        DOT_THEN_LOAD_ROWS(next_rows);
        MEANWHILE(5);
        LOAD(6, next_weights);
        LOAD(7, next_weights + HALF);
        rows = next_rows;
        weights = next_weights;
        unsplit.step++;
        unsplit.words += STEP_WORDS;
    }
    FOR_SUMS(TILE_STORE, block->to, block->to_stride);
}

static void copy_sums(const float *from, int64_t from_stride, float *to, int64_t to_stride, int64_t n, int64_t width) {
    for (int64_t r = 0; r < n; r++) __builtin_memcpy(to + r * to_stride, from + r * from_stride, sizeof *to * width);
}

/* Rows and their parts in the workspace: n of them, and [first, first + steps) of their steps. */
struct Parts {
    const float *rows; /* [n, inputs]; nullptr if they are split already */
    int64_t inputs;
    int32_t *words;
    int64_t n, first, steps;
};

/* Adds their products with a panel to those of the steps before, or to the bias. */
static void add_panel(const Parts *rows, const int32_t *panel, const int32_t *next_panel, float *products, int64_t outputs,
                      int64_t width, float *all_sums) {
    const int64_t blocks = split_blocks(rows->n), lines = (LINES_EACH + blocks - 1) / blocks;
    const int64_t stride = rows->steps * STEP_WORDS;
    for (int64_t s = 0; s < rows->steps; s += NEAR_STEPS) {
        const int64_t steps = least_of(NEAR_STEPS, rows->steps - s), at = (rows->first + s) * STEP_WORDS;
        const bool is_first = s == 0, is_last = s + steps == rows->steps;
        const int32_t *weights = panel + SPLIT_OUTPUTS + at, *words = rows->words + s * STEP_WORDS;
        Unsplit unsplit = {rows->rows, least_of(SPLIT_ROWS, rows->n), rows->inputs, rows->first + s,
                           rows->words + s * STEP_WORDS};
        if (rows->rows)
            for (Unsplit some = unsplit; some.step < unsplit.step + steps; some.step++, some.words += STEP_WORDS)
                split_rows(&some, 0, SPLIT_ROWS);
        const int32_t *ahead = is_last ? next_panel + SPLIT_OUTPUTS + rows->first * STEP_WORDS : weights + steps * STEP_WORDS;
        load_first_parts(words, weights);
        for (int64_t b = 0; b < blocks; b++, words += stride, ahead += steps * 6 * lines * LINE) {
            float *sums = all_sums + b * SPLIT_ROWS * SPLIT_OUTPUTS, *to = products + b * SPLIT_ROWS * outputs;
            const int64_t n = least_of(SPLIT_ROWS, rows->n - b * SPLIT_ROWS);
            /* Else tiles reach beyond the products. */
            const bool is_whole = n == SPLIT_ROWS && width == SPLIT_OUTPUTS;
            Block block = {words, weights, steps, b + 1 < blocks ? words + stride : words, weights,
                           sums, SPLIT_OUTPUTS, sums, SPLIT_OUTPUTS, ahead, lines, {}};
            if (at == 0) {
                block.from = (const float *)panel;
                block.from_stride = 0;
            } else if (is_first && is_whole) {
                block.from = to;
                block.from_stride = outputs;
            } else if (is_first) {
                copy_sums(to, outputs, sums, SPLIT_OUTPUTS, n, width);
            }
            if (is_last && is_whole) {
                block.to = to;
                block.to_stride = outputs;
            }
            if (rows->rows && b + 1 < blocks) {
                unsplit.rows += SPLIT_ROWS * rows->inputs;
                unsplit.n = least_of(SPLIT_ROWS, rows->n - (b + 1) * SPLIT_ROWS);
                unsplit.words += stride;
                block.unsplit = unsplit;
                add_block<true>(&block);
            } else {
                add_block<false>(&block);
            }
            if (is_last && !is_whole) copy_sums(sums, SPLIT_OUTPUTS, to, outputs, n, width);
        }
    }
}

/* Multiplies rows of floats; see Multiply. */
static void split_multiply(const float *rows, int64_t n, const Weights *of, int64_t share, int64_t shares, float *products,
                           int32_t *workspace) {
    const int64_t inputs = of->inputs, outputs = of->outputs, steps = split_steps(inputs);
    const int64_t panels = split_panels(outputs), panel_words = split_panel_words(inputs);
    const int64_t most_steps = least_of(steps, SPLIT_MOST_STEPS);
    float *sums = (float *)(workspace + split_blocks(least_of(n, SPLIT_MOST_ROWS)) * most_steps * STEP_WORDS);
    shape_tiles(SPLIT_ROWS);
    for (int64_t begin = 0; begin < n; begin += SPLIT_MOST_ROWS)
        for (int64_t first = 0; first < steps; first += most_steps) {
            Parts parts = {rows + begin * inputs, inputs, workspace, least_of(SPLIT_MOST_ROWS, n - begin), first,
                           least_of(most_steps, steps - first)};
            for (int64_t p = panels * share / shares; p < panels * (share + 1) / shares; p++) {
                const int32_t *panel = of->packed + p * panel_words;
                const int64_t at = p * SPLIT_OUTPUTS;
                add_panel(&parts, panel, panel + panel_words, products + begin * outputs + at, outputs,
                          least_of(SPLIT_OUTPUTS, outputs - at), sums);
                parts.rows = nullptr;
            }
        }
    release_tiles();
}
