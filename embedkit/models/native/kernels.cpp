/* Everything between the matrix products of a layer except attention, each part in one pass over memory: activations,
 * and residuals with the norms around them. Compiled for this processor by compile_kernels.py, and called by kernels.py. */
#include "vectors.h"

/* erf(x) to 4e-7 of itself: x times the ratio of two polynomials in x^2, fitted to erf(x) / x on 0..3.9 for the
 * smallest maximum relative error. Above 3.9 it is 1 in float32. */
INLINE vec error_function(vec x) {
    x = x < -3.9f ? all(-3.9f) : x;
    x = x > 3.9f ? all(3.9f) : x;
    vec u = x * x;
    vec p = u * 2.0664929252234288e-06f + 0.0002850630262400955f;
    p = p * u + 0.0037383276503533125f;
    p = p * u + 0.05266802757978439f;
    p = p * u + 0.18966621160507202f;
    p = p * u + 1.1283791065216064f;
    vec q = u * 3.827027103397995e-05f + 0.001157374121248722f;
    q = q * u + 0.014914237894117832f;
    q = q * u + 0.11381872743368149f;
    q = q * u + 0.5014200806617737f;
    q = q * u + 1.0f;
    return quotient(x * p, q);
}

enum Activation { GELU, GELU_TANH, RELU, SILU };

template <int kind> INLINE vec activated(vec x) {
    if (kind == GELU) return 0.5f * x * (1.0f + error_function(x * 0.70710678f));
    if (kind == GELU_TANH) return quotient(x, 1.0f + exponential(-1.59576912f * (x + 0.044715f * x * x * x)));
    if (kind == RELU) return x < 0.0f ? vec{} : x;
    return quotient(x, 1.0f + exponential(-x));
}

template <int kind, bool gated, bool are_sums>
static void activate(const Products *products, const float *of_outputs, const Rows *out, int64_t t, int64_t last) {
    const float *bias = products->bias;
    int64_t half = gated ? products->width / 2 : 0, width = gated ? half : products->width;
    for (; t < last; t++) {
        const float *row = products->values + t * products->width, *scale = products->scale ? products->scale + t : nullptr;
        float *to = out->values + t * width;
        ints size = {};
        for (int64_t i = 0; i < width; i += LANES) {
            vec x = activated<kind>(value_of<are_sums>(row, of_outputs, scale, bias, i));
            if (gated) x *= value_of<are_sums>(row, of_outputs, scale, bias, half + i);
            store(to + i, x);
            size = larger(size, x);
        }
        write_inputs(out, t, to, size, width);
    }
}

typedef void Activate(const Products *, const float *, const Rows *, int64_t, int64_t);

template <bool are_sums> static Activate *activation_of(int kind, int gated) {
    static Activate *const all[][2] = {{activate<GELU, false, are_sums>, activate<GELU, true, are_sums>},
                                       {activate<GELU_TANH, false, are_sums>, activate<GELU_TANH, true, are_sums>},
                                       {activate<RELU, false, are_sums>, activate<RELU, true, are_sums>},
                                       {activate<SILU, false, are_sums>, activate<SILU, true, are_sums>}};
    return all[kind][gated];
}

/* Applies an activation to rows [first, last), perhaps in place; if gated, to the first half of each, which is then
 * multiplied by the other: [n, width] -> [n, width / 2]. */
extern "C" void embedkit_activate(const Products *products, int kind, int gated, const Rows *out, int64_t first,
                                  int64_t last) {
    activation_of<false>(kind, gated)(products, nullptr, out, first, last);
}

/* Normalises rows [first, last) of values [n, width], unless norm is nullptr; only writes them in their form then. */
extern "C" void embedkit_normalise(const float *values, const Norm *norm, int64_t width, const Rows *out, int64_t first,
                                   int64_t last) {
    for (int64_t t = first; t < last; t++) {
        float *to = out->values + t * width;
        ints size = norm ? normalise(values + t * width, norm, width, to) : sizes(to, width);
        write_inputs(out, t, to, size, width);
    }
}

/* Adds the residual to products, [n, width], in place, with the norms around that, and writes the input of what follows
 * to `out`: that sum too, or its norm. Rows [first, last). */
