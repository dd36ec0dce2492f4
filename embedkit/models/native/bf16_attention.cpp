/* Attention within packed texts, as in attention.cpp, for models in int8 and bf16: queries, keys, values and the weights
 * of a softmax are rounded to bf16, and products are summed in fp32. Compiled for this processor by compile_kernels.py,
 * and called by kernels.py. */
#include "bf16_dots.h"

/* Words of the keys, values and queries of the heads that are copied together, if there are several. */
#ifndef GROUP
#define GROUP (1 << 17)
#endif
/* A product of which nothing is left next to any score, and whose product with LOG2_E is finite. */
#define LOWEST -1e38f
/* 2^x, so that a number of bf16 which is cut from it is the nearest: the polynomial of 2^f, for f from 0 to 1 and to 0.002
 * of itself as bf16 has it, has half a step of bf16 added. Below 2^-126 it is 0: see FlushedToZero. */
INLINE vec weight_of(vec x) {
#if defined(__AVX512DQ__)
    vec f = (vec)_mm512_reduce_ps((__m512)x, 1);
    vec p = f * 0.3371889591217041f + 0.657636821269989f;
    p = p * f + (1.0017246007919312f + 0.00390625f);
    return (vec)_mm512_scalef_ps((__m512)p, (__m512)x);
#else
    return x < -126.0f ? vec{} : (vec)((ints)power_of_two(x) + 0x8000);
#endif
}

/* While it exists, results below 2^-126 are 0: else each of them would take a hundred cycles. */
struct FlushedToZero {
#if defined(__AVX512DQ__)
    const uint32_t before = _mm_getcsr();
    FlushedToZero() { _mm_setcsr(before | _MM_FLUSH_ZERO_ON); }
    ~FlushedToZero() { _mm_setcsr(before); }
#endif
};

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

/* Rows of PAIRS tokens: number d of row t is rows[t][d] * scale[t] + bias[d]. */
struct Block {
    const float *rows[PAIRS], *bias;
    float scale[PAIRS];
};

/* The numbers from d on of a row. */
INLINE vec number(const Block *of, int64_t row, int64_t d) {
    return load(of->rows[row] + d) * of->scale[row] + load(of->bias + d);
}

INLINE int64_t key_words(int64_t length, int64_t head) { return rounded_up(length, PAIRS) * head / 2; }

/* TILE queries and the keys of a block. */
struct Step {
    int64_t number, query, block;
    int64_t count, from, to; /* the queries that there are, and the tokens, from the first of the block */
    bool is_first, is_last;  /* of the blocks of these queries */
};

