/* attention.cpp as a processor with AMX compiles it. */
#define LANES 16
#include "emulated_tiles.h"
#include "attention.cpp"
