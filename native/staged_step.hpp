// Steps of stochastic gradient descent and of Adam in which stretches of a tensor have learning rates
// and step counts of their own.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu.hpp"

namespace latewood {

// The numbers of one stage's step; the Python side says what they mean.
struct StageNumbers {
  float size, keep, l2, beta1, rest1, beta2, rest2, correction, eps, nesterov;
};

// A moment that the rule does not have is null: with none the step is plain, with the first alone
// that of momentum, with both Adam's.
struct StageMemory {
  float *parameter;
  const float *gradient;
  float *first, *second;
};

// Elements of a row that are treated alike.
struct Stretch {
  std::int64_t begin, end;
  const StageNumbers *numbers;
};

}  // namespace latewood

#define LATEWOOD_STAGED_STEP_KERNELS                                                         \
  void staged_rows(const StageMemory &memory, const Stretch *stretches, std::size_t count,   \
                   std::int64_t row, std::int64_t begin, std::int64_t end);

LATEWOOD_FOR_EACH_ISA(LATEWOOD_STAGED_STEP_KERNELS)
