// One pass over memory, with torch's own arithmetic in torch's order: a weight whose parts have rates
// of their own then costs less than torch's step of the whole, not a copy and a blend on top of it.
#include <cmath>

#include "staged_step.hpp"

namespace latewood {
namespace LATEWOOD_ISA {

static void plain(float *__restrict p, const float *__restrict g, const StageNumbers c, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    const float direction = g[i] + c.l2 * p[i];
    p[i] = p[i] - c.size * direction;
  }
}

template <bool nesterov>
static void momentum(float *__restrict p, const float *__restrict g, float *__restrict m, const StageNumbers c,
                     std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    const float direction = g[i] + c.l2 * p[i];
    const float buffer = c.beta1 * m[i] + c.rest1 * direction;
    m[i] = buffer;
    p[i] = p[i] - c.size * (nesterov ? direction + c.beta1 * buffer : buffer);
  }
}

static void adam(float *__restrict p, const float *__restrict g, float *__restrict m,
                 float *__restrict v, const StageNumbers c, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    const float kept = c.keep * p[i];
    const float direction = g[i] + c.l2 * p[i];
    const float first = m[i] + c.rest1 * (direction - m[i]);
    const float second = c.beta2 * v[i] + c.rest2 * direction * direction;
    m[i] = first;
    v[i] = second;
    p[i] = kept - c.size * (first / (std::sqrt(second) / c.correction + c.eps));
  }
}

static void stretch(const StageMemory &t, const StageNumbers &c, std::int64_t at, std::int64_t n) {
  float *const p = t.parameter + at;
  const float *const g = t.gradient + at;
  if (t.second) adam(p, g, t.first + at, t.second + at, c, n);
  else if (!t.first) plain(p, g, c, n);
  else if (c.nesterov != 0) momentum<true>(p, g, t.first + at, c, n);
  else momentum<false>(p, g, t.first + at, c, n);
}

// Rows from `begin` up to `end`, of `row` elements each.
void staged_rows(const StageMemory &memory, const Stretch *stretches, std::size_t count,
                 std::int64_t row, std::int64_t begin, std::int64_t end) {
  if (count == 1) {
    stretch(memory, *stretches->numbers, begin * row, (end - begin) * row);
    return;
  }
  for (std::int64_t r = begin; r < end; ++r)
    for (std::size_t k = 0; k < count; ++k)
      stretch(memory, *stretches[k].numbers, r * row + stretches[k].begin,
              stretches[k].end - stretches[k].begin);
}

}  // namespace LATEWOOD_ISA
}  // namespace latewood
