/* Attention within packed texts, of any length: queries go in blocks and keys past them in blocks, so that a block of
 * each stays in the caches, and a softmax goes on from one block of keys to the next (Dao et al. 2022, arXiv 2205.14135).
 * Time and memory of a window grow with the length of a text, not with its square. With AMX most is computed by tiles, see
 * split_dots.h. Compiled for this processor by compile_kernels.py, and called by kernels.py. */
#include "attention.h"
#if defined(__AMX_BF16__) && defined(__linux__)
#include "split_dots.h"
#endif

/* Keys that lie together: [head][PANEL]. */
#define PANEL (KEYS * LANES)
/* Keys of a block: a multiple of PANEL. */
#ifndef KEY_BLOCK
#define KEY_BLOCK 144
#endif

/* One head: `head` is head_dim, rounded up to whole vectors with zeros. */
struct Head {
    int64_t length, head, head_dim;
    float *queries; /* [QUERY_BLOCK, head] */
    float *keys;    /* [panels, head, PANEL] */
    float *values;  /* [length, head] */
    float *tile;    /* [LANES, head] */
    float *scores;  /* [QUERIES, KEY_BLOCK] */
    float *sums;    /* [QUERY_BLOCK, head]: the values, weighted by the keys so far */
    float tops[QUERY_BLOCK]; /* the largest score so far, times LOG2_E */
    vec totals[QUERY_BLOCK]; /* the sum of the weights */
    Distances distances;     /* of this head */

    void begin(const Attention *rules, float *workspace, int64_t longest);
    int64_t most_heads() { return 1; }
    void attend(const Attention *rules, const Projected *from, int64_t k, int64_t count, int64_t begin, int64_t end, float *to);
};

/* Adds n values to sums[q], weighted by weights[q]; of QUERIES queries and `count` vectors of a value. */
template <int count>
INLINE void weigh(const float *weights, const float *values, int64_t n, int64_t head, float *sums) {
    vec total[QUERIES][count];
    for (int q = 0; q < QUERIES; q++)
        for (int w = 0; w < count; w++) total[q][w] = load(sums + q * head + w * LANES);
    for (int64_t t = 0; t < n; t++) {
        vec value[count];
        for (int w = 0; w < count; w++) value[w] = kept(values + t * head + w * LANES);
        for (int q = 0; q < QUERIES; q++)
            for (int w = 0; w < count; w++) total[q][w] += weights[q * KEY_BLOCK + t] * value[w];
    }
    for (int q = 0; q < QUERIES; q++)
        for (int w = 0; w < count; w++) store(sums + q * head + w * LANES, total[q][w]);
}

/* Scores of tokens outside [first, last) become minus infinity. */
INLINE vec seen(vec scores, int64_t at, int64_t first, int64_t last) {
    ints token = (int32_t)at - ints{};
    for (int i = 0; i < LANES; i++) token[i] += i;
    ints inside = (token >= (int32_t)first) & (token < (int32_t)last);
    return inside ? scores : all(-__builtin_inff());
}

/* scores[q][k..] += keys[k..] . rows[k - q..], of QUERIES queries and `count` vectors of keys of a panel. */
template <int count>
INLINE void add_by_keys(const float *keys, const float *rows, int64_t stride, int64_t head_dim, float *scores) {
    vec sums[QUERIES][count];
    for (int q = 0; q < QUERIES; q++)
        for (int k = 0; k < count; k++) sums[q][k] = load(scores + q * KEY_BLOCK + k * LANES);
    for (int64_t d = 0; d < head_dim; d++) {
        vec key[count];
        for (int k = 0; k < count; k++) key[k] = kept(keys + d * PANEL + k * LANES);
        for (int q = 0; q < QUERIES; q++)
            for (int k = 0; k < count; k++) sums[q][k] += load(rows + d * stride + k * LANES - q) * key[k];
    }
    for (int q = 0; q < QUERIES; q++)
        for (int k = 0; k < count; k++) store(scores + q * KEY_BLOCK + k * LANES, sums[q][k]);
}

/* Adds what depends on distances to the scores of QUERIES queries and n keys, the first of which is a panel's, and
 * `distance` tokens after the first query. */
