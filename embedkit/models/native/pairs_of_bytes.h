/* Products of bytes where no instruction adds them in 32 bits. vpmaddubsw multiplies unsigned bytes by signed ones and adds
 * pairs of products in 16 bits, where they may not fit; vpmaddwd, by ones, adds pairs of these in 32 bits. These three
 * instructions, with the addition, do what takes four with products of 16 bits.
 *
 * Here weights are unsigned, 128 for 0, and activations signed. A pair fits if its activations add up to -128 to 128, since
 * 128 * 255 < 2^15; if their signs differ, they do. What others have in excess is taken from the second of the pair and
 * multiplied apart (in MiniLM, one word of four activations in 40 to 600 has any). Sums start from this, and from -128 times
 * the sum of the row's activations. */
#pragma once
#define PAIRS

typedef int16_t halves __attribute__((vector_size(LANES * 4)));
typedef char bytes __attribute__((vector_size(LANES * 4)));

INLINE ints add_pairs(ints sums, ints activations, ints weights) {
    const halves ones = halves{} + 1;
#if LANES == 16
    const __m512i pairs = _mm512_maddubs_epi16((__m512i)weights, (__m512i)activations);
    return sums + (ints)_mm512_madd_epi16(pairs, (__m512i)ones);
#else
    const halves pairs = (halves)__builtin_ia32_pmaddubsw256((bytes)weights, (bytes)activations);
    sums += (ints)__builtin_ia32_pmaddwd256(pairs, ones);
    /* In this order: a compiler would begin all products before it adds the first, and run out of registers. */
    __asm__ volatile("" : "+x"(sums));
    return sums;
#endif
}

/* What a row has in excess in one word. */
struct Excess {
    int32_t group, word;
};

/* What n rows have beside their words: what the sums of each start from, where its excess ends, and the excess of all. */
INLINE int64_t bounded_words(int64_t n, int64_t groups) { return 2 * n * (1 + groups); }

/* Copies a vector, or less if there are fewer bytes. */
INLINE void copy(void *to, const void *from, int64_t count) {
    if (count < LANES * 4) __builtin_memcpy(to, from, count);
    else __builtin_memcpy(to, from, LANES * 4);
}

INLINE bool is_any(halves x) {
    typedef int64_t longs __attribute__((vector_size(LANES * 4)));
    int64_t any = 0;
    for (int i = 0; i < LANES / 2; i++) any |= ((longs)x)[i];
    return any;
}

/* Writes n rows of bytes, 128 for 0, as words of signed bytes, in pairs that fit. */
static void bound_rows(const uint8_t *rows, int64_t n, int64_t width, int32_t *words, int32_t *beside) {
    const int64_t groups = (width + 3) / 4;
    int32_t *starts = beside, *ends = beside + n, count = 0;
    Excess *all = (Excess *)(ends + n);
    for (int64_t t = 0; t < n; t++) {
        ints total = {};
        for (int64_t g = 0; g < groups; g += LANES) {
            const int64_t inputs = width - g * 4;
            const halves zeros = (halves)((ints){} + (int32_t)0x80808080);
            halves pairs = zeros;
            copy(&pairs, rows + t * width + g * 4, inputs);
            pairs ^= zeros;
            const halves sums = (pairs << 8 >> 8) + (pairs >> 8), most = halves{} + 128;
            total += ((ints)sums << 16 >> 16) + ((ints)sums >> 16);
            const halves at_most = sums > most ? most : sums;
            const halves excess = (sums - (at_most < -most ? -most : at_most)) << 8;
            pairs -= excess;
            copy(words + t * groups + g, &pairs, (inputs + 3) / 4 * 4);
            if (!is_any(excess)) continue;
            for (int i = 0; i < LANES; i++)
                if (((ints)excess)[i]) all[count++] = {(int32_t)g + i, ((ints)excess)[i]};
        }
        starts[t] = 0;
        for (int i = 0; i < LANES; i++) starts[t] -= 128 * total[i];
        ends[t] = count;
    }
}

/* Writes what the sums of n rows and of a panel of weights start from. */
static void start_rows(const int32_t *beside, int64_t n, const int32_t *weights, int32_t *sums) {
    const int32_t *starts = beside, *ends = beside + n;
    const Excess *all = (const Excess *)(ends + n);
    int32_t next = 0;
    for (int64_t t = 0; t < n; t++) {
        ints of_row[VECTORS];
        for (int v = 0; v < VECTORS; v++) of_row[v] = starts[t] - ints{};
        for (; next < ends[t]; next++)
            for (int v = 0; v < VECTORS; v++)
                of_row[v] = add_pairs(of_row[v], all[next].word - ints{},
                                      *(const ints_at *)(weights + all[next].group * OUTPUTS + v * LANES));
        for (int v = 0; v < VECTORS; v++) *(ints_at *)(sums + t * OUTPUTS + v * LANES) = of_row[v];
    }
}

/* Makes packed weights unsigned. */
static void shift_weights(int32_t *packed, int64_t words) {
    for (int64_t w = 0; w < words; w++) packed[w] ^= (int32_t)0x80808080;
}
