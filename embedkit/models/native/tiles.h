/* Tiles of AMX: eight registers of up to 16 rows of 64 bytes, and the products of two of them. Row r of the first and
 * column c of the second, which lies as words of neighbouring inputs, give the sum in word c of row r.
 *
 * Of the tiles, 0 to 3 are for sums, 4 and 5 for rows of activations, 6 and 7 for weights. In assembler: the compilers'
 * own functions are missing in older ones, and do not say that they read memory. */
#pragma once
#include <stdint.h>

#define TILE_ROWS 16
/* Words of a row. */
#define TILE_WORDS 16

struct TileShapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16]; /* of a row */
    uint8_t rows[16];
};

#ifndef TILE_LOAD /* a test defines the same for processors without tiles */
extern "C" long syscall(long, ...);
/* `stride` is in bytes. */
#define TILE_LOAD(tile, at, stride) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile : : "r"(at), "r"((int64_t)(stride)) : "memory")
#define TILE_STORE(tile, at, stride) \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" : : "r"(at), "r"((int64_t)(stride)) : "memory")
#define TILE_ZERO(tile) __asm__ volatile("tilezero %%tmm" #tile : : : "memory")
/* Unsigned bytes of rows times signed ones of weights. */
#define TILE_DOT_BYTES(sums, rows, weights) \
    __asm__ volatile("tdpbusd %%tmm" #weights ", %%tmm" #rows ", %%tmm" #sums : : : "memory")
#define TILE_DOT_BF16(sums, rows, weights) \
    __asm__ volatile("tdpbf16ps %%tmm" #weights ", %%tmm" #rows ", %%tmm" #sums : : : "memory")

static inline void load_shapes(const TileShapes &shapes) { __asm__ volatile("ldtilecfg %0" : : "m"(shapes)); }

/* Leaves the tiles: a thread that uses them has more to save when it is interrupted. */
static inline void release_tiles() { __asm__ volatile("tilerelease"); }

/* Asks the kernel for the tiles, for all threads of this process: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA). */
static inline bool ask_for_tiles() { return syscall(158, 0x1023, 18) == 0; }
#endif

/* Whether this process may use them. */
static const bool has_tiles = ask_for_tiles();

/* Prepares the tiles for 1 to 32 rows of activations: 16 in tile 4, with sums in 0 and 1, the others in tile 5. */
static inline void shape_tiles(int64_t rows) {
    TileShapes shapes = {1, 0, {}, {}, {}};
    for (int tile = 0; tile < 8; tile++) {
        const bool others = tile == 2 || tile == 3 || tile == 5;
        const int64_t here = tile > 5 ? TILE_ROWS : others ? rows - TILE_ROWS : rows;
        shapes.bytes[tile] = TILE_WORDS * 4;
        /* A tile that is not used needs a shape, too. */
        shapes.rows[tile] = (uint8_t)(here < 1 || here > TILE_ROWS ? TILE_ROWS : here);
    }
    load_shapes(shapes);
}
