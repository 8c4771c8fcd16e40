// The masked weight of continuous sparsification, w * scale * sigmoid(temperature * s), and the sum
// of its mask.
#pragma once

#include <cstdint>

#include "cpu.hpp"

#define LATEWOOD_MASKED_WEIGHT_KERNELS                                                        \
  void masked_weight_forward(const float *weight, const float *logits, float temperature,     \
                             float scale, float *masked, std::int64_t n);                     \
  void masked_weight_backward(const float *gradient, const float *weight,                     \
                              const float *logits, float temperature, float scale,            \
                              float *weight_gradient, float *logits_gradient, std::int64_t n);\
  double mask_sum_forward(const float *logits, float temperature, float scale,                \
                          std::int64_t n);                                                    \
  void mask_sum_backward(float gradient, const float *logits, float temperature, float scale, \
                         float *logits_gradient, std::int64_t n);

LATEWOOD_FOR_EACH_ISA(LATEWOOD_MASKED_WEIGHT_KERNELS)
