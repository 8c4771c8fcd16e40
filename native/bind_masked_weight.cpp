#include <nanobind/nanobind.h>

#include <algorithm>
#include <array>
#include <vector>

#include "masked_weight.hpp"
#include "tensors.hpp"

namespace nb = nanobind;
using namespace latewood;

// A second thread pays from two full blocks on.
static int helpful(std::int64_t n, int threads) {
  return int(std::max<std::int64_t>(1, std::min<std::int64_t>(threads, n / block_size)));
}

// The elements of float32 tensors that are alike; `n` is how many each has.
template <std::size_t count>
static std::array<float *, count> floats(const std::array<nb::handle, count> &tensors,
                                         std::int64_t *n) {
  std::array<float *, count> starts;
  TensorView first, view;
  for (std::size_t k = 0; k < count; ++k) {
    require(view_tensor(tensors[k], &view) && view.dtype == tensor_types().float32,
            "not a float32 tensor whose memory a kernel can work on");
    if (k == 0) first = view;
    require(same_shape(first, view) && same_layout(first, view), "tensors are not alike");
    starts[k] = static_cast<float *>(view.data);
  }
  *n = first.numel;
  return starts;
}

static void forward(nb::handle weight, nb::handle logits, float temperature, float scale,
                    nb::handle masked, int threads) {
  std::int64_t n;
  const auto [w, s, out] = floats<3>({weight, logits, masked}, &n);
  const nb::gil_scoped_release unlocked;
  for_each_block(n, helpful(n, threads),
                 [=, w = w, s = s, out = out](std::int64_t, std::int64_t begin, std::int64_t end) {
    LATEWOOD_DISPATCH(masked_weight_forward, w + begin, s + begin, temperature, scale, out + begin,
                      end - begin);
  });
}

static void backward(nb::handle gradient, nb::handle weight, nb::handle logits, float temperature,
                     float scale, nb::handle weight_gradient, nb::handle logits_gradient,
                     int threads) {
  std::int64_t n;
  const auto t = floats<5>({gradient, weight, logits, weight_gradient, logits_gradient}, &n);
  const nb::gil_scoped_release unlocked;
  for_each_block(n, helpful(n, threads), [=](std::int64_t, std::int64_t begin, std::int64_t end) {
    LATEWOOD_DISPATCH(masked_weight_backward, t[0] + begin, t[1] + begin, t[2] + begin, temperature,
                      scale, t[3] + begin, t[4] + begin, end - begin);
  });
}

static double sum_forward(nb::handle logits, float temperature, float scale, int threads) {
  std::int64_t n;
  const auto s = floats<1>({logits}, &n);
  const nb::gil_scoped_release unlocked;
  // One slot a block, added in order, so that the sum does not depend on the threads.
  std::vector<double> sums(block_count(n));
  for_each_block(n, helpful(n, threads), [&](std::int64_t block, std::int64_t begin, std::int64_t end) {
    sums[block] = LATEWOOD_DISPATCH(mask_sum_forward, s[0] + begin, temperature, scale, end - begin);
  });
  double total = 0;
  for (const double sum : sums) total += sum;
  return total;
}

static void sum_backward(float gradient, nb::handle logits, float temperature, float scale,
                         nb::handle logits_gradient, int threads) {
  std::int64_t n;
  const auto t = floats<2>({logits, logits_gradient}, &n);
  const nb::gil_scoped_release unlocked;
  for_each_block(n, helpful(n, threads), [=](std::int64_t, std::int64_t begin, std::int64_t end) {
    LATEWOOD_DISPATCH(mask_sum_backward, gradient, t[0] + begin, temperature, scale, t[1] + begin,
                      end - begin);
  });
}

void bind_masked_weight(nb::module_ &module) {
  module.def("masked_weight_forward", &forward);
  module.def("masked_weight_backward", &backward);
  module.def("mask_sum_forward", &sum_forward);
  module.def("mask_sum_backward", &sum_backward);
}
