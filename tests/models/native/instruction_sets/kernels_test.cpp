/* Compares kernels.cpp, attention.cpp and the products with plain loops, for a processor that may be emulated. Needs no torch.
 * Prints the instructions that multiply bytes, and exits with 1 at the first difference. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <vector>

#include "structs.h"

extern "C" {
void embedkit_normalise(const float *, const Norm *, int64_t, const Rows *, int64_t, int64_t);
void embedkit_activate(const Products *, int, int, const Rows *, int64_t, int64_t);
void embedkit_join(const Products *, const float *, const Norms *, const Rows *, int64_t, int64_t);
void embedkit_attend(const Products *, const Texts *, const Attention *, const Rows *, float *, int64_t, int64_t);
int64_t embedkit_attend_workspace(int64_t, int64_t, int64_t);
void embedkit_bf16_attend(const Products *, const Texts *, const Attention *, const Rows *, float *, int64_t, int64_t);
int64_t embedkit_bf16_attend_workspace(int64_t, int64_t, int64_t);
int64_t embedkit_int8_packed(int64_t, int64_t);
int64_t embedkit_int8_workspace(int64_t, int64_t);
int64_t embedkit_finish_layer_workspace(const Rest *);
void embedkit_finish_layer(const Rest *, const Rows *, const float *, float *, const Rows *, float *, int64_t, int64_t);
void embedkit_int8_pack(const int8_t *, int64_t, int64_t, int32_t *);
Multiply embedkit_int8_multiply;
Multiply *embedkit_int8_sums(void);
const char *embedkit_int8_instructions(void);
int64_t embedkit_bf16_packed(int64_t, int64_t);
int64_t embedkit_bf16_workspace(int64_t, int64_t);
void embedkit_bf16_pack(const uint16_t *, const float *, int64_t, int64_t, int32_t *);
Multiply embedkit_bf16_multiply;
Multiply *embedkit_bf16_sums(void);
int64_t embedkit_fp32_packed(int64_t, int64_t);
int64_t embedkit_fp32_workspace(int64_t, int64_t);
void embedkit_fp32_pack(const float *, const float *, int64_t, int64_t, int32_t *);
Multiply embedkit_fp32_multiply;
}

typedef std::vector<float> Floats;

static void check(bool holds, const char *what) {
    if (holds) return;
    printf("wrong: %s\n", what);
    exit(1);
}

static uint32_t state = 1;
static uint32_t random_bits() { return (state = state * 1664525u + 1013904223u) >> 8; }
static float number() { return (float)(random_bits() % 20001) / 5000.0f - 2.0f; }
static Floats numbers(int64_t count) {
    Floats all(count);
    for (float &x : all) x = number();
    return all;
}
static bool is_close(double found, double expected) { return fabs(found - expected) <= 2e-5 * (1 + fabs(expected)); }

static void test_products(int64_t n, int64_t inputs, int64_t outputs, bool extreme) {
    std::vector<uint8_t> rows(n * inputs);
    std::vector<int8_t> weights(outputs * inputs);
    for (uint8_t &x : rows) x = extreme ? 255 : 1 + random_bits() % 255;
    for (int8_t &x : weights) x = extreme ? 127 : (int)(random_bits() % 255) - 127;
    Floats scale = numbers(outputs), found(n * outputs), alone(outputs);
    std::vector<int32_t> packed(embedkit_int8_packed(outputs, inputs)), work(embedkit_int8_workspace(n, inputs));
    embedkit_int8_pack(weights.data(), outputs, inputs, packed.data());
    Weights of = {packed.data(), scale.data(), nullptr, inputs, outputs};
    for (int64_t share = 0; share < 2; share++) embedkit_int8_multiply(rows.data(), n, &of, share, 2, found.data(), work.data());
    for (int64_t t = 0; t < n; t++)
        for (int64_t o = 0; o < outputs; o++) {
            int32_t sum = 0;
            for (int64_t i = 0; i < inputs; i++) sum += (rows[t * inputs + i] - 128) * weights[o * inputs + i];
            check(found[t * outputs + o] == (float)sum * scale[o], "a product of bytes");
        }
    if (Multiply *sum = embedkit_int8_sums()) {
        Floats bits(n * outputs);
        for (int64_t share = 0; share < 2; share++) sum(rows.data(), n, &of, share, 2, bits.data(), work.data());
        for (int64_t i = 0; i < n * outputs; i++) {
            int32_t whole;
            memcpy(&whole, &bits[i], sizeof whole);
            check((float)whole * scale[i % outputs] == found[i], "a sum of products of bytes");
        }
    }
    embedkit_int8_multiply(&rows[(n - 1) * inputs], 1, &of, 0, 1, alone.data(), work.data());
    check(!memcmp(alone.data(), &found[(n - 1) * outputs], sizeof(float) * outputs), "a product of a row alone");
}

/* Numbers of bf16 are floats without the lower half of their bits. */
static float of_half(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
static uint16_t half_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static float itself(float x) { return x; }

/* Products that are summed in fp32: its functions, and those between floats and the numbers of rows and weights. */
template <class Number> struct Summed {
    int64_t (*packed)(int64_t, int64_t), (*workspace)(int64_t, int64_t);
    void (*pack)(const Number *, const float *, int64_t, int64_t, int32_t *);
    Multiply *multiply, *sum; /* see Rest */
    Number (*from)(float);
    float (*value)(Number);
};
static const Summed<uint16_t> of_bf16 = {embedkit_bf16_packed,   embedkit_bf16_workspace, embedkit_bf16_pack,
                                         embedkit_bf16_multiply, embedkit_bf16_sums(),    half_of, of_half};
static const Summed<float> of_fp32 = {embedkit_fp32_packed,   embedkit_fp32_workspace, embedkit_fp32_pack,
                                      embedkit_fp32_multiply, nullptr,                 itself,  itself};

template <class Number> static void test_sums(const Summed<Number> &tested, int64_t n, int64_t inputs, int64_t outputs) {
    std::vector<Number> rows(n * inputs), weights(outputs * inputs);
    for (Number &x : rows) x = tested.from(number());
    for (Number &x : weights) x = tested.from(number());
    Floats bias = numbers(outputs), found(n * outputs), alone(outputs);
    std::vector<int32_t> packed(tested.packed(outputs, inputs)), work(tested.workspace(n, inputs));
    tested.pack(weights.data(), bias.data(), outputs, inputs, packed.data());
    Weights of = {packed.data(), nullptr, nullptr, inputs, outputs};
    for (int64_t share = 0; share < 2; share++) tested.multiply(rows.data(), n, &of, share, 2, found.data(), work.data());
    for (int64_t t = 0; t < n; t++)
        for (int64_t o = 0; o < outputs; o++) {
            double sum = bias[o], most = fabs(bias[o]);
            for (int64_t i = 0; i < inputs; i++) {
                double product = (double)tested.value(rows[t * inputs + i]) * tested.value(weights[o * inputs + i]);
                sum += product;
                most += fabs(product);
            }
            /* Without a fused instruction products are rounded, too. */
            check(fabs(found[t * outputs + o] - sum) <= (inputs + 1) * 6e-8 * most, "a sum of products");
        }
    if (tested.sum) {
        Floats sums(n * outputs);
        tested.sum(rows.data(), n, &of, 0, 1, sums.data(), work.data());
        check(sums == found, "the same sums where products go");
    }
    tested.multiply(&rows[(n - 1) * inputs], 1, &of, 0, 1, alone.data(), work.data());
    check(!memcmp(alone.data(), &found[(n - 1) * outputs], sizeof(float) * outputs), "the products of a row alone");
}

static void check_bytes(const Floats &values, const std::vector<uint8_t> &bytes, const Floats &scale, int64_t width) {
    for (size_t i = 0; i < values.size(); i++) {
        float step = scale[i / width];
        check(fabsf(((float)bytes[i] - 128.0f) * step - values[i]) <= 0.501f * step, "a quantised number");
    }
}

static void test_rounding() {
    const int64_t width = 96;
    Floats values = numbers(width);
    values[4] = INFINITY;
    values[5] = NAN;
    std::vector<uint16_t> halves(width);
    Rows rows = {values.data(), halves.data(), nullptr, BF16};
    embedkit_normalise(values.data(), nullptr, width, &rows, 0, 1);
    for (int64_t i = 0; i < width; i++)
        check(i == 5 ? isnan(of_half(halves[i])) : halves[i] == half_of(values[i]), "a rounded number");
}

static double activated(double x, int kind) {
    if (kind == 0) return 0.5 * x * (1 + erf(x / sqrt(2.0)));
    if (kind == 1) return 0.5 * x * (1 + tanh(sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
    if (kind == 2) return x < 0 ? 0 : x;
    return x / (1 + exp(-x));
}

static void test_activations() {
    const int64_t n = 5, width = 96;
    for (int kind = 0; kind < 4; kind++)
        for (int gated = 0; gated < 2; gated++) {
            const int64_t of_product = (1 + gated) * width;
            Floats values = numbers(n * of_product), given = values, steps = numbers(n), bias = numbers(of_product);
            Floats found(n * width), scale(n);
            std::vector<uint8_t> bytes(n * width);
            Products products = {values.data(), steps.data(), bias.data(), n, of_product};
            Rows rows = {found.data(), bytes.data(), scale.data(), BYTES};
            embedkit_activate(&products, kind, gated, &rows, 0, 2);
            embedkit_activate(&products, kind, gated, &rows, 2, n);
            for (int64_t t = 0; t < n; t++)
                for (int64_t i = 0; i < width; i++) {
                    auto product = [&](int64_t at) { return (double)given[t * of_product + at] * steps[t] + bias[at]; };
                    double x = activated(product(i), kind) * (gated ? product(width + i) : 1.0);
                    check(is_close(found[t * width + i], x), "an activation");
                }
            check_bytes(found, bytes, scale, width);
        }
}

typedef std::vector<double> Doubles;

static Doubles normalised(Doubles row, const Norm &norm) {
    const size_t width = row.size();
    double mean = 0, variance = 0;
    for (double x : row) mean += norm.rms ? 0 : x / width;
    for (double x : row) variance += (x - mean) * (x - mean) / width;
    for (size_t i = 0; i < width; i++)
        row[i] = (row[i] - mean) / sqrt(variance + norm.eps) * norm.weight[i] + (norm.bias ? norm.bias[i] : 0.0f);
    return row;
}

static void test_norms() {
    const int64_t n = 5, width = 96;
    Floats weight = numbers(width), bias = numbers(width);
    for (int rms = 0; rms < 2; rms++) {
        Norm norm = {weight.data(), rms ? nullptr : bias.data(), 1e-5f, rms};
        Norms norms = {&norm, nullptr, &norm};
        Floats values = numbers(n * width), residual = numbers(n * width), given = values, found(n * width), scale(n);
        std::vector<uint8_t> bytes(n * width);
        Products products = {values.data(), nullptr, nullptr, n, width};
        Rows rows = {found.data(), bytes.data(), scale.data(), BYTES};
        embedkit_join(&products, residual.data(), &norms, &rows, 0, n);
        for (int64_t t = 0; t < n; t++) {
            Doubles row = normalised(Doubles(&given[t * width], &given[t * width] + width), norm);
            for (int64_t i = 0; i < width; i++) row[i] += residual[t * width + i];
            for (int64_t i = 0; i < width; i++) check(is_close(values[t * width + i], row[i]), "a residual");
            row = normalised(row, norm);
            for (int64_t i = 0; i < width; i++) check(is_close(found[t * width + i], row[i]), "a norm");
        }
        check_bytes(found, bytes, scale, width);
        rows.values = values.data();
        embedkit_normalise(values.data(), nullptr, width, &rows, 0, n);
        check_bytes(values, bytes, scale, width);
    }
}

/* A linear layer with made-up weights of bytes or floats. */
struct Linear {
    Form form;
    Floats scale, bias;
    std::vector<int32_t> packed;
    Multiply *function;
    Weights weights;
    Linear(Form form, int64_t inputs, int64_t outputs) : form(form), scale(outputs, 1e-3f), bias(numbers(outputs)) {
        if (form == FLOATS) {
            Floats floats = numbers(outputs * inputs);
            packed.resize(embedkit_fp32_packed(outputs, inputs));
            embedkit_fp32_pack(floats.data(), bias.data(), outputs, inputs, packed.data());
            function = embedkit_fp32_multiply;
        } else {
            std::vector<int8_t> bytes(outputs * inputs);
            for (int8_t &x : bytes) x = (int)(random_bits() % 255) - 127;
            packed.resize(embedkit_int8_packed(outputs, inputs));
            embedkit_int8_pack(bytes.data(), outputs, inputs, packed.data());
            function = embedkit_int8_multiply;
        }
        weights = {packed.data(), scale.data(), bias.data(), inputs, outputs};
    }
    Products multiply(const Rows &rows, int64_t n, Floats &products, std::vector<int32_t> &work) {
        const bool floats = form == FLOATS;
        function(floats ? rows.values : rows.inputs, n, &weights, 0, 1, products.data(), work.data());
        return {products.data(), floats ? nullptr : rows.scale, bias.data(), n, weights.outputs};
    }
};

/* The blocks of a layer after attention give what its parts give one by one, to the bit. */
static void test_finish_layer(Form form, bool gated, bool norm_before) {
    const int64_t n = 37, heads = 80, width = 96, inner = 112, wide = (1 + gated) * inner;
    Linear out(form, heads, width), up(form, width, wide), down(form, inner, width);
    Floats weight = numbers(width), bias = numbers(width), states = numbers(n * width), attention = numbers(n * heads);
    Norm norm = {weight.data(), bias.data(), 1e-5f, 0};
    const Norms norms = {nullptr, norm_before ? nullptr : &norm, norm_before ? &norm : nullptr};
    std::vector<int32_t> work(form == FLOATS ? embedkit_fp32_workspace(n, inner) : embedkit_int8_workspace(n, inner));
    Rest rest = {out.function, form == BYTES ? embedkit_int8_sums() : nullptr, form, (int64_t)work.size(), out.weights, up.weights, down.weights, norms, norms, 0, gated, form == FLOATS ? 8 : 16, 8};
    Floats steps(n), again(n), found(n * width), following(n * width);
    std::vector<uint8_t> of_context(n * heads), bytes(n * inner), found_bytes(n * width);
    Rows context = {attention.data(), of_context.data(), steps.data(), form};
    embedkit_normalise(attention.data(), nullptr, heads, &context, 0, n);
    Floats space(embedkit_finish_layer_workspace(&rest)), attended(n * width), activated(n * wide), sums(n * width), next(n * width);
    Rows result = {norm_before ? following.data() : found.data(), found_bytes.data(), again.data(), form};
    embedkit_finish_layer(&rest, &context, states.data(), found.data(), &result, space.data(), 0, 5);
    embedkit_finish_layer(&rest, &context, states.data(), found.data(), &result, space.data(), 5, n);

    Products products = out.multiply(context, n, attended, work);
    Rows rows = {norm_before ? next.data() : attended.data(), bytes.data(), steps.data(), form};
    embedkit_join(&products, states.data(), &norms, &rows, 0, n);
    products = up.multiply(rows, n, activated, work);
    rows.values = activated.data();
    embedkit_activate(&products, 0, gated, &rows, 0, n);
    products = down.multiply(rows, n, sums, work);
    rows.values = norm_before ? next.data() : sums.data();
    embedkit_join(&products, attended.data(), &norms, &rows, 0, n);
    check(found == sums, "the output of a layer");
    check(!memcmp(result.values, rows.values, sizeof(float) * n * width), "the input of the next layer");
    check(form == FLOATS || (!memcmp(found_bytes.data(), bytes.data(), n * width) && again == steps), "its bytes");
}

/* A number of a head of a token, normalised and rotated. */
static Doubles head_of(const float *from, int64_t head_dim, const Norm *norm, const float *cosine, const float *sine) {
    Doubles head(from, from + head_dim);
    if (norm) head = normalised(head, *norm);
    if (!cosine) return head;
    Doubles turned(head_dim);
    const int64_t half = head_dim / 2;
    for (int64_t i = 0; i < half; i++) {
        turned[i] = head[i] * cosine[i] - head[half + i] * sine[i];
        turned[half + i] = head[half + i] * cosine[i] + head[i] * sine[i];
    }
    return turned;
}

/* What depends on the distance of two tokens: nothing, a number that is added, or keys and queries of distances. */
enum Relative { NOTHING, BIAS, DISENTANGLED };

static void test_attention(int64_t heads, int64_t key_heads, int64_t head_dim, int64_t reach, int64_t causal,
                           Relative relative, bool prepared, bool rounds = false) {
    const int64_t lengths[] = {1, 19, 7, 290}, count = 4, n = 317, longest = 290;
    const int64_t width = heads * head_dim, of_keys = key_heads * head_dim, stride = width + 2 * of_keys, half = head_dim / 2;
    Floats qkv = numbers(n * stride), found(n * width), again(n * width), scale(n), weight = numbers(head_dim);
    if (rounds)
        for (float &x : qkv) x = of_half(half_of(x / 2));
    auto attend = rounds ? embedkit_bf16_attend : embedkit_attend;
    Floats work(rounds ? embedkit_bf16_attend_workspace(longest, head_dim, stride) : embedkit_attend_workspace(longest, head_dim, stride));
    Floats cosine = numbers(n * half), sine = numbers(n * half);
    std::vector<uint8_t> bytes(n * width);
    /* Around the numbers for 2 * longest - 1 distances there are as many as the kernels may read. */
    const int64_t apart = 2 * (longest + 48) - 1, middle = longest + 47;
    Floats bias = numbers(heads * apart), keys = numbers(heads * head_dim * apart), queries = numbers(heads * head_dim * apart);
    Norm norm = {weight.data(), nullptr, 1e-5f, 1};
    Products products = {qkv.data(), nullptr, nullptr, n, stride};
    Texts texts = {count, lengths};
    Attention rules = {heads, key_heads, head_dim, reach, causal, nullptr, nullptr, nullptr, nullptr, {}};
    if (relative == BIAS) rules.distances = {&bias[middle], nullptr, nullptr, apart};
    if (relative == DISENTANGLED) rules.distances = {nullptr, &keys[middle], &queries[middle], apart};
    if (prepared) {
        rules.query_norm = rules.key_norm = &norm;
        rules.cosine = cosine.data();
        rules.sine = sine.data();
    }
    Rows rows = {found.data(), bytes.data(), scale.data(), BYTES}, shared = {again.data(), nullptr, nullptr, FLOATS};
    attend(&products, &texts, &rules, &rows, work.data(), 0, 1);
    for (int64_t share = 0; share < 3; share++) attend(&products, &texts, &rules, &shared, work.data(), share, 3);
    check(!memcmp(found.data(), again.data(), sizeof(float) * n * width), "attention in shares");
    int64_t start = 0;
    for (int64_t text = 0; text < count; start += lengths[text++])
        for (int64_t h = 0; h < heads; h++)
            for (int64_t q = 0; q < lengths[text]; q++) {
                const int64_t length = lengths[text], key_head = h / (heads / key_heads);
                auto head = [&](int64_t t, int64_t from, const Norm *of) {
                    const float *c = prepared ? &cosine[(start + t) * half] : nullptr;
                    return head_of(&qkv[(start + t) * stride + from], head_dim, of, c, &sine[(start + t) * half]);
                };
                Doubles query = head(q, h * head_dim, rules.query_norm), scores(length, -INFINITY);
                double most = -INFINITY, total = 0;
                for (int64_t k = 0; k < length; k++) {
                    if ((causal && k > q) || (reach >= 0 && llabs(k - q) > reach)) continue;
                    Doubles key = head(k, width + key_head * head_dim, rules.key_norm);
                    scores[k] = relative == BIAS ? bias[h * apart + middle + k - q] : 0.0;
                    for (int64_t d = 0; d < head_dim; d++) {
                        scores[k] += query[d] * key[d];
                        const int64_t at = (h * head_dim + d) * apart + middle + k - q;
                        if (relative == DISENTANGLED) scores[k] += query[d] * keys[at] + key[d] * queries[at];
                    }
                    most = fmax(most, scores[k]);
                }
                for (double &score : scores) total += score = exp(score - most);
                for (int64_t d = 0; d < head_dim; d++) {
                    double x = 0, size = 0;
                    for (int64_t k = 0; k < length; k++) {
                        const double value = qkv[(start + k) * stride + width + of_keys + key_head * head_dim + d];
                        x += scores[k] / total * value;
                        size += scores[k] / total * fabs(value);
                    }
                    const double of_x = found[(start + q) * width + h * head_dim + d];
                    /* Weights, and their sum, are rounded to half a step of bf16, and their polynomial is as far off. */
                    check(rounds ? fabs(of_x - x) <= 0.0076 * size + 1e-5 : is_close(of_x, x), "attention");
                }
            }
    check_bytes(found, bytes, scale, width);
}

int main() {
    for (int extreme = 0; extreme < 2; extreme++) {
        test_products(1, 1, 1, extreme);
        test_products(7, 5, 3, extreme);
        test_products(19, 33, 40, extreme);
        test_products(70, 1537, 50, extreme);
        test_products(6, 4096, 48, extreme);
    }
    const int64_t shapes[][3] = {{1, 1, 1}, {19, 35, 40}, {70, 1538, 50}, {6, 4096, 96}};
    for (auto [n, inputs, outputs] : shapes) {
        test_sums(of_bf16, n, inputs, outputs);
        test_sums(of_fp32, n, inputs, outputs);
    }
    test_rounding();
    test_activations();
    test_norms();
    for (int kind = 0; kind < 4; kind++) {
        test_finish_layer(BYTES, kind & 1, kind & 2);
        test_finish_layer(FLOATS, kind & 1, kind & 2);
    }
    test_attention(2, 2, 48, -1, 0, BIAS, false);
    test_attention(2, 2, 20, -1, 0, DISENTANGLED, false);
    test_attention(16, 16, 7, -1, 0, NOTHING, false);
    test_attention(4, 2, 16, -1, 1, NOTHING, true);
    test_attention(2, 1, 24, 9, 0, NOTHING, true);
    test_attention(1, 1, 64, 60, 1, NOTHING, false);
    test_attention(2, 2, 48, -1, 0, BIAS, false, true);
    test_attention(16, 16, 7, -1, 0, NOTHING, false, true);
    test_attention(4, 2, 16, -1, 1, NOTHING, false, true);
    test_attention(2, 1, 96, 9, 0, NOTHING, false, true);
    printf("%s\n", embedkit_int8_instructions());
    return 0;
}
