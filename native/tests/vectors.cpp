// Which vectors the products are computed with, for products.cpp.
#include "vectors.hpp"

extern const char *const vectors;

#if defined(LATEWOOD_VECTORS)
const char *const vectors = LATEWOOD_VECTORS;
#else
const char *const vectors = "none";
#endif
