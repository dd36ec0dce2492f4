/* Attention of 32 queries at a time, of words of 32 bits that hold two numbers of bf16: an instruction adds, to each of 16
 * sums, the products of its word and of one that all sums share; with AMX, of 16 rows of each at once.
 *
 * What a number of fp32 becomes is told by a class Way: one number of bf16 (bf16_dots.h), or several parts, whose sum it
 * is (split_dots.h). It also has the products: scores of queries and keys, and sums of weighted values.
 *
 * Keys lie in panels of TILE, for each PAIRS numbers of them a square [TILE][TILE] of words of each part. Values lie in
 * blocks of PAIRS tokens, for each TILE numbers of them a square of each part: word d of row i is of tokens i and
 * i + TILE. Rows of queries and of weights are in the same order, all of a part after each other. */
#pragma once
#if defined(__AVX512DQ__)
#include <immintrin.h>
#endif

#include "attention.h"
#if defined(__AMX_BF16__) && defined(__linux__)
#define TILES
#include "tiles.h"
#endif

/* Numbers in a row of a tile of sums, and rows of one: queries, keys, or numbers of a head. */
#define TILE 16
#define SQUARE (TILE * TILE)
/* Numbers of bf16 in a row of a tile. */
#define PAIRS (2 * TILE)
/* Queries that go through a block of keys before the next one does: a multiple of PAIRS. */
#ifndef SPAN
#define SPAN 384
#endif
/* Words of the keys, values and queries of the heads that are copied together, if there are several. */
#ifndef GROUP
#define GROUP (1 << 17)
#endif
/* Two ones of bf16. */
#define ONES 0x3f803f80

typedef uint32_t words __attribute__((vector_size(LANES * 4)));
typedef ints ints_at __attribute__((aligned(4), may_alias));

INLINE ints load_words(const int32_t *at) { return *(const ints_at *)at; }
INLINE void store_words(int32_t *at, ints x) { *(ints_at *)at = x; }

/* Words of the upper halves of two vectors: number i of both. */
INLINE ints cut(vec low, vec high) { return (ints)((words)low >> 16 | ((words)high & 0xffff0000)); }

/* The numbers of a vector, the first of which is that of token `at`, whose tokens are in [first, last). */
INLINE ints inside(int64_t at, int64_t first, int64_t last) {
    ints token = (int32_t)at - ints{};
    for (int i = 0; i < LANES; i++) token[i] += i;
    return (token >= (int32_t)first) & (token < (int32_t)last);
}

INLINE vec maximum(vec a, vec b) {
#if defined(__AVX512DQ__)
    return (vec)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return largest(a, b);
#endif
}

/* The largest of each of TILE rows: halves of rows go together, then halves of these. */
template <int half = TILE / 2> INLINE vec largest_of_rows(vec *rows) {
    for (int i = 0; i < half; i++)
        rows[i] = maximum(SHUFFLED(rows[i], rows[i + half], UPPER, half), SHUFFLED(rows[i], rows[i + half], LOWER, half));
    if constexpr (half == 1) return rows[0];
    else return largest_of_rows<half / 2>(rows);
}

/* While it exists, results below 2^-126 are 0: else each of them would take a hundred cycles. */
struct FlushedToZero {
#if defined(__AVX512DQ__)
    const uint32_t before = _mm_getcsr();
    FlushedToZero() { _mm_setcsr(before | _MM_FLUSH_ZERO_ON); }
    ~FlushedToZero() { _mm_setcsr(before); }
#endif
};

/* Rows of PAIRS tokens: number d of row t is rows[t][d] * scale[t] + bias[d]. */
struct Block {
    const float *rows[PAIRS], *bias;
    float scale[PAIRS];
};

/* The numbers from d on of a row. */
INLINE vec number(const Block *of, int64_t row, int64_t d) {
    return load(of->rows[row] + d) * of->scale[row] + load(of->bias + d);
}

/* Up to PAIRS queries and the keys of a block. */
struct Step {
    int64_t number, query, block;
    int64_t count, from, to; /* the queries that there are, and the tokens, from the first of the block */
    bool is_first, is_last;  /* of the blocks of these queries */
    vec factors[2];          /* of what they have summed before */
};