/* One head: `head` is head_dim, rounded up to whole words of a tile with zeros. */
template <class Way> struct RoundedHead {
    int64_t length, head, head_dim;
    int32_t *workspace;                      /* of the keys, values and queries of most_heads() heads */
    const int32_t *queries, *keys, *values;  /* of this one */
    int32_t *weights; /* [TILE, WEIGHTS] */
    float *rows;      /* [PAIRS, head] */
    float *zeros;     /* as many as a row has */
    float *scores;    /* [2, TILE, SCORES] */
    float *sums;      /* [2, TILE, head]: the values, weighted by the keys so far */
    ints ones[TILE];     /* words of two ones */
    vec totals[2][TILE]; /* the sums of the weights, in all numbers */
    vec tops, now;       /* the largest score of each query so far, times LOG2_E; and with a step's keys */
    Distances distances;

    int64_t most_heads() { return most(1, GROUP / (3 * key_words(length, head))); }
    int32_t *keys_of(int64_t slot) { return workspace + 3 * slot * key_words(length, head); }
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
                    int32_t *to = keys_of(h) + (t + half) * head / 2;
                    for (int64_t d = at; d < at + head; d += PAIRS) {
                        vec square[TILE];
                        for (int i = 0; i < TILE; i++)
                            square[i] = (vec)rounded(number(&block, half + i, d), number(&block, half + i, d + TILE));
                        transpose(square);
                        for (int i = 0; i < TILE; i++, to += TILE) store_words(to, (ints)square[i]);
                    }
                }
            }
            if (plain && !plain_keys) find(from, t, last, &block);
            for (int64_t h = 0, at = value; h < count; h++, at += head_dim) {
                if (!plain) prepare_block(from, t, last, at, nullptr, false, &block);
                int32_t *to = values_of(h) + t * head / 2;
                for (int64_t d = at; d < at + head; d += TILE)
                    for (int i = 0; i < TILE; i++, to += TILE)
                        store_words(to, paired(number(&block, i, d), number(&block, i + TILE, d)));
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
                int32_t *to = queries_of(slot) + (t - begin) * head / 2;
                for (int i = 0; i < PAIRS; i++)
                    for (int64_t d = at; d < at + head; d += PAIRS, to += TILE)
                        store_words(to, rounded(number(&block, i, d), number(&block, i, d + TILE)));
            }
        }
    }

    float *scores_of(const Step *step) { return scores + step->number % 2 * TILE * SCORES; }
    float *sums_of(const Step *step) { return sums + step->query / TILE % 2 * TILE * head; }
    vec *totals_of(const Step *step) { return totals[step->query / TILE % 2]; }

    /* Computes the tokens of a step, which count from the first of its block. */
    void begin(const Attention *rules, Step *step, int64_t last) {
        const int64_t count = least(TILE, last - step->query), base = step->block * KEY_BLOCK;
        const int64_t to = last_seen(rules, step->query + count - 1, length) - base;
        step->count = count;
        step->from = most(0, first_seen(rules, step->query) - base) / PAIRS * PAIRS;
        step->to = rounded_up(least(KEY_BLOCK, to), TILE);
        step->is_first = base <= first_seen(rules, step->query);
        step->is_last = to <= KEY_BLOCK;
    }

    /* Computes the scores of a step. */
    void score(const Step *step, int64_t first) {
        const int64_t base = step->block * KEY_BLOCK;
        Way::score(queries + (step->query - first) * head / 2, keys + (base + step->from) * head / 2, head / 2,
                   (step->to - step->from) / TILE, scores_of(step) + step->from);
    }

    /* Adds what depends on distances, leaves out what is not seen, and finds the largest scores. */
    void find_tops(const Attention *rules, const Step *step) {
        float *of = scores_of(step);
        const int64_t query = step->query, end = query + step->count - 1, base = step->block * KEY_BLOCK;
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
            for (int64_t q = 0; q < TILE; q++) {
                if (!alike)
                    is_seen = inside(base + t, first_seen(rules, query + q), last_seen(rules, query + q, length));
                float *at = of + q * SCORES + t;
                store(at, is_seen ? load(at) : all(-__builtin_inff()));
            }
        }
        vec of_rows[TILE];
        for (int q = 0; q < TILE; q++) of_rows[q] = load(of + q * SCORES + step->from);
        for (int64_t t = step->from + TILE; t < step->to; t += TILE)
            for (int q = 0; q < TILE; q++) of_rows[q] = maximum(of_rows[q], load(of + q * SCORES + t));
        now = maximum(largest_of_rows(of_rows) * LOG2_E, step->is_first ? all(LOWEST) : tops);
    }

    /* Scales what the queries of a step have summed to the largest scores `now`. */
    void rescale(const Step *step) {
        const vec x = tops - now, factors = x < -126.0f ? vec{} : power_of_two(x);
        float *of = sums_of(step);
        for (int64_t q = 0; q < TILE; q++) {
            const vec factor = all(factors[q]);
            totals_of(step)[q] *= factor;
            for (int64_t d = 0; d < head; d += TILE) store(of + q * head + d, load(of + q * head + d) * factor);
        }
    }

    /* Makes the weights of a step. */
    void soften(const Step *step) {
        tops = now;
        for (int64_t q = 0; q < step->count; q++) {
            const vec top = all(((const float *)&tops)[q]);
            const float *row = scores_of(step) + q * SCORES;
            int32_t *pairs = weights + q * WEIGHTS;
            int64_t t = step->from;
            for (; t + PAIRS <= step->to; t += PAIRS) {
                const vec low = weight_of(load(row + t) * LOG2_E - top);
                const vec high = weight_of(load(row + t + TILE) * LOG2_E - top);
                store_words(pairs + t / 2, cut(low, high));
            }
            if (t < step->to) store_words(pairs + t / 2, cut(weight_of(load(row + t) * LOG2_E - top), vec{}));
        }
    }

    void weigh(const Step *step) {
        const int64_t token = step->block * KEY_BLOCK + step->from;
        Way::weigh(weights + step->from / 2, values + token * head / 2, head, (step->to - step->from + TILE) / PAIRS,
                   step->is_first, sums_of(step), totals_of(step), ones);
    }

    /* Writes the result of a step's queries. */
    void write(const Step *step, float *to, int64_t stride) {
        for (int64_t q = 0; q < step->count; q++, to += stride) {
            const vec inverse = all(1.0f / totals_of(step)[q][0]);
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
        for (int64_t s = 0; s < served; s++) {
            copy_queries(rules, from, k * served + s, count, served, begin, end);
            for (int64_t slot = 0; slot < count; slot++) {
                const int64_t h = (k + slot) * served + s;
                distances = distances_of(rules, h);
                keys = keys_of(slot);
                values = values_of(slot);
                queries = queries_of(slot);
                attend_head(rules, begin, end, to + begin * width + h * head_dim, width);
            }
        }
    }

    /* Computes the queries [first, last) of a head, whose rows are `stride` apart. Products of tiles take long to come: those
     * of a step are between the work on the numbers of the steps before and after. */
    void attend_head(const Attention *rules, int64_t first, int64_t last, float *to, int64_t stride) {
        Step before = {}, step = {0, first, first_seen(rules, first) / KEY_BLOCK}, next;
        begin(rules, &step, last);
        score(&step, first);
        for (;; before = step, step = next) {
            const bool is_over = step.is_last && step.query + TILE >= last;
            next = step;
            next.number++;
            if (step.is_last) {
                next.query += TILE;
                next.block = first_seen(rules, next.query) / KEY_BLOCK;
            } else next.block++;
            if (!is_over) {
                begin(rules, &next, last);
                score(&next, first);
            }
            find_tops(rules, &step);
            if (step.number) weigh(&before);
            if (!step.is_first) rescale(&step);
            soften(&step);
            if (step.number && before.is_last) write(&before, to + (before.query - first) * stride, stride);
            if (is_over) break;
        }
        weigh(&step);
        write(&step, to + (step.query - first) * stride, stride);
    }
};

