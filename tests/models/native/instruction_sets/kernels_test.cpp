/* Compares kernels.cpp and int8_products.cpp with plain loops, for a processor that may be emulated. Needs no torch.
 * Prints the instructions that multiply bytes, and exits with 1 at the first difference. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <vector>

struct Products {
    float *values;
    const float *scale, *bias;
    int64_t n, width;
};
struct Rows {
    float *values;
    uint8_t *bytes;
    float *scale;
};
struct Norm {
    const float *weight, *bias;
    float eps;
};
struct Texts {
    int64_t count;
    const int64_t *lengths;
    const float *const *biases;
};

extern "C" {
void embedkit_quantise(const Rows *, int64_t, int64_t);
void embedkit_activate(const Products *, int, const Rows *);
void embedkit_residual_norm(const Products *, const float *, const Norm *, const Rows *);
void embedkit_attend(const Products *, const Texts *, int64_t, int64_t, const Rows *, float *);
int64_t embedkit_attend_workspace(int64_t, int64_t);
int64_t embedkit_int8_packed(int64_t, int64_t);
int64_t embedkit_int8_workspace(int64_t, int64_t);
int64_t embedkit_int8_panels(int64_t);
void embedkit_int8_pack(const int8_t *, int64_t, int64_t, int32_t *);
void embedkit_int8_multiply(const uint8_t *, int64_t, int64_t, const int32_t *, const float *, int64_t, int64_t, int64_t,
                            float *, int32_t *);
const char *embedkit_int8_instructions(void);
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
    int64_t panels = embedkit_int8_panels(outputs), half = panels / 2;
    embedkit_int8_multiply(rows.data(), n, inputs, packed.data(), scale.data(), outputs, 0, half, found.data(), work.data());
    embedkit_int8_multiply(rows.data(), n, inputs, packed.data(), scale.data(), outputs, half, panels, found.data(),
                           work.data());
    for (int64_t t = 0; t < n; t++)
        for (int64_t o = 0; o < outputs; o++) {
            int32_t sum = 0;
            for (int64_t i = 0; i < inputs; i++) sum += (rows[t * inputs + i] - 128) * weights[o * inputs + i];
            check(found[t * outputs + o] == (float)sum * scale[o], "a product of bytes");
        }
    embedkit_int8_multiply(&rows[(n - 1) * inputs], 1, inputs, packed.data(), scale.data(), outputs, 0, panels,
                           alone.data(), work.data());
    check(!memcmp(alone.data(), &found[(n - 1) * outputs], sizeof(float) * outputs), "a product of a row alone");
}

static void check_bytes(const Floats &values, const std::vector<uint8_t> &bytes, const Floats &scale, int64_t width) {
    for (size_t i = 0; i < values.size(); i++) {
        float step = scale[i / width];
        check(fabsf(((float)bytes[i] - 128.0f) * step - values[i]) <= 0.501f * step, "a quantised number");
    }
}

static double activated(double x, int kind) {
    if (kind == 0) return 0.5 * x * (1 + erf(x / sqrt(2.0)));
    if (kind == 1) return 0.5 * x * (1 + tanh(sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
    if (kind == 2) return x < 0 ? 0 : x;
    return x / (1 + exp(-x));
}

static void test_rows() {
    const int64_t n = 5, width = 96;
    for (int kind = 0; kind < 4; kind++) {
        Floats values = numbers(n * width), given = values, steps = numbers(n), bias = numbers(width), scale(n);
        std::vector<uint8_t> bytes(n * width);
        Products products = {values.data(), steps.data(), bias.data(), n, width};
        Rows rows = {values.data(), bytes.data(), scale.data()};
        embedkit_activate(&products, kind, &rows);
        for (int64_t i = 0; i < n * width; i++) {
            double x = (double)given[i] * steps[i / width] + bias[i % width];
            check(is_close(values[i], activated(x, kind)), "an activation");
        }
        check_bytes(values, bytes, scale, width);
    }
    Floats values = numbers(n * width), residual = numbers(n * width), weight = numbers(width), bias = numbers(width);
    Floats given = values, scale(n);
    std::vector<uint8_t> bytes(n * width);
    Products products = {values.data(), nullptr, nullptr, n, width};
    Norm norm = {weight.data(), bias.data(), 1e-5f};
    Rows rows = {values.data(), bytes.data(), scale.data()};
    embedkit_residual_norm(&products, residual.data(), &norm, &rows);
    for (int64_t t = 0; t < n; t++) {
        double mean = 0, variance = 0;
        for (int64_t i = t * width; i < (t + 1) * width; i++) mean += ((double)given[i] + residual[i]) / width;
        for (int64_t i = t * width; i < (t + 1) * width; i++) variance += pow(given[i] + residual[i] - mean, 2) / width;
        for (int64_t i = 0; i < width; i++) {
            double x = ((double)given[t * width + i] + residual[t * width + i] - mean) / sqrt(variance + 1e-5);
            check(is_close(values[t * width + i], x * weight[i] + bias[i]), "a norm");
        }
    }
    check_bytes(values, bytes, scale, width);
    embedkit_quantise(&rows, n, width);
    check_bytes(values, bytes, scale, width);
}

static void test_attention(int64_t heads, int64_t head_dim) {
    const int64_t lengths[] = {1, 19, 7, 33}, count = 4, n = 60, width = heads * head_dim;
    Floats qkv = numbers(n * 3 * width), found(n * width), scale(n), work(embedkit_attend_workspace(33, head_dim));
    std::vector<uint8_t> bytes(n * width);
    std::vector<Floats> biases;
    std::vector<const float *> at;
    for (int64_t length : lengths) biases.push_back(numbers(heads * length * length));
    for (const Floats &bias : biases) at.push_back(bias.data());
    Products products = {qkv.data(), nullptr, nullptr, n, 3 * width};
    Texts texts = {count, lengths, at.data()};
    Rows rows = {found.data(), bytes.data(), scale.data()};
    embedkit_attend(&products, &texts, heads, head_dim, &rows, work.data());
    int64_t start = 0;
    for (int64_t text = 0; text < count; start += lengths[text++])
        for (int64_t h = 0; h < heads; h++)
            for (int64_t q = 0; q < lengths[text]; q++) {
                std::vector<double> scores(lengths[text]);
                double most = -INFINITY, total = 0;
                for (int64_t k = 0; k < lengths[text]; k++) {
                    scores[k] = biases[text][(h * lengths[text] + q) * lengths[text] + k];
                    for (int64_t d = h * head_dim; d < (h + 1) * head_dim; d++)
                        scores[k] += (double)qkv[(start + q) * 3 * width + d] * qkv[(start + k) * 3 * width + width + d];
                    most = fmax(most, scores[k]);
                }
                for (double &score : scores) total += score = exp(score - most);
                for (int64_t d = h * head_dim; d < (h + 1) * head_dim; d++) {
                    double x = 0;
                    for (int64_t k = 0; k < lengths[text]; k++)
                        x += scores[k] / total * qkv[(start + k) * 3 * width + 2 * width + d];
                    check(is_close(found[(start + q) * width + d], x), "attention");
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
    test_rows();
    test_attention(2, 48);
    test_attention(16, 7);
    printf("%s\n", embedkit_int8_instructions());
    return 0;
}
