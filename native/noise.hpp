// Uniform noise from a counter, added to clipped values, and the sums that its gradients need.
#pragma once

#include <cstdint>

#include "cpu.hpp"

namespace latewood {

// Elements whose noise is drawn at once; a number of the definition, the same for every processor.
constexpr std::int64_t noise_group = 128;

// A tensor as `outer` stretches of `channels` runs of `inner` elements. Places of the noise follow
// this order whatever the memory's is: channels come last there, or stand where they stand here.
struct NoiseLayout {
  std::int64_t outer, channels, inner;
  bool channels_last;
  std::uint32_t key[2];
};

// A width a channel, and the bounds of what comes out, where there are any.
struct NoiseRange {
  const float *width;
  float low, high;
  bool clips;
};

// Of a stretch of a tensor.
struct NoiseExtent {
  double squares;
  float least, largest;
};

}  // namespace latewood

// `begin` and `end` count elements in the order of the places; with channels last they are multiples
// of channels * inner. `sums` has one double a channel.
#define LATEWOOD_NOISE_KERNELS                                                                 \
  void noise_draw(const std::uint32_t key[2], std::int64_t begin, std::int64_t end,            \
                  float *noise);                                                               \
  void noise_forward(const NoiseLayout &layout, const NoiseRange &range, const float *values,  \
                     float *noisy, std::int64_t begin, std::int64_t end);                      \
  void noise_backward(const NoiseLayout &layout, const NoiseRange &range, const float *values, \
                      const float *gradient, float *values_gradient, double *sums,             \
                      std::int64_t begin, std::int64_t end);                                   \
  NoiseExtent noise_extent(const float *values, std::int64_t begin, std::int64_t end);

LATEWOOD_FOR_EACH_ISA(LATEWOOD_NOISE_KERNELS)
