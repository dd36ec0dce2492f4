/* What attention.cpp and bf16_attention.cpp share: which tokens are seen, the heads' numbers, and the order of the work.
 *
 * Each of them defines a class Head with a head's keys, values and queries in its own layout. */
#pragma once
#include "vectors.h"

/* Queries of a block, which a thread computes for all keys: a multiple of the queries that a Head has in registers. */
#ifndef QUERY_BLOCK
#define QUERY_BLOCK 96
#endif

/* A product of which nothing is left next to any score, and whose product with LOG2_E is finite. */
#define LOWEST -1e38f

INLINE int64_t rounded_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

/* The tokens [first, last) that a query sees. */
INLINE int64_t first_seen(const Attention *of, int64_t query) { return of->reach < 0 ? 0 : most(0, query - of->reach); }
INLINE int64_t last_seen(const Attention *of, int64_t query, int64_t length) {
    if (of->causal) return query + 1;
    return of->reach < 0 ? length : least(length, query + of->reach + 1);
}

/* Rotates each pair of numbers that are half a head apart. */
INLINE void rotate(float *head, const float *cosine, const float *sine, int64_t half) {
    int64_t i = 0;
    for (; i + LANES <= half; i += LANES) {
        vec a = load(head + i), b = load(head + half + i), c = load(cosine + i), s = load(sine + i);
        store(head + i, a * c - b * s);
        store(head + half + i, b * c + a * s);
    }
    for (; i < half; i++) {
        float a = head[i], b = head[half + i];
        head[i] = a * cosine[i] - b * sine[i];
        head[half + i] = b * cosine[i] + a * sine[i];
    }
}

/* Where a text's projections are: queries of all heads, then keys, then values of all of theirs. */
struct Projected {
    const float *values, *scale, *bias, *cosine, *sine;
    int64_t stride;
};

/* Copies the part that begins at `at` of tokens [first, last), normalises and rotates it; rows of `to` are `head` apart. */
APART void prepare(const Projected *from, int64_t first, int64_t last, int64_t at, const Norm *norm, int64_t head_dim,
                   float *to, int64_t head) {
    const float *values = from->values + at, *bias = from->scale ? from->bias + at : nullptr;
    const int64_t half = head_dim / 2;
    for (int64_t t = first; t < last; t++, to += head) {
        const float *row = values + t * from->stride;
        int64_t d = 0;
        if (bias) {
            const float scale = from->scale[t];
            for (; d + LANES <= head_dim; d += LANES) store(to + d, load(row + d) * scale + load(bias + d));
            for (; d < head_dim; d++) to[d] = row[d] * scale + bias[d];
        } else {
            for (; d + LANES <= head_dim; d += LANES) store(to + d, load(row + d));
            for (; d < head_dim; d++) to[d] = row[d];
        }
        if (norm) normalise(to, norm, head_dim, to);
        if (from->cosine) rotate(to, from->cosine + t * half, from->sine + t * half, half);
    }
}

/* What a block of queries costs, in keys. */
INLINE int64_t cost(const Attention *rules, int64_t first, int64_t length) {
    return 64 + last_seen(rules, least(length, first + QUERY_BLOCK) - 1, length) - first_seen(rules, first);
}

INLINE int64_t cost_of_head(const Attention *rules, int64_t length) {
    int64_t sum = 0;
    for (int64_t first = 0; first < length; first += QUERY_BLOCK) sum += cost(rules, first, length);
    return sum;
}

/* The queries [begin, end) of a key head that are of a share: those of blocks whose work begins in [from, to). */
INLINE void find_queries(const Attention *rules, int64_t length, int64_t work, int64_t from, int64_t to, int64_t *begin,
                         int64_t *end) {
    *begin = *end = 0;
    for (int64_t first = 0; first < length; first += QUERY_BLOCK) {
        if (work >= from && work < to) {
            if (*begin == *end) *begin = first;
            *end = least(length, first + QUERY_BLOCK);
        }
        work += cost(rules, first, length);
    }
}

/* The numbers by distance of head h. */
INLINE Distances distances_of(const Attention *rules, int64_t h) {
    const Distances *of = &rules->distances;
    const int64_t rows = h * rules->head_dim * of->stride;
    return {of->bias ? of->bias + h * of->stride : nullptr, of->keys ? of->keys + rows : nullptr,
            of->queries ? of->queries + rows : nullptr, of->stride};
}

/* Computes attention; see embedkit_attend in attention.cpp.
 *
 * Head::attend computes the queries [begin, end) of the heads that `count` key heads from k on serve, for one text, and
 * writes them in rows that are as wide as all heads; Head::most_heads says for how many key heads, all of whose queries
 * are wanted, it is called at once. */
template <class Head>
INLINE void attend(Head *of, const Products *from, const Texts *texts, const Attention *rules, const Rows *out,
                   int64_t share, int64_t shares) {
    const int64_t key_heads = rules->key_heads, half = rules->head_dim / 2, width = rules->heads * rules->head_dim;
    int64_t all_work = 0, work = 0, start = 0;
    for (int64_t text = 0; text < texts->count; text++) all_work += key_heads * cost_of_head(rules, texts->lengths[text]);
    const int64_t from_work = all_work * share / shares, to_work = all_work * (share + 1) / shares;
    for (int64_t text = 0; text < texts->count; text++) {
        const int64_t length = texts->lengths[text], of_head = cost_of_head(rules, length);
        const Projected projected = {from->values + start * from->width,
                                     from->scale ? from->scale + start : nullptr,
                                     from->bias,
                                     rules->cosine ? rules->cosine + start * half : nullptr,
                                     rules->sine ? rules->sine + start * half : nullptr,
                                     from->width};
        of->length = length;
        for (int64_t k = 0, count; k < key_heads; k += count, work += count * of_head) {
            int64_t begin, end;
            find_queries(rules, length, work, from_work, to_work, &begin, &end);
            count = 1;
            if (begin == end) continue;
            /* The work of a head begins before that of its last block. */
            const int64_t whole = begin == 0 && end == length ? (to_work - work) / of_head : 1;
            count = least(least(of->most_heads(), key_heads - k), most(1, whole));
            of->attend(rules, &projected, k, count, begin, end, out->values + start * width);
        }
        for (int64_t t = start; t < start + length && shares == 1 && out->form != FLOATS; t++)
            write_inputs(out, t, out->values + t * width, sizes(out->values + t * width, width), width);
        start += length;
    }
}

INLINE int64_t longest_of(const Texts *texts) {
    int64_t longest = 0;
    for (int64_t text = 0; text < texts->count; text++) longest = most(longest, texts->lengths[text]);
    return longest;
}