APART void add_distances(const Head *of, const float *queries, const float *keys, int64_t distance, int64_t n,
                         float *scores) {
    const Distances *by = &of->distances;
    const int64_t stride = by->stride;
    if (by->bias)
        for (int q = 0; q < QUERIES; q++)
            for (int64_t k = 0; k < n; k += LANES) {
                float *at = scores + q * KEY_BLOCK + k;
                store(at, load(at) + load(by->bias + distance + k - q));
            }
    if (by->keys) {
        /* Query q and the key of distance d are at [q, d + QUERIES - 1 - distance], and a key's distance falls with q. */
        enum { WIDTH = KEY_BLOCK + PANEL };
        float products[QUERIES * WIDTH];
        const float *rows = by->keys + distance - (QUERIES - 1);
        const int64_t columns = rounded_up(n + QUERIES - 1, LANES);
        int64_t c = 0;
        for (; c + PANEL <= columns; c += PANEL)
            score<KEYS>(queries, of->head, rows + c, stride, of->head_dim, products + c, WIDTH);
        for (; c < columns; c += LANES) score<1>(queries, of->head, rows + c, stride, of->head_dim, products + c, WIDTH);
        for (int q = 0; q < QUERIES; q++)
            for (int64_t k = 0; k < n; k += LANES) {
                float *at = scores + q * KEY_BLOCK + k;
                store(at, load(at) + load(products + q * WIDTH + k + QUERIES - 1 - q));
            }
    }
    if (by->queries) {
        const float *rows = by->queries + distance;
        int64_t k = 0;
        for (; k + PANEL <= n; k += PANEL) add_by_keys<KEYS>(keys + k * of->head, rows + k, stride, of->head_dim, scores + k);
        for (int64_t rest = k; rest < n; rest += LANES)
            add_by_keys<1>(keys + k * of->head + rest - k, rows + rest, stride, of->head_dim, scores + rest);
    }
}

/* Scales what QUERIES queries have summed to the largest scores `now`, times LOG2_E. */
APART void rescale(Head *of, int64_t query, const vec *now) {
    for (int q = 0; q < QUERIES; q++) {
        vec x = all(of->tops[query + q]) - now[q];
        vec factor = x < -126.0f ? vec{} : power_of_two(x);
        of->totals[query + q] *= factor;
        of->tops[query + q] = now[q][0];
        float *sums = of->sums + (query + q) * of->head;
        for (int64_t d = 0; d < of->head; d += LANES) store(sums + d, load(sums + d) * factor);
    }
}

/* QUERIES queries from `query` on, and the keys of a block that one of them sees. */
APART void attend_tile(Head *of, const Attention *rules, int64_t block, int64_t first, int64_t query) {
    const int64_t head = of->head, length = of->length, end = least(length, query + QUERIES) - 1;
    const int64_t base = block * KEY_BLOCK;
    /* Tokens and their scores count from the first of the block. */
    const int64_t from = most(0, first_seen(rules, query) - base);
    const int64_t to = least(KEY_BLOCK, last_seen(rules, end, length) - base);
    if (from >= to) return;
    const int64_t begin = from / PANEL * PANEL, stop = rounded_up(to, LANES);
    const float *queries = of->queries + (query - first) * head, *keys = of->keys + base * head;
    float *scores = of->scores;
    int64_t t = begin;
    for (; t + PANEL <= stop; t += PANEL) score<KEYS>(queries, head, keys + t * head, PANEL, head, scores + t, KEY_BLOCK);
    if (stop - t == 2 * LANES) score<2>(queries, head, keys + t * head, PANEL, head, scores + t, KEY_BLOCK);
    if (stop - t == LANES) score<1>(queries, head, keys + t * head, PANEL, head, scores + t, KEY_BLOCK);
    if (of->distances.stride)
        add_distances(of, queries, keys + begin * head, base + begin - query, stop - begin, scores + begin);
    /* All of the queries see [inner, outer). */
    const int64_t inner = first_seen(rules, end) - base, outer = last_seen(rules, query, length) - base;
    float *tops = of->tops + (query - first);
    vec *totals = of->totals + (query - first), now[QUERIES];
    for (int q = 0; q < QUERIES; q++) now[q] = all(LOWEST);
    for (t = begin; t < stop; t += LANES) {
        if (t < inner || t + LANES > outer)
            for (int q = 0; q < QUERIES; q++) {
                float *at = scores + q * KEY_BLOCK + t;
                store(at, seen(load(at), base + t, first_seen(rules, query + q), last_seen(rules, query + q, length)));
            }
        for (int q = 0; q < QUERIES; q++) now[q] = largest(load(scores + q * KEY_BLOCK + t), now[q]);
    }
    int rises = 0;
    for (int q = 0; q < QUERIES; q++) {
        now[q] = largest(largest_of(now[q]) * LOG2_E, all(tops[q]));
        rises |= now[q][0] > tops[q];
    }
    if (rises) rescale(of, query - first, now);
    for (t = begin; t < stop; t += LANES)
        for (int q = 0; q < QUERIES; q++) {
            vec x = load(scores + q * KEY_BLOCK + t) * LOG2_E - now[q];
            vec e = x < -126.0f ? vec{} : power_of_two(x);
            store(scores + q * KEY_BLOCK + t, e);
            totals[q] += e;
        }
    float *sums = of->sums + (query - first) * head;
    const float *values = of->values + (base + from) * head;
    int64_t d = 0;
    /* A vector alone would load as much as it computes: four are two and two. */
    for (; head - d >= WIDE * LANES && head - d != 4 * LANES; d += WIDE * LANES)
        weigh<WIDE>(scores + from, values + d, to - from, head, sums + d);
    for (; head - d >= 2 * LANES; d += 2 * LANES) weigh<2>(scores + from, values + d, to - from, head, sums + d);
    if (head - d == LANES) weigh<1>(scores + from, values + d, to - from, head, sums + d);
}

