/* Matrix products of rows of activations and of weights in panels: what the sources of fp32, bf16 and int8 share.
 * They define LANES, a class Kind of the numbers, types and functions that differ, and TILE_DOT where a processor may
 * have tiles (tiles.h).
 *
 * A word of 32 bits holds Kind::group inputs. Kind::dot adds, to each of LANES sums, the products of its word of weights
 * and of a word of activations that all sums share. A panel has the weights of OUTPUTS outputs: first what their sums
 * start from, then a word of each for every group. Where Kind::starts_differ, they start from numbers of each row instead.
 * Where Kind::adds_blocks, the sums of a block of groups start from 0, and are added to those before: rounding errors are
 * those of a block, and not of a row.
 */
#pragma once
#include "structs.h"

#define INLINE static inline __attribute__((always_inline))

/* Rows and vectors of outputs whose sums are in registers together: of 32 registers or of 16. Two vectors of outputs
 * are two tiles of weights, too. */
#if defined(TILE_DOT)
#include "tiles.h"
#define ROWS 12
#define VECTORS 2
#elif defined(ROWS) /* as an instruction needs them */
#elif LANES == 16 || defined(__aarch64__)
#define ROWS 8
#define VECTORS 3
#else
#define ROWS 6
#define VECTORS 2
#endif
#define OUTPUTS (VECTORS * LANES)

typedef int32_t ints __attribute__((vector_size(LANES * 4), may_alias));
typedef int32_t ints_at __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t word __attribute__((may_alias, aligned(1)));
typedef float floats __attribute__((vector_size(LANES * 4)));
typedef float floats_at __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

/* Groups of a panel of weights that stay in the first cache while all rows pass. */
#ifndef GROUPS
#define GROUPS 192
#endif
/* Words of a line of the caches. */
#define LINE 16
/* Whether weights are brought into the second cache before they are multiplied. Those that are there already are
 * multiplied up to a tenth slower for it. */
#ifndef AHEAD
#define AHEAD 0
#endif
/* Words of activations that stay in the second. */
#ifndef WORDS
#define WORDS (1 << 16)
#endif
/* Rows whose sums are near enough, between one block of groups and the next. */
#ifndef MOST_ROWS
#define MOST_ROWS (1 << 20)
#endif

/* Words of a row of inputs; with tiles, whole rows of them. */
template <class Kind> INLINE int64_t groups_of(int64_t inputs) {
    const int64_t groups = (inputs + Kind::group - 1) / Kind::group;
#if defined(TILE_DOT)
    return (groups + TILE_WORDS - 1) / TILE_WORDS * TILE_WORDS;
#else
    return groups;
#endif
}
template <class Kind> INLINE int64_t panel_words(int64_t inputs) { return (1 + groups_of<Kind>(inputs)) * OUTPUTS; }
INLINE int64_t panels_of(int64_t outputs) { return (outputs + OUTPUTS - 1) / OUTPUTS; }

/* Rows of activations that are multiplied together. */
template <class Kind> INLINE int64_t rows_at_once(int64_t n, int64_t inputs) {
    int64_t most = WORDS / groups_of<Kind>(inputs) / ROWS * ROWS;
    if (most < ROWS) most = ROWS;
    if (most > MOST_ROWS) most = MOST_ROWS;
    return n < most ? n : most;
}

/* The size of packed weights, in words. */
template <class Kind> INLINE int64_t packed_words(int64_t outputs, int64_t inputs) {
    return panels_of(outputs) * panel_words<Kind>(inputs);
}

/* The size of the workspace of `multiply` for n rows, in words. */
template <class Kind> INLINE int64_t workspace_words(int64_t n, int64_t inputs) {
    const int64_t rows = rows_at_once<Kind>(n, inputs), groups = groups_of<Kind>(inputs);
    int64_t words = rows * (groups + OUTPUTS);
    if constexpr (Kind::starts_differ) words += Kind::beside_words(rows, groups);
    return words;
}

/* The first word of an output among packed weights: what its sums start from. */
template <class Kind> INLINE int32_t *start_of(int32_t *packed, int64_t output, int64_t inputs) {
    return packed + output / OUTPUTS * panel_words<Kind>(inputs) + output % OUTPUTS;
}

