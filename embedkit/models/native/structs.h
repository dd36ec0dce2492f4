/* What the compiled sources and their callers hand to each other. kernels.py declares the same structs.
 *
 * All arrays are row-major and float32 unless their type says otherwise. */
#pragma once
#include <stdint.h>

/* The output of a linear layer, [n, width]: row t is values[t] * scale[t] + bias, or values[t] if scale is nullptr. */
struct Products {
    float *values;
    const float *scale, *bias;
    int64_t n, width;
};

/* The numbers that products take, as in linear.py. */
enum Form { FLOATS, BYTES, BF16 };

/* A result. It is written in its form too, unless that is FLOATS: bytes are unsigned, 128 for 0, with scale[t] the step
 * of row t. */
struct Rows {
    float *values;
    void *inputs;
    float *scale;
    int64_t form;
};

/* A layer norm, or the root mean square's if rms is not 0; bias may be nullptr. */
struct Norm {
    const float *weight, *bias;
    float eps;
    int32_t rms;
};

/* The norms of the output of attention or of the feed-forward network; nullptr where there is none. */
struct Norms {
    const Norm *inner;     /* before the residual is added */
    const Norm *after;     /* of their sum */
    const Norm *following; /* of the input of what follows, beside the sum itself */
};

/* A linear layer, packed for the function that multiplies. */
struct Weights {
    const int32_t *packed;
    const float *scale, *bias; /* [outputs]; scale is that of bytes */
    int64_t inputs, outputs;
};

/* Multiplies n rows, in the form that the function takes, with weights: products [n, outputs], of bytes each sum times
 * the scale of its output. Computes a share of the outputs; each call has a workspace of its own. */
typedef void Multiply(const void *rows, int64_t n, const Weights *weights, int64_t share, int64_t shares, float *products,
                      int32_t *workspace);

/* What of a layer follows attention. */
struct Rest {
    Multiply *multiply;
    Multiply *sum; /* the same, but of bytes it writes the sums, of 32 bits, for others to scale; or nullptr */
    int64_t form;      /* of the rows that it takes */
    int64_t workspace; /* of multiply, in words */
    Weights out, up, down;
    Norms attention_norms, ffn_norms;
    int32_t activation, gated;
    /* Rows that go through one linear layer after another, and those of them that are multiplied together: what these
     * write is read at once by what follows, until only the inputs of the next linear layer are left. Both are the same
     * if the form is FLOATS, which has no other inputs. */
    int64_t block, at_once;
};

/* Packed texts: the tokens of each. */
struct Texts {
    int64_t count;
    const int64_t *lengths;
};

/* Numbers of each head by distance, the key's position minus the query's; nullptr for none. At distance 0 of the first:
 * a head's numbers, or its rows of them, are `stride` apart. */
struct Distances {
    const float *bias;           /* added to the scores */
    const float *keys, *queries; /* [heads, head_dim]: multiplied by the queries, and by the keys (DeBERTa) */
    int64_t stride;
};

/* What the heads of a layer attend to. */
struct Attention {
    int64_t heads, key_heads; /* of queries, and of keys and values: each of them serves as many of the queries' */
    int64_t head_dim;
    int64_t reach;  /* tokens seen to each side; -1 for all */
    int64_t causal; /* whether a token sees no later one */
    const Norm *query_norm, *key_norm; /* of each head before it is rotated; nullptr for none */
    const float *cosine, *sine; /* [T, head_dim / 2]: of the angle between numbers half a head apart; or nullptr */
    Distances distances;
};

/* The embeddings of tokens: rows of tables, added up. */
struct Embedding {
    const float *words, *types, *positions; /* [rows, width]; nullptr for none but words */
    const Norm *norm;                       /* of the sum; nullptr for none */
    int64_t width;
    float scale; /* of words */
};

/* Computes attention; see embedkit_attend in attention.cpp. */
typedef void Attend(const Products *from, const Texts *texts, const Attention *rules, const Rows *out, float *workspace,
                    int64_t share, int64_t shares);

/* A layer whose weights are packed for one function, that of `rest`. */
struct Layer {
    Weights qkv; /* queries, keys and values in one */
    Attend *attend;
    Attention attention;
    Rest rest;
    int64_t form; /* of the input of what follows: FLOATS after the last layer */
};

/* Packed texts on their way through layers. */
struct Part {
    int64_t n;       /* their tokens */
    int64_t at_once; /* most tokens of texts that attention takes together; no fewer than the longest text has */
    const Texts *texts;
    Rows inputs;      /* of the next layer */
    float *normed;    /* [n, width]: the values of these where a norm precedes a layer; else they are its states */
    Rows context;     /* the result of attention; the values are those of the texts at once, unless the form is FLOATS */
    float *projected; /* queries, keys and values of the texts at once */
    float *workspace; /* of products, attention and embedkit_finish_layer in turn */
};