template <bool are_sums>
static void join(const Products *products, const float *of_outputs, const float *residual, const Norms *norms,
                 const Rows *out, int64_t first, int64_t last) {
    const float *bias = products->bias;
    int64_t width = products->width;
    for (int64_t t = first; t < last; t++) {
        float *row = products->values + t * width, *to = out->values + t * width;
        const float *beside = residual + t * width, *scale = products->scale ? products->scale + t : nullptr;
        if (norms->inner) {
            if (scale)
                for (int64_t i = 0; i < width; i += LANES)
                    store(row + i, value_of<are_sums>(row, of_outputs, scale, bias, i));
            normalise(row, norms->inner, width, row);
            for (int64_t i = 0; i < width; i += LANES) store(row + i, load(row + i) + load(beside + i));
        } else
            for (int64_t i = 0; i < width; i += LANES)
                store(row + i, value_of<are_sums>(row, of_outputs, scale, bias, i) + load(beside + i));
        ints size = {};
        if (norms->after)
            size = normalise(row, norms->after, width, row);
        else if (out->form == BYTES && !norms->following)
            size = sizes(row, width);
        if (norms->following) size = normalise(row, norms->following, width, to);
        write_inputs(out, t, to, size, width);
    }
}

extern "C" void embedkit_join(const Products *products, const float *residual, const Norms *norms, const Rows *out,
                              int64_t first, int64_t last) {
    join<false>(products, nullptr, residual, norms, out, first, last);
}

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* The size of an input of a product beside the number itself, in bytes. */
INLINE int64_t input_size(int64_t form) { return form == FLOATS ? 0 : form == BF16 ? 2 : 1; }

/* Row t of the input of a product. */
INLINE const void *input_of(const Rows *rows, int64_t t, int64_t width) {
    if (rows->form == FLOATS) return rows->values + t * width;
    return (const char *)rows->inputs + t * width * input_size(rows->form);
}

/* Numbers of float32 in which so many inputs of products fit. */
INLINE int64_t input_numbers(const Rest *of, int64_t count) { return (count * input_size(of->form) + 3) / 4; }

/* The size of the workspace of embedkit_finish_layer, in numbers. */
extern "C" int64_t embedkit_finish_layer_workspace(const Rest *of) {
    const int64_t width = of->out.outputs;
    return of->block * (width + 2) + input_numbers(of, of->block * of->up.inputs) +
           input_numbers(of, of->block * of->down.inputs) + of->at_once * (width + of->up.outputs) + of->workspace;
}

/* Computes rows [first, last) of a layer from its attention on: the projection after it, the feed-forward network, and
 * the residuals and norms around both. In blocks of rows, of which each linear layer multiplies some at once: so its
 * weights stay in the second cache while all of them pass, and what is between it and the next one does not leave it.
 *
 * context: the result of attention, in the form that is multiplied.
 * states: [n, width], the input of the layer.
 * joined: [n, width], its output; may be `states`.
 * out: the input of what follows; see embedkit_join.
 * workspace: see embedkit_finish_layer_workspace. */
extern "C" void embedkit_finish_layer(const Rest *of, const Rows *context, const float *states, float *joined,
                                      const Rows *out, float *workspace, int64_t first, int64_t last) {
    const int64_t width = of->out.outputs, wide = of->up.outputs, narrow = of->down.inputs;
    const int64_t block = of->block, at_once = of->at_once, size = input_size(of->form);
    const bool bytes = of->form == BYTES;
    Multiply *const multiply = of->sum ? of->sum : of->multiply;
    const bool are_sums = of->sum && bytes;
    const auto join_rows = are_sums ? join<true> : join<false>;
    Activate *const activate_rows = (are_sums ? activation_of<true> : activation_of<false>)(of->activation, of->gated);
    float *attended = workspace, *steps_up = attended + block * width, *steps_down = steps_up + block;
    float *normed = steps_down + block, *inner = normed + at_once * width;
    char *into_up = (char *)(inner + at_once * wide);
    char *into_down = into_up + 4 * input_numbers(of, block * width);
    int32_t *words = (int32_t *)(into_down + 4 * input_numbers(of, block * narrow));
    for (int64_t begin = first; begin < last; begin += block) {
        const int64_t end = least(last, begin + block);
        for (int64_t t = begin; t < end; t += at_once) {
            const int64_t n = least(at_once, end - t), at = (t - begin) * width;
            multiply(input_of(context, t, of->out.inputs), n, &of->out, 0, 1, attended + at, words);
            const Products products = {attended + at, bytes ? context->scale + t : nullptr, of->out.bias, n, width};
            const Rows rows = {of->attention_norms.following ? normed : attended + at, into_up + at * size,
                               steps_up + (t - begin), of->form};
            join_rows(&products, of->out.scale, states + t * width, &of->attention_norms, &rows, 0, n);
        }
        for (int64_t t = begin; t < end; t += at_once) {
            const int64_t n = least(at_once, end - t), at = t - begin;
            const Rows from = {of->attention_norms.following ? normed : attended, into_up, steps_up, of->form};
            multiply(input_of(&from, at, width), n, &of->up, 0, 1, inner, words);
            const Products products = {inner, bytes ? steps_up + at : nullptr, of->up.bias, n, wide};
            const Rows rows = {inner, into_down + at * narrow * size, steps_down + at, of->form};
            activate_rows(&products, of->up.scale, &rows, 0, n);
        }
        for (int64_t t = begin; t < end; t += at_once) {
            const int64_t n = least(at_once, end - t), at = t - begin;
            const Rows from = {inner, into_down, steps_down, of->form};
            multiply(input_of(&from, at, narrow), n, &of->down, 0, 1, joined + t * width, words);
            const Products products = {joined + t * width, bytes ? steps_down + at : nullptr, of->down.bias, n, width};
            const Rows rows = {out->values + t * width, (char *)out->inputs + t * width * input_size(out->form),
                               out->form == BYTES ? out->scale + t : nullptr, out->form};
            join_rows(&products, of->down.scale, attended + at * width, &of->ffn_norms, &rows, 0, n);
        }
    }
}

