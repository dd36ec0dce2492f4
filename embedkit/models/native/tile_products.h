/* Matrix products by tiles, with the panels of panels.h, which includes this.
 *
 * A product of two tiles takes 16 cycles. A kilobyte is loaded in 8 cycles from the first cache, 20 from the second and 130
 * from the third. So the rows of a tile are multiplied in blocks of inputs that stay in the first cache while weights
 * pass, and some weights in the second while all rows pass. Sums are stored where the results go, without any work on them:
 * while tiles are multiplied, vectors have half of their units. */
#pragma once

/* Words of weights that stay in the second cache while the rows of one tile after another pass. */
#ifndef TILE_WEIGHTS
#define TILE_WEIGHTS (1 << 17)
#endif
/* Words of inputs that are multiplied together: 32 rows of so many are 16 KiB. Up to half as many again stay whole. */
#ifndef TILE_INPUTS
#define TILE_INPUTS 128
#endif

/* Adds the products of some words of one or two tiles of rows, which are `stride` words apart, and of weights. Rows of the
 * sums that this begins with, and of the results, are so many bytes apart. */
template <class Kind, bool two>
static void add_tiles(const word *rows, int64_t stride, int64_t count, const int32_t *weights,
                      const typename Kind::Sum *from, int64_t apart, typename Kind::Sum *to, int64_t to_apart) {
    const word *below = rows + TILE_ROWS * stride;
    TILE_LOAD(0, from, apart);
    TILE_LOAD(1, from + LANES, apart);
    if (two) {
        TILE_LOAD(2, (const char *)from + TILE_ROWS * apart, apart);
        TILE_LOAD(3, (const char *)(from + LANES) + TILE_ROWS * apart, apart);
    }
    for (int64_t g = 0; g < count; g += TILE_WORDS) {
        TILE_LOAD(4, rows + g, stride * 4);
        TILE_LOAD(6, weights + g * OUTPUTS, OUTPUTS * 4);
        TILE_DOT(0, 4, 6);
        TILE_LOAD(7, weights + g * OUTPUTS + LANES, OUTPUTS * 4);
        TILE_DOT(1, 4, 7);
        if (two) {
            TILE_LOAD(5, below + g, stride * 4);
            TILE_DOT(2, 5, 6);
            TILE_DOT(3, 5, 7);
        }
    }
    TILE_STORE(0, to, to_apart);
    TILE_STORE(1, to + LANES, to_apart);
    if (two) {
        TILE_STORE(2, (char *)to + TILE_ROWS * to_apart, to_apart);
        TILE_STORE(3, (char *)(to + LANES) + TILE_ROWS * to_apart, to_apart);
    }
}

/* Writes `count` rows of the sums of a panel, from the output `at` on, as results if they are to be scaled. */
template <class Kind, bool scaled>
static void write_sums(const typename Kind::Sum *sums, int64_t count, const Weights *of, int64_t at, float *products) {
    const float *scale = of->scale + at;
    const int64_t rest = of->outputs - at;
    for (int64_t t = 0; t < count; t++, sums += OUTPUTS, products += of->outputs) {
        if (!scaled)
            __builtin_memcpy(products, sums, sizeof *sums * rest);
        else if (rest >= OUTPUTS)
            for (int v = 0; v < OUTPUTS; v += LANES)
                *(floats_at *)(products + v) = Kind::results(*(const typename Kind::SumsAt *)(sums + v), scale + v);
        else
            for (int64_t o = 0; o < rest; o++) products[o] = Kind::result(sums[o], scale + o);
    }
}

/* Multiplies up to 2 * TILE_ROWS rows with the panels [first, last). */
template <class Kind, bool scaled, bool two>
static void multiply_tiles(const word *words, int64_t count, const Weights *of, int64_t first, int64_t last,
                           float *products) {
    typedef typename Kind::Sum Sum;
    /* Sums of the panel that is the last one, if it has not all its outputs: there are no others beside them, for all columns
     * of a tile. And those that are to be scaled. */
    alignas(64) Sum of_part[2 * TILE_ROWS * OUTPUTS], whole[2 * TILE_ROWS * OUTPUTS];
    const int64_t groups = groups_of<Kind>(of->inputs), most = groups <= TILE_INPUTS * 3 / 2 ? groups : TILE_INPUTS;
    for (int64_t g = 0; g < groups; g += most) {
        const int64_t here = groups - g < most ? groups - g : most;
        for (int64_t p = first; p < last; p++) {
            const int32_t *panel = of->packed + p * panel_words<Kind>(of->inputs);
            float *to = products + p * OUTPUTS;
            const bool is_part = of->outputs - p * OUTPUTS < OUTPUTS, is_last = g + here == groups;
            Sum *before = is_part ? of_part : (Sum *)to, *after = scaled && is_last && !is_part ? whole : before;
            const int64_t stride = is_part ? OUTPUTS * 4 : of->outputs * 4;
            add_tiles<Kind, two>(words + g, groups, here, panel + (1 + g) * OUTPUTS, g ? before : (const Sum *)panel,
                                 g ? stride : 0, after, after == whole ? OUTPUTS * 4 : stride);
            if (is_last && (scaled || is_part)) write_sums<Kind, scaled>(after, count, of, p * OUTPUTS, to);
        }
    }
}

/* Does the same as multiply_words by tiles; without `scaled`, it writes the sums alone. Some panels come after others, so
 * that their weights stay in the second cache while all rows pass. */
template <class Kind, bool scaled>
static void multiply_by_tiles(const word *words, int64_t count, const Weights *of, int64_t first, int64_t last,
                              float *products) {
    const int64_t groups = groups_of<Kind>(of->inputs), some = 1 + TILE_WEIGHTS / panel_words<Kind>(of->inputs);
    for (int64_t p = first; p < last; p += some) {
        const int64_t end = last - p < some ? last : p + some;
        for (int64_t t = 0; t < count; t += 2 * TILE_ROWS) {
            const int64_t rows = count - t < 2 * TILE_ROWS ? count - t : 2 * TILE_ROWS;
            if (t == 0 || rows < 2 * TILE_ROWS) shape_tiles(rows);
            float *to = products + t * of->outputs;
            if (rows > TILE_ROWS) multiply_tiles<Kind, scaled, true>(words + t * groups, rows, of, p, end, to);
            else multiply_tiles<Kind, scaled, false>(words + t * groups, rows, of, p, end, to);
        }
    }
    release_tiles();
}
