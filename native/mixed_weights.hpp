// Lays weights of codes out for products with outputs as lanes.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "mixed_products.hpp"

namespace latewood {

// Codes (outputs, channels, taps) with bits by channel, 0 for those that have left; `mask` may be
// null. Inputs that are never negative stand for 2u + 1, others for 2u - (2^bits - 1).
struct CodedWeights {
  const std::uint8_t *codes, *mask, *bits, *input_bits;
  bool never_negative;
  std::int64_t outputs, channels, taps;
};

void require_product_size(std::int64_t outputs, std::int64_t channels, std::int64_t taps);

// `widths_by_table`: the widths whose inputs become tables.
std::unique_ptr<MixedProduct> mixed_product(const CodedWeights &weights,
                                            const std::vector<int> &widths_by_table);

}  // namespace latewood