/* Packs weights [outputs, inputs]; sums start from 0. */
template <class Kind>
static void pack(const typename Kind::Weight *weights, int64_t outputs, int64_t inputs, int32_t *packed) {
    __builtin_memset(packed, 0, sizeof *packed * packed_words<Kind>(outputs, inputs));
    for (int64_t o = 0; o < outputs; o++)
        for (int64_t i = 0; i < inputs; i++) {
            const typename Kind::Part part = weights[o * inputs + i];
            int32_t *words = start_of<Kind>(packed, o, inputs) + (1 + i / Kind::group) * OUTPUTS;
            __builtin_memcpy((char *)words + i % Kind::group * sizeof part, &part, sizeof part);
        }
}

/* Part of the sums of some rows and of a panel of outputs. */
template <class Kind> struct Tile {
    const word *activations; /* of the first row; rows are `stride` words apart */
    int64_t stride;
    const int32_t *weights;
    int64_t groups;
    const typename Kind::Sum *from; /* what the sums start from: rows are `step` apart */
    int64_t step;
    typename Kind::Sum *to; /* the sums, OUTPUTS a row; or, if nullptr: */
    float *products;        /* the results; rows are `outputs` apart */
    const float *scale;
    int64_t outputs;
    /* Weights of the next tiles, of which this one brings in `lines` lines with each `every` groups of its own. */
    const int32_t *ahead;
    int64_t lines, every;
};

template <class Kind, int rows> static void add_products(const Tile<Kind> *tile) {
    typedef typename Kind::SumsAt SumsAt;
    const int64_t stride = tile->stride, groups = tile->groups;
    const word *activations = tile->activations;
    const int32_t *weights = tile->weights;
    typename Kind::Sums sums[rows][VECTORS];
    const auto from = [&](int r, int v) -> typename Kind::Sums {
        return *(const SumsAt *)(tile->from + r * tile->step + v * LANES);
    };
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECTORS; v++) sums[r][v] = Kind::adds_blocks ? typename Kind::Sums{} : from(r, v);
    const int32_t *ahead = tile->ahead;
    for (int64_t g = 0; g < groups;) {
        const int64_t until = groups - g < tile->every ? groups : g + tile->every;
        for (int64_t l = 0; l < tile->lines; l++, ahead += LINE) __builtin_prefetch(ahead, 0, 2);
        for (; g < until; g++) {
            ints of_weights[VECTORS];
            for (int v = 0; v < VECTORS; v++) of_weights[v] = *(const ints_at *)(weights + g * OUTPUTS + v * LANES);
            for (int r = 0; r < rows; r++) {
                ints shared = activations[r * stride + g] - ints{};
                for (int v = 0; v < VECTORS; v++) sums[r][v] = Kind::dot(sums[r][v], shared, of_weights[v]);
            }
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECTORS; v++) {
            if (Kind::adds_blocks) sums[r][v] += from(r, v);
            if (tile->to)
                *(SumsAt *)(tile->to + r * OUTPUTS + v * LANES) = sums[r][v];
            else
                *(floats_at *)(tile->products + r * tile->outputs + v * LANES) =
                    Kind::results(sums[r][v], tile->scale + v * LANES);
        }
}

/* The same for 1 to `rows` rows. */
template <class Kind, int rows = ROWS> static void add_some(int64_t count, const Tile<Kind> *tile) {
    if constexpr (rows > 1)
        if (count < rows) return add_some<Kind, rows - 1>(count, tile);
    add_products<Kind, rows>(tile);
}

/* Writes n rows of inputs as words. */
template <class Kind>
static void widen(const typename Kind::Input *__restrict inputs, int64_t n, int64_t width, int32_t *__restrict words) {
    const int64_t groups = groups_of<Kind>(width);
    for (int64_t t = 0; t < n; t++) {
        typename Kind::Part *to = (typename Kind::Part *)(words + t * groups);
        for (int64_t i = 0; i < width; i++) to[i] = Kind::part(inputs[t * width + i]);
        for (int64_t i = width; i < groups * Kind::group; i++) to[i] = 0;
    }
}