/* Copies the queries [first, last) of a head, and zeros up to a multiple of QUERIES. */
APART void copy_queries(Head *of, const Projected *from, int64_t at, const Norm *norm, int64_t first, int64_t last) {
    prepare(from, first, last, at, norm, of->head_dim, of->queries, of->head);
    int64_t n = last - first, padded = rounded_up(n, QUERIES);
    __builtin_memset(of->queries + n * of->head, 0, sizeof(float) * (padded - n) * of->head);
    __builtin_memset(of->sums, 0, sizeof(float) * padded * of->head);
    for (int64_t q = 0; q < padded; q++) {
        of->tops[q] = LOWEST;
        of->totals[q] = vec{};
    }
}

/* Copies the keys and values of a head's tokens [first, last), the first a multiple of PANEL. */
APART void copy_keys(Head *of, const Projected *from, int64_t key, int64_t value, const Norm *norm, int64_t first,
                     int64_t last) {
    const int64_t head = of->head;
    Projected plain = *from;
    plain.cosine = nullptr;
    prepare(&plain, first, last, value, nullptr, of->head_dim, of->values + first * head, head);
    for (; first < last; first += LANES) {
        const int64_t n = least(LANES, last - first);
        prepare(from, first, first + n, key, norm, of->head_dim, of->tile, head);
        __builtin_memset(of->tile + n * head, 0, sizeof(float) * (LANES - n) * head);
        float *panel = of->keys + first / PANEL * PANEL * head + first % PANEL;
        for (int64_t d = 0; d < head; d += LANES) {
            vec rows[LANES];
            for (int i = 0; i < LANES; i++) rows[i] = load(of->tile + i * head + d);
            transpose(rows);
            for (int i = 0; i < LANES; i++) store(panel + (d + i) * PANEL, rows[i]);
        }
    }
}

/* Writes the result of `n` queries of a head, whose rows are `stride` apart. */
INLINE void write_context(const Head *of, int64_t n, int64_t stride, float *to) {
    for (int64_t q = 0; q < n; q++) {
        vec inverse = 1.0f / sum_of(of->totals[q]);
        const float *sums = of->sums + q * of->head;
        for (int64_t d = 0; d < of->head; d += LANES) {
            vec x = load(sums + d) * inverse;
            if (d + LANES <= of->head_dim)
                store(to + q * stride + d, x);
            else
                for (int64_t i = 0; d + i < of->head_dim; i++) to[q * stride + d + i] = x[i];
        }
    }
}