/* Size of the workspace of embedkit_bf16_attend for texts of up to `length` tokens and rows of projections of this width, in
 * words. */
extern "C" int64_t embedkit_bf16_attend_workspace(int64_t length, int64_t head_dim, int64_t width) {
    const int64_t head = rounded_up(head_dim, PAIRS);
    return most(GROUP, 3 * key_words(length, head)) + (PAIRS + 2 * TILE) * head + TILE * (2 * SCORES + WEIGHTS) +
           rounded_up(width, TILE) + PAIRS;
}

template <class Way>
static void attend_by(const Products *from, const Texts *texts, const Attention *rules, const Rows *out, float *workspace,
                      int64_t share, int64_t shares) {
    const int64_t head = rounded_up(rules->head_dim, PAIRS), width = rounded_up(from->width, TILE) + PAIRS;
    RoundedHead<Way> of;
    of.head = head;
    of.head_dim = rules->head_dim;
    of.zeros = workspace;
    of.rows = of.zeros + width;
    /* The padding of heads stays zero. */
    __builtin_memset(workspace, 0, sizeof(float) * (width + PAIRS * head));
    of.sums = of.rows + PAIRS * head;
    of.scores = of.sums + 2 * TILE * head;
    of.weights = (int32_t *)(of.scores + 2 * TILE * SCORES);
    for (int i = 0; i < TILE; i++) of.ones[i] = ONES - ints{};
    of.workspace = of.weights + TILE * WEIGHTS;
    attend(&of, from, texts, rules, out, share, shares);
}

/* Attention within packed texts; see embedkit_attend. Nothing is multiplied by distances. */
extern "C" void embedkit_bf16_attend(const Products *from, const Texts *texts, const Attention *rules, const Rows *out,
                                     float *workspace, int64_t share, int64_t shares) {
    const FlushedToZero flushed;
#if defined(__AMX_BF16__) && defined(__linux__)
    if (has_tiles) {
        shape_tiles(2 * TILE_ROWS);
        attend_by<Tiles>(from, texts, rules, out, workspace, share, shares);
        release_tiles();
        return;
    }
#endif
    attend_by<Dots>(from, texts, rules, out, workspace, share, shares);
}

/* Whether this is faster here than attention in fp32. AMD's instruction for a vector is; Intel's takes as long as two of
 * fp32's, which leaves nothing for the rounding. */
extern "C" int64_t embedkit_bf16_attend_is_fast(void) {
#if defined(__AMX_BF16__) && defined(__linux__)
    if (has_tiles) return 1;
#endif
#if defined(__AVX512BF16__)
    __builtin_cpu_init();
    return __builtin_cpu_is("amd") ? 1 : 0;
#else
    return 0;
#endif
}
