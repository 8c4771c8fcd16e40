// Lays weights of codes out for products with positions as lanes.
#pragma once

#include <cstdint>
#include <vector>

#include "integer_network.hpp"

namespace latewood {

// Codes (outputs, channels, taps) with bits by channel, 0 for those that have left; `mask` may be
// null. Inputs that are never negative stand for 2u + 1, others for 2u - (2^bits - 1).
struct CodedWeights {
  const std::uint8_t *codes, *mask, *bits, *input_bits;
  bool never_negative;
  std::int64_t outputs, channels, taps;
};

LaneProduct lane_product(const CodedWeights &weights);

}  // namespace latewood