void Head::attend(const Attention *rules, const Projected *from, int64_t k, int64_t, int64_t begin, int64_t end, float *to) {
    const int64_t width = rules->heads * head_dim, served = rules->heads / rules->key_heads;
    const int64_t key = width + k * head_dim, value = key + rules->key_heads * head_dim;
    copy_keys(this, from, key, value, rules->key_norm, first_seen(rules, begin) / PANEL * PANEL,
              last_seen(rules, end - 1, length));
    for (int64_t h = k * served; h < (k + 1) * served; h++) {
        distances = distances_of(rules, h);
        for (int64_t first = begin; first < end; first += QUERY_BLOCK) {
            const int64_t last = least(end, first + QUERY_BLOCK);
            copy_queries(this, from, h * head_dim, rules->query_norm, first, last);
            const int64_t final = (last_seen(rules, last - 1, length) - 1) / KEY_BLOCK;
            for (int64_t block = first_seen(rules, first) / KEY_BLOCK; block <= final; block++)
                for (int64_t query = first; query < last; query += QUERIES) attend_tile(this, rules, block, first, query);
            write_context(this, last - first, width, to + first * width + h * head_dim);
        }
    }
}

INLINE int64_t key_numbers(int64_t length, int64_t head) { return rounded_up(length, PANEL) * head; }

/* The size of a workspace of Head for texts of up to `length` tokens, in numbers. */
INLINE int64_t workspace_numbers(int64_t length, int64_t head_dim) {
    const int64_t head = rounded_up(head_dim, LANES);
    return 2 * key_numbers(length, head) + (2 * QUERY_BLOCK + LANES) * head + QUERIES * KEY_BLOCK;
}

void Head::begin(const Attention *rules, float *workspace, int64_t longest) {
    head_dim = rules->head_dim;
    head = rounded_up(head_dim, LANES);
    /* The padding of heads stays zero. */
    if (head != head_dim) __builtin_memset(workspace, 0, sizeof(float) * workspace_numbers(longest, head_dim));
    keys = workspace;
    values = keys + key_numbers(longest, head);
    queries = values + key_numbers(longest, head);
    sums = queries + QUERY_BLOCK * head;
    tile = sums + QUERY_BLOCK * head;
    scores = tile + LANES * head;
}

#if defined(TILES)
/* Texts of up to so many tokens leave most of a tile's rows empty. */
#define SHORT 16

/* One head of any text, in tiles unless it is short. */
struct EitherHead {
    int64_t length;
    Head of_short;
    TiledHead<SplitTiles> of_long;

    int64_t most_heads() {
        of_long.length = length;
        return length <= SHORT ? 1 : of_long.most_heads();
    }
    void attend(const Attention *rules, const Projected *from, int64_t k, int64_t count, int64_t begin, int64_t end,
                float *to) {
        of_short.length = of_long.length = length;
        if (length <= SHORT) of_short.attend(rules, from, k, count, begin, end, to);
        else of_long.attend(rules, from, k, count, begin, end, to);
    }
};
#endif

/* Size of the workspace of embedkit_attend for texts of up to `length` tokens and rows of projections of this width, in
 * numbers. */
extern "C" int64_t embedkit_attend_workspace(int64_t length, int64_t head_dim, int64_t width) {
    const int64_t numbers = workspace_numbers(length, head_dim);
#if defined(TILES)
    const int64_t of_short = rounded_up(workspace_numbers(SHORT, head_dim), LANES);
    if (has_tiles) return most(numbers, of_short + TiledHead<SplitTiles>::workspace_words(length, head_dim, width));
#endif
    (void)width;
    return numbers;
}

/* Attention within packed texts.
 *
 * from: [T, (heads + 2 * key_heads) * head_dim]: queries (scaled), keys, values.
 * out: [T, heads * head_dim]; in its form only if shares is 1.
 * workspace: see embedkit_attend_workspace.
 * share, shares: computes that part of the work; each part writes numbers of its own.
 */
extern "C" void embedkit_attend(const Products *from, const Texts *texts, const Attention *rules, const Rows *out,
                                float *workspace, int64_t share, int64_t shares) {
#if defined(TILES)
    if (has_tiles && !rules->distances.keys && !rules->distances.queries) {
        [[maybe_unused]] const FlushedToZero flushed;
        EitherHead of;
        of.of_short.begin(rules, workspace, SHORT);
        of.of_long.begin(rules, workspace + rounded_up(workspace_numbers(SHORT, rules->head_dim), LANES), from->width);
        shape_tiles(2 * TILE_ROWS);
        attend(&of, from, texts, rules, out, share, shares);
        release_tiles();
        return;
    }
#endif
    Head of;
    of.begin(rules, workspace, longest_of(texts));
    attend(&of, from, texts, rules, out, share, shares);
}
