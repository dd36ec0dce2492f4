/* int8_products.cpp as a processor with VNNI, and perhaps AMX, compiles it, with the instructions that others lack as loops. */
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

template <class Vector> static inline Vector dot_products(Vector sums, Vector activations, Vector weights) {
    int32_t added[sizeof(Vector) / 4];
    uint8_t unsigned_bytes[sizeof(Vector)];
    int8_t signed_bytes[sizeof(Vector)];
    memcpy(added, &sums, sizeof sums);
    memcpy(unsigned_bytes, &activations, sizeof sums);
    memcpy(signed_bytes, &weights, sizeof sums);
    for (unsigned i = 0; i < sizeof(Vector); i++) added[i / 4] += unsigned_bytes[i] * signed_bytes[i];
    memcpy(&sums, added, sizeof sums);
    return sums;
}

#define _mm512_dpbusd_epi32 dot_products
#define _mm256_dpbusd_avx_epi32 dot_products
#ifdef EMULATE_AVX512
#define __AVX512BW__
#define __AVX512VNNI__
#else
#define __AVXVNNI__
#endif
#ifdef EMULATE_TILES
#include "emulated_tiles.h"
#endif
#include "int8_products.cpp"