/* One head: `head` is head_dim, rounded up to whole words of a tile with zeros. */
template <class Way> struct TiledHead {
    enum { AT_ONCE = 4 };
    enum { KEYS_AT_ONCE = Way::key_block, SCORES = Way::score_stride, WEIGHTS = Way::weight_stride, PARTS = Way::parts };

    int64_t length, head, head_dim;
    int32_t *workspace;                      /* of the keys, values and queries of most_heads() heads */
    const int32_t *queries, *keys, *values;  /* of this one */
    int32_t *weights; /* [2, PAIRS, WEIGHTS] */
    float *rows;      /* [PAIRS, head] */
    float *zeros;     /* as many as a row has */
    float *scores;    /* [2, PAIRS, SCORES] */
    float *products;  /* [PAIRS, head]: the values, weighted by the keys of a step */
    float *sums;      /* [SPAN, head]: and by the keys so far */
    ints ones[TILE];            /* words of two ones */
    vec products_of_ones[PAIRS]; /* the sums of a step's weights, in all numbers */
    vec totals[SPAN];           /* and of the weights so far */
    vec tops[SPAN / TILE];      /* the largest score of each query so far, times LOG2_E */
    vec now[2];                 /* and with a step's keys */
    int64_t span;               /* the first of the queries */
    Distances distances;
    /* The step whose weights are made, the row and the token from which on they are missing, how many chunks there are of
     * them and how many are missing, and at how many pauses they are made. */
    const Step *softened;
    int64_t row, token, chunks, left, pauses, due;

    static int64_t key_words(int64_t length, int64_t head) { return PARTS * rounded_up(length, PAIRS) * head / 2; }
    static int64_t query_words(int64_t length, int64_t head) { return key_words(least(length, SPAN), head); }
    static int64_t head_words(int64_t length, int64_t head) {
        return 2 * key_words(length, head) + query_words(length, head);
    }
    int64_t most_heads() { return most(1, GROUP / head_words(length, head)); }
    int32_t *keys_of(int64_t slot) { return workspace + slot * head_words(length, head); }
    int32_t *values_of(int64_t slot) { return keys_of(slot) + key_words(length, head); }
    int32_t *queries_of(int64_t slot) { return values_of(slot) + key_words(length, head); }

    /* The rows of PAIRS tokens where they are. After the last token of a text each is as it. */
    void find(const Projected *from, int64_t first, int64_t last, Block *to) {
        to->bias = from->scale ? from->bias : zeros;
        for (int64_t i = 0; i < PAIRS; i++) {
            const int64_t t = least(first + i, last - 1);
            to->rows[i] = from->values + t * from->stride;
            to->scale[i] = from->scale ? from->scale[t] : 1.0f;
        }
    }

    /* The same of a head that begins at `at`, normalised, rotated if `turned`, or with zeros after it. */
    void prepare_block(const Projected *from, int64_t first, int64_t last, int64_t at, const Norm *norm, bool turned,
                       Block *to) {
        Projected of = *from;
        if (!turned) of.cosine = nullptr;
        const int64_t n = least(PAIRS, last - first);
        prepare(&of, first, first + n, at, norm, head_dim, rows, head);
        /* As if they were in rows of all heads. */
        of = {rows - at, nullptr, nullptr, nullptr, nullptr, head};
        find(&of, 0, n, to);
        to->bias -= at;
    }

    /* Copies the keys and values of tokens [first, last), first a multiple of PAIRS, of `count` heads from k on. All heads
     * of some tokens after each other: the processor foresees what is read next. */
    void copy_keys(const Attention *rules, const Projected *from, int64_t k, int64_t count, int64_t first, int64_t last) {
        const bool plain = head == head_dim, plain_keys = plain && !rules->key_norm && !from->cosine;
        const int64_t key = rules->heads * head_dim + k * head_dim, value = key + rules->key_heads * head_dim;
        Block block = {};
        for (int64_t t = first; t < last; t += PAIRS) {
            if (plain) find(from, t, last, &block);
            for (int64_t h = 0, at = key; h < count; h++, at += head_dim) {
                if (!plain_keys) prepare_block(from, t, last, at, rules->key_norm, true, &block);
                for (int64_t half = 0; half < PAIRS && t + half < last; half += TILE) {
                    int32_t *to = keys_of(h) + (t + half) * PARTS * head / 2;
                    for (int64_t d = at; d < at + head; d += PAIRS, to += PARTS * SQUARE) {
                        vec low[TILE], high[TILE];
                        for (int i = 0; i < TILE; i++) {
                            low[i] = number(&block, half + i, d);
                            high[i] = number(&block, half + i, d + TILE);
                        }
                        Way::write_keys(low, high, to);
                    }
                }
            }
            if (plain && !plain_keys) find(from, t, last, &block);
            for (int64_t h = 0, at = value; h < count; h++, at += head_dim) {
                if (!plain) prepare_block(from, t, last, at, nullptr, false, &block);
                int32_t *to = values_of(h) + t * PARTS * head / 2;
                for (int64_t d = at; d < at + head; d += TILE, to += PARTS * SQUARE)
                    for (int i = 0; i < TILE; i++) {
                        ints parts[PARTS];
                        Way::pair_tokens(number(&block, i, d), number(&block, i + TILE, d), parts);
                        for (int part = 0; part < PARTS; part++) store_words(to + part * SQUARE + i * TILE, parts[part]);
                    }
            }
        }
    }

    /* Copies the queries [begin, end) of `count` heads, which are `step` apart, from head h on. */
    void copy_queries(const Attention *rules, const Projected *from, int64_t h, int64_t count, int64_t step, int64_t begin,
                      int64_t end) {
        const bool plain = head == head_dim && !rules->query_norm && !from->cosine;
        Block block = {};
        for (int64_t t = begin; t < end; t += PAIRS) {
            if (plain) find(from, t, end, &block);
            for (int64_t slot = 0; slot < count; slot++) {
                const int64_t at = (h + slot * step) * head_dim;
                if (!plain) prepare_block(from, t, end, at, rules->query_norm, true, &block);
                int32_t *to = queries_of(slot) + (t - begin) * PARTS * head / 2;
                for (int i = 0; i < PAIRS; i++, to += PARTS * head / 2)
                    for (int64_t d = 0; d < head; d += PAIRS) {
                        ints parts[PARTS];
                        Way::pair_numbers(number(&block, i, at + d), number(&block, i, at + d + TILE), parts);
                        for (int part = 0; part < PARTS; part++) store_words(to + (part * head + d) / 2, parts[part]);
                    }
            }
        }
    }

    float *scores_of(const Step *step) { return scores + step->number % 2 * PAIRS * SCORES; }
    int32_t *weights_of(const Step *step) { return weights + step->number % 2 * PAIRS * WEIGHTS; }
    float *sums_of(const Step *step) { return sums + (step->query - span) * head; }
    vec *totals_of(const Step *step) { return totals + (step->query - span); }
    vec *tops_of(const Step *step) { return tops + (step->query - span) / TILE; }

    /* Finds the tokens of a step, which count from the first of its block; whether there are any. */
    bool find_tokens(const Attention *rules, Step *step, int64_t last) {
        const int64_t count = least(PAIRS, last - step->query), base = step->block * KEYS_AT_ONCE;
        const int64_t from = first_seen(rules, step->query) - base;
        const int64_t to = last_seen(rules, step->query + count - 1, length) - base;
        step->count = count;
        step->from = most(0, from) / PAIRS * PAIRS;
        step->to = rounded_up(least(KEYS_AT_ONCE, to), TILE);
        step->is_first = from >= 0;
        step->is_last = to <= KEYS_AT_ONCE;
        return from < KEYS_AT_ONCE && to > 0;
    }

    /* Goes on to the next step of queries [span, last); whether there is one. */
    bool advance(const Attention *rules, Step *step, int64_t last) {
        const int64_t blocks = (last_seen(rules, last - 1, length) + KEYS_AT_ONCE - 1) / KEYS_AT_ONCE;
        step->number++;
        do {
            step->query += PAIRS;
            if (step->query >= last) {
                step->query = span;
                if (++step->block == blocks) return false;
            }
        } while (!find_tokens(rules, step, last));
        return true;
    }

    /* Computes the scores of a step. */
    void score(const Step *step) {
        const int64_t base = step->block * KEYS_AT_ONCE;
        Way::score(queries + (step->query - span) * PARTS * head / 2, step->count,
                   keys + (base + step->from) * PARTS * head / 2, head / 2, (step->to - step->from) / TILE,
                   scores_of(step) + step->from, [this] { pause(); });
    }

    /* Adds what depends on distances, leaves out what is not seen, and finds the largest scores. */
    void find_tops(const Attention *rules, Step *step) {
        float *of = scores_of(step);
        const int64_t query = step->query, end = query + step->count - 1, base = step->block * KEYS_AT_ONCE;
        if (distances.bias)
            for (int64_t q = 0; q < step->count; q++)
                for (int64_t t = step->from; t < step->to; t += TILE) {
                    float *at = of + q * SCORES + t;
                    store(at, load(at) + load(distances.bias + base + t - query - q));
                }
        /* All of the queries see [inner, outer). */
        const int64_t inner = first_seen(rules, end) - base, outer = last_seen(rules, query, length) - base;
        for (int64_t t = step->from; t < step->to; t += TILE) {
            if (t >= inner && t + TILE <= outer) continue;
            const bool alike = !rules->causal && rules->reach < 0;
            ints is_seen = inside(base + t, 0, length);
            for (int64_t q = 0; q < step->count; q++) {
                if (!alike)
                    is_seen = inside(base + t, first_seen(rules, query + q), last_seen(rules, query + q, length));
                float *at = of + q * SCORES + t;
                store(at, is_seen ? load(at) : all(-__builtin_inff()));
            }
        }
        for (int half = 0; half * TILE < step->count; half++, of += TILE * SCORES) {
            vec of_rows[TILE];
            for (int q = 0; q < TILE; q++) of_rows[q] = load(of + q * SCORES + step->from);
            for (int64_t t = step->from + TILE; t < step->to; t += TILE)
                for (int q = 0; q < TILE; q++) of_rows[q] = maximum(of_rows[q], load(of + q * SCORES + t));
            vec *top = tops_of(step) + half;
            const vec before = step->is_first ? all(LOWEST) : *top;
            *top = now[half] = maximum(largest_of_rows(of_rows) * LOG2_E, before);
            const vec x = before - *top;
            step->factors[half] = x < -126.0f ? vec{} : power_of_two(x);
        }
    }

    /* Begins to make the weights of a step. */
    void begin_to_soften(const Step *step, int64_t pauses) {
        softened = step;
        row = 0;
        token = step->from;
        const int64_t rows_of_chunks = (step->count + AT_ONCE - 1) / AT_ONCE;
        chunks = left = rows_of_chunks * ((step->to - step->from + PAIRS - 1) / PAIRS);
        this->pauses = pauses;
        due = 0;
        if constexpr (Way::adds_weights)
            for (int64_t q = 0; q < step->count; q++) {
                vec *total = totals_of(step) + q;
                *total = step->is_first ? vec{} : *total * all(((const float *)step->factors)[q]);
            }
    }

    /* Makes PAIRS weights of some rows at once, because each is the end of a chain of operations, of which a processor begins
     * few ahead. */
    __attribute__((always_inline)) void soften_chunk() {
        const float *from = scores_of(softened) + row * SCORES + token;
        const bool is_pair = token + TILE < softened->to;
        vec x[2 * AT_ONCE];
        for (int i = 0; i < AT_ONCE; i++) {
            const vec top = all(((const float *)now)[row + i]);
            x[i] = load(from + i * SCORES) * LOG2_E - top;
            x[AT_ONCE + i] = is_pair ? load(from + i * SCORES + TILE) * LOG2_E - top : all(LOWEST);
        }
        Way::template make_weights<2 * AT_ONCE>(x);
        ints parts[PARTS * AT_ONCE];
        Way::template pair_weights<AT_ONCE>(x, x + AT_ONCE, parts);
        int32_t *to = weights_of(softened) + row * WEIGHTS + token / 2;
        for (int part = 0; part < PARTS; part++)
            for (int i = 0; i < AT_ONCE; i++)
                store_words(to + i * WEIGHTS + part * KEYS_AT_ONCE / 2, parts[part * AT_ONCE + i]);
        if constexpr (Way::adds_weights)
            for (int i = 0; i < AT_ONCE; i++) totals_of(softened)[row + i] += x[i] + x[AT_ONCE + i];
        token += PAIRS;
        if (token >= softened->to) {
            token = softened->from;
            row += AT_ONCE;
        }
        left--;
    }

    __attribute__((noinline)) void soften_chunk_apart() { soften_chunk(); }

    /* Products of tiles take long, and a processor begins few operations ahead: between them is a part of this work. */
    void pause() {
        for (due += chunks; left && due >= pauses; due -= pauses) {
            /* In each place it would take long to compile; a short one, longer to call. */
            if constexpr (PARTS > 1) soften_chunk_apart();
            else soften_chunk();
        }
    }

    /* Weighs the values of a step, and adds them to what its queries have summed before. */
    void weigh(const Step *step) {
        const int64_t token = step->block * KEYS_AT_ONCE + step->from;
        float *to = sums_of(step), *of = step->is_first ? to : products;
        vec *total = totals_of(step), *of_total = step->is_first ? total : products_of_ones;
        Way::weigh(weights_of(step) + step->from / 2, step->count, values + token * PARTS * head / 2, head,
                   (step->to - step->from + TILE) / PAIRS, of, of_total, ones, [this] { pause(); });
        if (step->is_first) return;
        for (int64_t q = 0; q < step->count; q++) {
            const vec factor = all(((const float *)step->factors)[q]);
            if constexpr (!Way::adds_weights) total[q] = total[q] * factor + of_total[q];
            for (int64_t d = q * head; d < (q + 1) * head; d += TILE) store(to + d, load(to + d) * factor + load(of + d));
        }
    }

    /* Writes the result of a step's queries. */
    void write(const Step *step, float *to, int64_t stride) {
        to += (step->query - span) * stride;
        for (int64_t q = 0; q < step->count; q++, to += stride) {
            const vec total = totals_of(step)[q];
            const vec inverse = all(1.0f / (Way::adds_weights ? sum_of(total) : total)[0]);
            const float *of = sums_of(step) + q * head;
            for (int64_t d = 0; d < head_dim; d += TILE) {
                const vec x = load(of + d) * inverse;
                if (d + TILE <= head_dim)
                    store(to + d, x);
                else
                    for (int64_t i = 0; d + i < head_dim; i++) to[d + i] = x[i];
            }
        }
    }

    /* See `attend` in attention.h. */
    void attend(const Attention *rules, const Projected *from, int64_t k, int64_t count, int64_t begin, int64_t end,
                float *to) {
        const int64_t served = rules->heads / rules->key_heads, width = rules->heads * head_dim;
        copy_keys(rules, from, k, count, first_seen(rules, begin) / PAIRS * PAIRS, last_seen(rules, end - 1, length));
        for (int64_t s = 0; s < served; s++)
            for (span = begin; span < end; span += SPAN) {
                const int64_t last = least(end, span + SPAN);
                copy_queries(rules, from, k * served + s, count, served, span, last);
                for (int64_t slot = 0; slot < count; slot++) {
                    const int64_t h = (k + slot) * served + s;
                    distances = distances_of(rules, h);
                    keys = keys_of(slot);
                    values = values_of(slot);
                    queries = queries_of(slot);
                    attend_span(rules, last, to + span * width + h * head_dim, width);
                }
            }
    }

    /* Computes the queries [span, last) of a head, whose rows are `stride` apart. Of four steps, the scores of one, the weights
     * of the one before, the sums of the one before that and the results of the first are computed at the same time. */
    void attend_span(const Attention *rules, int64_t last, float *to, int64_t stride) {
        Step steps[4] = {{0, span, first_seen(rules, span) / KEYS_AT_ONCE}};
        find_tokens(rules, steps, last);
        chunks = left = 0;
        pauses = 1;
        score(steps);
        int64_t number = 0;
        for (bool goes_on = true; goes_on; number++) {
            Step *step = &steps[number % 4], *next = &steps[(number + 1) % 4];
            const Step *before = &steps[(number + 3) % 4], *first = &steps[(number + 2) % 4];
            *next = *step;
            goes_on = advance(rules, next, last);
            find_tops(rules, step);
            if (number > 1 && first->is_last) write(first, to, stride);
            begin_to_soften(step, Way::pauses(head, (step->to - step->from) / TILE));
            if (goes_on) score(next);
            if (number > 0) weigh(before);
            while (left) soften_chunk_apart();
        }
        const Step *step = &steps[(number + 3) % 4], *before = &steps[(number + 2) % 4];
        if (number > 1 && before->is_last) write(before, to, stride);
        weigh(step);
        write(step, to, stride);
    }

    /* The size of a workspace for texts of up to `length` tokens and rows of projections of this width, in words. */
    static int64_t workspace_words(int64_t length, int64_t head_dim, int64_t width) {
        const int64_t head = rounded_up(head_dim, PAIRS);
        return rounded_up(width, TILE) + PAIRS + (2 * PAIRS + SPAN) * head + PAIRS * 2 * (SCORES + WEIGHTS) +
               most(GROUP, head_words(length, head));
    }

    /* `width` is that of the projections' rows. */
    void begin(const Attention *rules, float *workspace, int64_t width) {
        head_dim = rules->head_dim;
        head = rounded_up(head_dim, PAIRS);
        zeros = workspace;
        rows = zeros + rounded_up(width, TILE) + PAIRS;
        products = rows + PAIRS * head;
        /* The padding of heads stays zero. */
        __builtin_memset(workspace, 0, (char *)products - (char *)workspace);
        sums = products + PAIRS * head;
        scores = sums + SPAN * head;
        weights = (int32_t *)(scores + 2 * PAIRS * SCORES);
        for (int i = 0; i < TILE; i++) ones[i] = ONES - ints{};
        this->workspace = weights + 2 * PAIRS * WEIGHTS;
    }
};
