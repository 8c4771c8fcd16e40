// One step of the optimizers, and sums of squared rates, on stretches of one tensor.
#pragma once

#include <cstdint>

#include "cpu.hpp"

namespace latewood {

enum class StepRule { momentum, delayed, bounded };
enum class StepRates { none, before, after };
enum class StepType { float32, float64, bfloat16, float16 };

// The numbers of one tensor's step; the Python side says what they mean.
struct StepNumbers {
  double size, beta1, beta2, eps, keep, l2, factor, previous, following, lower, upper;
};

// Moments are float64 for float64 parameters and float32 for all others; those that a rule does
// not have are null.
struct StepTensor {
  void *parameter;
  const void *gradient;
  void *first, *second, *peak;
  // Of the noise with which a bfloat16 parameter is rounded; -1 rounds to nearest.
  std::int64_t key = -1;
};

// Elements in one unit of work, counted from the start of each tensor: how sums are rounded then
// depends neither on the threads nor on the other tensors.
constexpr std::int64_t step_chunk = std::int64_t{1} << 16;

}  // namespace latewood

#define LATEWOOD_OPTIM_KERNELS                                                                \
  double optim_step(StepRule rule, StepType type, StepRates rates, const StepTensor &tensor,  \
                    const StepNumbers &numbers, std::int64_t begin, std::int64_t end);        \
  double optim_rate_sum(StepType type, const void *second, double correction, double eps,     \
                        std::int64_t begin, std::int64_t end);

LATEWOOD_FOR_EACH_ISA(LATEWOOD_OPTIM_KERNELS)
