/* bf16_products.cpp as a processor with AMX compiles it. */
#include "emulated_tiles.h"
#include "bf16_products.cpp"
