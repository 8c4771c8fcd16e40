// Lays weights of codes out for products with positions as lanes.
#pragma once

#include "integer_network.hpp"
#include "mixed_weights.hpp"

namespace latewood {

LaneProduct lane_product(const CodedWeights &weights, const MixedGeometry &geometry);

}  // namespace latewood
