/* Has a source compiled as for a processor with AMX, with the instructions of tiles as loops. */
#pragma once
#include <stdint.h>
#include <string.h>

namespace {
struct Emulated {
    char bytes[16][64];
    int rows;
} emulated[8];

float of_bf16(const char *at) {
    uint32_t bits = 0;
    memcpy((char *)&bits + 2, at, 2);
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

/* `of_words` gives the sum of the products of two words. */
template <class Sum, class Dot> void add_products(Emulated &sums, const Emulated &rows, const Emulated &weights, Dot of_words) {
    for (int r = 0; r < sums.rows; r++)
        for (int c = 0; c < 16; c++) {
            Sum sum;
            memcpy(&sum, sums.bytes[r] + 4 * c, 4);
            for (int word = 0; word < 16; word++)
                sum += of_words(rows.bytes[r] + 4 * word, weights.bytes[word] + 4 * c);
            memcpy(sums.bytes[r] + 4 * c, &sum, 4);
        }
}

int32_t dot_of_bytes(const char *a, const char *b) {
    int32_t sum = 0;
    for (int i = 0; i < 4; i++) sum += (uint8_t)a[i] * (int8_t)b[i];
    return sum;
}

float dot_of_bf16(const char *a, const char *b) { return of_bf16(a) * of_bf16(b) + of_bf16(a + 2) * of_bf16(b + 2); }
}  // namespace

#define TILE_LOAD(tile, at, stride) \
    for (int r = 0; r < emulated[tile].rows; r++) memcpy(emulated[tile].bytes[r], (const char *)(at) + r * (stride), 64)
#define TILE_STORE(tile, at, stride) \
    for (int r = 0; r < emulated[tile].rows; r++) memcpy((char *)(at) + r * (stride), emulated[tile].bytes[r], 64)
#define TILE_ZERO(tile) memset(emulated[tile].bytes, 0, sizeof emulated[tile].bytes)
#define TILE_DOT_BYTES(sums, rows, weights) add_products<int32_t>(emulated[sums], emulated[rows], emulated[weights], dot_of_bytes)
#define TILE_DOT_BF16(sums, rows, weights) add_products<float>(emulated[sums], emulated[rows], emulated[weights], dot_of_bf16)

struct TileShapes;
static void load_shapes(const TileShapes &);
static void release_tiles() {
    for (Emulated &tile : emulated) tile.rows = 0;
}
#ifdef REFUSED
static bool ask_for_tiles() { return false; }
#else
static bool ask_for_tiles() { return true; }
#endif

#include "tiles.h"

static void load_shapes(const TileShapes &shapes) {
    for (int tile = 0; tile < 8; tile++) emulated[tile].rows = shapes.rows[tile];
}

#define __AMX_INT8__ 1
#define __AMX_BF16__ 1