/* Tokens whose rows are brought into the first cache ahead: tables of words are larger than all caches. */
#define TOKENS_AHEAD 2

/* Adds up the embeddings of tokens [first, last): ids [n], types [n] or nullptr if all are 0, positions [n] -> out [n, width].
 * All are rows of their tables. */
extern "C" void embedkit_embed(const Embedding *of, const int64_t *ids, const int64_t *types, const int64_t *positions,
                               float *out, int64_t first, int64_t last) {
    const int64_t width = of->width;
    for (int64_t t = first; t < last; t++) {
        const float *word = of->words + ids[t] * width, *next = of->words + ids[least(last - 1, t + TOKENS_AHEAD)] * width;
        const float *type = of->types ? of->types + (types ? types[t] : 0) * width : nullptr;
        const float *position = of->positions ? of->positions + positions[t] * width : nullptr;
        float *to = out + t * width;
        for (int64_t i = 0; i < width; i += LANES) {
            __builtin_prefetch(next + i);
            vec x = load(word + i) * of->scale;
            if (type) x += load(type + i);
            if (position) x += load(position + i);
            store(to + i, x);
        }
        if (of->norm) normalise(to, of->norm, width, to);
    }
}

/* Rows [t, ...) of some, in their form too. */
INLINE Rows rows_from(const Rows *of, int64_t t, int64_t width) {
    return {of->values + t * width, (char *)of->inputs + t * width * input_size(of->form),
            of->form == BYTES ? of->scale + t : nullptr, of->form};
}

/* Computes the attention of a layer, a few texts at a time: their queries, keys and values stay in the second cache. */
static void attend_texts(const Layer *of, const Part *part) {
    const Weights *qkv = &of->qkv;
    const Texts *texts = part->texts;
    const int64_t width = of->rest.out.inputs, half = of->attention.head_dim / 2;
    for (int64_t text = 0, t = 0; text < texts->count;) {
        Texts some = {0, texts->lengths + text};
        int64_t n = 0;
        do n += texts->lengths[text++], some.count++;
        while (text < texts->count && n + texts->lengths[text] <= part->at_once);
        of->rest.multiply(input_of(&part->inputs, t, qkv->inputs), n, qkv, 0, 1, part->projected, (int32_t *)part->workspace);
        const float *scale = of->rest.form == BYTES ? part->inputs.scale + t : nullptr;
        const Products projected = {part->projected, scale, qkv->bias, n, qkv->outputs};
        Attention rules = of->attention;
        if (rules.cosine) {
            rules.cosine += t * half;
            rules.sine += t * half;
        }
        Rows context = rows_from(&part->context, t, width);
        if (context.form != FLOATS) context.values = part->context.values;
        of->attend(&projected, &some, &rules, &context, part->workspace, 0, 1);
        t += n;
    }
}

/* Runs `count` layers of a part: its states [n, width] -> joined, and the inputs of the layer after them. */
extern "C" void embedkit_run_layers(const Layer *layers, int64_t count, Part *part, const float *states, float *joined) {
    for (const Layer *of = layers; of < layers + count; of++, states = joined) {
        attend_texts(of, part);
        part->inputs.values = of->rest.ffn_norms.following ? part->normed : joined;
        part->inputs.form = of->form;
        embedkit_finish_layer(&of->rest, &part->context, states, joined, &part->inputs, part->workspace, 0, part->n);
    }
}

/* Numbers in a vector register. */
extern "C" int64_t embedkit_lanes(void) { return LANES; }
