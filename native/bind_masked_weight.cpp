#include <nanobind/nanobind.h>

#include <algorithm>
#include <vector>

#include "masked_weight.hpp"

namespace nb = nanobind;
using latewood::block_count;
using latewood::block_size;
using latewood::for_each_block;

// Tensors arrive as data pointers: the Python side has checked dtype, device and layout.
static const float *input(std::uintptr_t address) {
  return reinterpret_cast<const float *>(address);
}
static float *output(std::uintptr_t address) { return reinterpret_cast<float *>(address); }

// A second thread pays from two full blocks on.
static int helpful(std::int64_t n, int threads) {
  return int(std::max<std::int64_t>(1, std::min<std::int64_t>(threads, n / block_size)));
}

static void forward(std::uintptr_t weight, std::uintptr_t logits, float temperature, float scale,
                    std::uintptr_t masked, std::int64_t n, int threads) {
  for_each_block(n, helpful(n, threads), [=](std::int64_t, std::int64_t begin, std::int64_t end) {
    LATEWOOD_DISPATCH(masked_weight_forward, input(weight) + begin, input(logits) + begin,
                      temperature, scale, output(masked) + begin, end - begin);
  });
}

static void backward(std::uintptr_t gradient, std::uintptr_t weight, std::uintptr_t logits,
                     float temperature, float scale, std::uintptr_t weight_gradient,
                     std::uintptr_t logits_gradient, std::int64_t n, int threads) {
  for_each_block(n, helpful(n, threads), [=](std::int64_t, std::int64_t begin, std::int64_t end) {
    LATEWOOD_DISPATCH(masked_weight_backward, input(gradient) + begin, input(weight) + begin,
                      input(logits) + begin, temperature, scale, output(weight_gradient) + begin,
                      output(logits_gradient) + begin, end - begin);
  });
}

static double sum_forward(std::uintptr_t logits, float temperature, float scale, std::int64_t n,
                          int threads) {
  // One slot a block, added in order, so that the sum does not depend on the threads.
  std::vector<double> sums(block_count(n));
  for_each_block(n, helpful(n, threads), [&](std::int64_t block, std::int64_t begin, std::int64_t end) {
    sums[block] = LATEWOOD_DISPATCH(mask_sum_forward, input(logits) + begin, temperature, scale,
                                    end - begin);
  });
  double total = 0;
  for (const double sum : sums) total += sum;
  return total;
}

static void sum_backward(float gradient, std::uintptr_t logits, float temperature, float scale,
                         std::uintptr_t logits_gradient, std::int64_t n, int threads) {
  for_each_block(n, helpful(n, threads), [=](std::int64_t, std::int64_t begin, std::int64_t end) {
    LATEWOOD_DISPATCH(mask_sum_backward, gradient, input(logits) + begin, temperature, scale,
                      output(logits_gradient) + begin, end - begin);
  });
}

void bind_masked_weight(nb::module_ &module) {
  const auto unlocked = nb::call_guard<nb::gil_scoped_release>();
  module.def("masked_weight_forward", &forward, unlocked);
  module.def("masked_weight_backward", &backward, unlocked);
  module.def("mask_sum_forward", &sum_forward, unlocked);
  module.def("mask_sum_backward", &sum_backward, unlocked);
}
