#include <nanobind/nanobind.h>

#include "masked_weight.hpp"

namespace nb = nanobind;

// Tensors arrive as data pointers: the Python side has checked dtype, device and layout.
static void forward(std::uintptr_t weight, std::uintptr_t logits, float temperature, float scale,
                    std::uintptr_t masked, std::int64_t n) {
  LATEWOOD_DISPATCH(masked_weight_forward, reinterpret_cast<const float *>(weight),
                    reinterpret_cast<const float *>(logits), temperature, scale,
                    reinterpret_cast<float *>(masked), n);
}

static void backward(std::uintptr_t gradient, std::uintptr_t weight, std::uintptr_t logits,
                     float temperature, float scale, std::uintptr_t weight_gradient,
                     std::uintptr_t logits_gradient, std::int64_t n) {
  LATEWOOD_DISPATCH(masked_weight_backward, reinterpret_cast<const float *>(gradient),
                    reinterpret_cast<const float *>(weight),
                    reinterpret_cast<const float *>(logits), temperature, scale,
                    reinterpret_cast<float *>(weight_gradient),
                    reinterpret_cast<float *>(logits_gradient), n);
}

void bind_masked_weight(nb::module_ &module) {
  module.def("masked_weight_forward", &forward);
  module.def("masked_weight_backward", &backward);
}
