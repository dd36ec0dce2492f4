/* fp32_products.cpp as a processor with AMX compiles it. */
#include "emulated_tiles.h"
#include "fp32_products.cpp"
