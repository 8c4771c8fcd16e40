// What the loops of one step share, whichever instruction set they are written for.
#pragma once

#include "optim.hpp"

namespace latewood {
namespace LATEWOOD_ISA {

// Elements worked on at a time: their tensors fit the first cache together.
constexpr std::int64_t stretch = 1024;

// Passed by value to every loop: through a reference the compiler must fear that a store changes a
// number, and does not vectorise.
template <typename T>
struct Numbers {
  T size, beta1, rest1, beta2, rest2, eps, keep, l2, factor, previous, following, lower, upper;

  explicit Numbers(const StepNumbers &n)
      : size(n.size), beta1(n.beta1), rest1(1.0 - n.beta1), beta2(n.beta2), rest2(1.0 - n.beta2),
        eps(n.eps), keep(n.keep), l2(n.l2), factor(n.factor), previous(n.previous),
        following(n.following), lower(n.lower), upper(n.upper) {}
};

// How a delayed step treats the parameter: not at all, without weight decay and scaling of the
// gradient (three multiplications fewer), or with all of it.
enum class Move { none, plainly, fully };

}  // namespace LATEWOOD_ISA
}  // namespace latewood