/* Multiplies `count` rows of words with the panels [first, last). */
template <class Kind>
static void multiply_words(const word *words, int64_t count, const Weights *of, int64_t first, int64_t last,
                           float *products, typename Kind::Sum *sums) {
    typedef typename Kind::Sum Sum;
    const int64_t inputs = of->inputs, outputs = of->outputs, groups = groups_of<Kind>(inputs);
    /* All rows together bring the next weights, evenly: others wait for what is in flight. */
    const int64_t by_all = (count + ROWS - 1) / ROWS * LINE, lines = AHEAD ? (OUTPUTS + by_all - 1) / by_all : 0;
    const int64_t every = !AHEAD ? GROUPS : by_all < OUTPUTS ? 1 : by_all / OUTPUTS;
    for (int64_t p = first; p < last; p++) {
        const int32_t *panel = of->packed + p * panel_words<Kind>(inputs), *weights = panel + OUTPUTS;
        const int64_t at = p * OUTPUTS, rest = outputs - at;
        const float *scale = of->scale + at;
        float *to = products + at;
        if constexpr (Kind::starts_differ) Kind::start(sums + count * OUTPUTS, count, weights, sums);
        for (int64_t g = 0; g < groups; g += GROUPS) {
            /* The last sums of a whole panel become results while they are in registers. */
            const bool are_results = g + GROUPS >= groups && rest >= OUTPUTS;
            const bool have_sums = g || Kind::starts_differ;
            const int64_t here = groups - g < GROUPS ? groups - g : GROUPS;
            const int32_t *ahead = weights + (g + here) * OUTPUTS;
            const int64_t step = (here + every - 1) / every * lines * LINE;
            for (int64_t t = 0; t < count; t += ROWS) {
                Sum *of_rows = sums + t * OUTPUTS;
                const Tile<Kind> tile = {words + t * groups + g, groups, weights + g * OUTPUTS,
                                         here, have_sums ? of_rows : (const Sum *)panel, have_sums ? OUTPUTS : 0,
                                         are_results ? nullptr : of_rows, to + t * outputs, scale, outputs,
                                         ahead + t / ROWS * step, lines, every};
                add_some(count - t, &tile);
            }
        }
        if (rest < OUTPUTS)
            for (int64_t t = 0; t < count; t++)
                for (int64_t o = 0; o < rest; o++)
                    to[t * outputs + o] = Kind::result(sums[t * OUTPUTS + o], scale + o);
    }
}

#if defined(TILE_DOT)
#include "tile_products.h"
#endif

/* Multiplies rows [n, inputs]; see Multiply. Without `scaled`, and with tiles, it computes the sums alone. */
template <class Kind, bool scaled = true>
static void multiply(const void *rows, int64_t n, const Weights *of, int64_t share, int64_t shares, float *products,
                     int32_t *workspace) {
    typedef typename Kind::Sum Sum;
    const int64_t inputs = of->inputs, outputs = of->outputs;
    const int64_t groups = groups_of<Kind>(inputs), at_once = rows_at_once<Kind>(n, inputs);
    const int64_t first = panels_of(outputs) * share / shares, last = panels_of(outputs) * (share + 1) / shares;
    const bool are_words = Kind::are_parts && groups * Kind::group == inputs;
    for (int64_t begin = 0; begin < n; begin += at_once) {
        const int64_t count = n - begin < at_once ? n - begin : at_once;
        const typename Kind::Input *some = (const typename Kind::Input *)rows + begin * inputs;
        Sum *sums = (Sum *)(workspace + at_once * groups);
        if constexpr (Kind::starts_differ) Kind::prepare(some, count, inputs, workspace, sums + count * OUTPUTS);
        else if (!are_words) widen<Kind>(some, count, inputs, workspace);
        const word *words = are_words ? (const word *)some : (const word *)workspace;
        float *to = products + begin * outputs;
#if defined(TILE_DOT)
        if (has_tiles) {
            multiply_by_tiles<Kind, scaled>(words, count, of, first, last, to);
            continue;
        }
#endif
        multiply_words<Kind>(words, count, of, first, last, to, sums);
    }
}
