// Reads parameter, gradient and moments once and writes them once: 28 bytes an element in float32,
// with the sum of squared rates taken while the second moments are still in the cache.
#include "optim.hpp"

#include <cmath>
#include <cstring>
#include <type_traits>

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

template <typename T>
static void plain(T *__restrict p, const T *__restrict g, Numbers<T> c, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    const T direction = c.factor * g[i] + c.l2 * p[i];
    p[i] = c.keep * p[i] - c.size * direction;
  }
}

template <typename T>
static void momentum(T *__restrict p, const T *__restrict g, T *__restrict m, Numbers<T> c,
                     std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    const T direction = c.factor * g[i] + c.l2 * p[i];
    m[i] = c.beta1 * m[i] + c.rest1 * direction;
    p[i] = c.keep * p[i] - c.size * m[i];
  }
}

// A multiplication and an addition rounded once where the instruction set has that. Written out
// because a step and a later count of the same moments must round alike: left to itself the
// compiler fuses as it likes.
static inline float fused(float a, float b, float c) {
#if defined(__FMA__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

static inline double fused(double a, double b, double c) {
#if defined(__FMA__)
  return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}

// Squared rates are summed in interleaved lanes, a fixed order that vectors can follow.
constexpr int lanes = 32;

template <typename T>
static inline T rate(T second, T correction, T eps) {
  return fused(std::sqrt(second), correction, eps);
}

// 1/a^2 + 1/b^2 with one division, 1/a = b/(ab) and 1/b = a/(ab): divisions are the slow part.
template <typename T>
static inline T two_squares(T a, T b) {
  const T both = T(1) / (a * b);
  const T x = b * both, y = a * both;
  return fused(x, x, y * y);
}

template <typename T>
static inline double total(const T (&sums)[lanes]) {
  double sum = 0;
  for (int k = 0; k < lanes; ++k) sum += sums[k];
  return sum;
}

template <typename T>
static double squared_rates(const T *__restrict v, T correction, T eps, std::int64_t n) {
  T sums[lanes] = {};
  std::int64_t i = 0;
  for (; i + 2 * lanes <= n; i += 2 * lanes)
    for (int k = 0; k < lanes; ++k)
      sums[k] += two_squares(rate(v[i + k], correction, eps),
                             rate(v[i + lanes + k], correction, eps));
  for (int k = 0; i < n; ++i, k = (k + 1) % lanes) {
    const T x = T(1) / rate(v[i], correction, eps);
    sums[k] += x * x;
  }
  return total(sums);
}

// How a delayed step treats the parameter: not at all, without weight decay and scaling of the
// gradient (three multiplications fewer, which two threads on one core feel), or with all of it.
enum class Move { none, plainly, fully };

// One element; leaves v for the caller, who may still need the old one.
template <typename T, Move move>
static inline T delayed_one(T &p, T g, T &m, T v, T inverse, Numbers<T> c) {
  const T direction = move == Move::plainly ? g : c.factor * g + c.l2 * p;
  m = c.beta1 * m + c.rest1 * direction;
  if (move == Move::plainly) p -= c.size * m * inverse;
  if (move == Move::fully) p = c.keep * p - c.size * m * inverse;
  return c.beta2 * v + c.rest2 * direction * direction;
}

template <typename T, Move move, StepRates rates>
static double delayed(T *__restrict p, const T *__restrict g, T *__restrict m, T *__restrict v,
                      Numbers<T> c, std::int64_t n) {
  T sums[lanes] = {};
  std::int64_t i = 0;
  for (; i + 2 * lanes <= n; i += 2 * lanes)
    for (int k = 0; k < lanes; ++k) {
      const std::int64_t a = i + k, b = a + lanes;
      const T old_a = v[a], old_b = v[b];
      const T one = std::sqrt(old_a) * c.previous + c.eps;
      const T two = std::sqrt(old_b) * c.previous + c.eps;
      const T both = T(1) / (one * two);
      const T new_a = delayed_one<T, move>(p[a], g[a], m[a], old_a, two * both, c);
      const T new_b = delayed_one<T, move>(p[b], g[b], m[b], old_b, one * both, c);
      if (rates == StepRates::before)
        sums[k] += two_squares(rate(old_a, c.following, c.eps), rate(old_b, c.following, c.eps));
      if (rates == StepRates::after)
        sums[k] += two_squares(rate(new_a, c.following, c.eps), rate(new_b, c.following, c.eps));
      v[a] = new_a;
      v[b] = new_b;
    }
  for (int k = 0; i < n; ++i, k = (k + 1) % lanes) {
    const T old = v[i];
    const T inverse = T(1) / (std::sqrt(old) * c.previous + c.eps);
    v[i] = delayed_one<T, move>(p[i], g[i], m[i], old, inverse, c);
    if (rates == StepRates::none) continue;
    const T x = T(1) / rate(rates == StepRates::before ? old : v[i], c.following, c.eps);
    sums[k] += x * x;
  }
  return total(sums);
}

template <typename T>
static void bounded(T *__restrict p, const T *__restrict g, T *__restrict m, T *__restrict v,
                    T *__restrict peak, Numbers<T> c, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    const T direction = c.factor * g[i] + c.l2 * p[i];
    m[i] = c.beta1 * m[i] + c.rest1 * direction;
    v[i] = c.beta2 * v[i] + c.rest2 * direction * direction;
    T scale = v[i];
    if (peak) {
      scale = peak[i] > scale ? peak[i] : scale;
      peak[i] = scale;
    }
    T size = c.size / (std::sqrt(scale) + c.eps);
    size = size < c.lower ? c.lower : size;
    size = size > c.upper ? c.upper : size;
    p[i] = c.keep * p[i] - size * m[i];
  }
}

template <typename T, StepRates rates>
static double delayed(T *p, const T *g, T *m, T *v, Numbers<T> c, std::int64_t n) {
  if (c.size == 0) return delayed<T, Move::none, rates>(p, g, m, v, c, n);
  if (c.factor == 1 && c.l2 == 0 && c.keep == 1)
    return delayed<T, Move::plainly, rates>(p, g, m, v, c, n);
  return delayed<T, Move::fully, rates>(p, g, m, v, c, n);
}

template <typename T>
static double step(StepRule rule, StepRates rates, T *p, const T *g, T *m, T *v, T *peak,
                   const StepNumbers &numbers, std::int64_t n) {
  const Numbers<T> c(numbers);
  if (rule == StepRule::delayed) {
    if (rates == StepRates::before) return delayed<T, StepRates::before>(p, g, m, v, c, n);
    if (rates == StepRates::after) return delayed<T, StepRates::after>(p, g, m, v, c, n);
    return delayed<T, StepRates::none>(p, g, m, v, c, n);
  }
  if (rule == StepRule::bounded && peak) bounded<T>(p, g, m, v, peak, c, n);
  else if (rule == StepRule::bounded) bounded<T>(p, g, m, v, nullptr, c, n);
  else if (m) momentum<T>(p, g, m, c, n);
  else plain<T>(p, g, c, n);
  return 0;
}

struct Bfloat16 { std::uint16_t bits; };

static inline float widen(Bfloat16 value) {
  const std::uint32_t bits = std::uint32_t(value.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

static inline void narrow(float wide, Bfloat16 *value) {
  std::uint32_t bits;
  std::memcpy(&bits, &wide, sizeof bits);
  // To nearest, ties to even; a NaN stays one.
  const std::uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  value->bits = std::uint16_t((wide == wide ? rounded : 0x7fc00000u) >> 16);
}

#if defined(__FLT16_MANT_DIG__)
using Float16 = _Float16;
static inline float widen(Float16 value) { return float(value); }
static inline void narrow(float wide, Float16 *value) { *value = Float16(wide); }
#endif

// Works in float32 on a copy that stays in the cache and rounds each parameter once.
template <typename H>
static double step_narrow(StepRule rule, StepRates rates, H *p, const H *g, float *m, float *v,
                          float *peak, const StepNumbers &numbers, std::int64_t n) {
  float parameter[stretch], gradient[stretch];
  for (std::int64_t i = 0; i < n; ++i) parameter[i] = widen(p[i]);
  for (std::int64_t i = 0; i < n; ++i) gradient[i] = widen(g[i]);
  const double sum = step<float>(rule, rates, parameter, gradient, m, v, peak, numbers, n);
  // A parameter that does not move keeps its bits, NaN payloads included.
  if (rule != StepRule::delayed || numbers.size != 0)
    for (std::int64_t i = 0; i < n; ++i) narrow(parameter[i], &p[i]);
  return sum;
}

template <typename P, typename M>
static double walk(StepRule rule, StepRates rates, const StepTensor &tensor,
                   const StepNumbers &numbers, std::int64_t begin, std::int64_t end) {
  double sum = 0;
  for (std::int64_t i = begin; i < end; i += stretch) {
    const std::int64_t n = end - i < stretch ? end - i : stretch;
    const auto moment = [i](void *start) { return start ? static_cast<M *>(start) + i : nullptr; };
    P *const p = static_cast<P *>(tensor.parameter) + i;
    const P *const g = static_cast<const P *>(tensor.gradient) + i;
    M *const m = moment(tensor.first), *const v = moment(tensor.second);
    M *const peak = moment(tensor.peak);
    if constexpr (std::is_same_v<P, M>) sum += step<M>(rule, rates, p, g, m, v, peak, numbers, n);
    else sum += step_narrow<P>(rule, rates, p, g, m, v, peak, numbers, n);
  }
  return sum;
}

double optim_step(StepRule rule, StepType type, StepRates rates, const StepTensor &tensor,
                  const StepNumbers &numbers, std::int64_t begin, std::int64_t end) {
  switch (type) {
    case StepType::float64: return walk<double, double>(rule, rates, tensor, numbers, begin, end);
    case StepType::bfloat16: return walk<Bfloat16, float>(rule, rates, tensor, numbers, begin, end);
#if defined(__FLT16_MANT_DIG__)
    case StepType::float16: return walk<Float16, float>(rule, rates, tensor, numbers, begin, end);
#endif
    default: return walk<float, float>(rule, rates, tensor, numbers, begin, end);
  }
}

template <typename T>
static double rate_sum(const void *second, double correction, double eps, std::int64_t begin,
                       std::int64_t end) {
  const T *const v = static_cast<const T *>(second);
  double sum = 0;
  for (std::int64_t i = begin; i < end; i += stretch)
    sum += squared_rates<T>(v + i, correction, eps, end - i < stretch ? end - i : stretch);
  return sum;
}

double optim_rate_sum(StepType type, const void *second, double correction, double eps,
                      std::int64_t begin, std::int64_t end) {
  return type == StepType::float64 ? rate_sum<double>(second, correction, eps, begin, end)
                                   : rate_sum<float>(second, correction, eps, begin, end);
}

}  // namespace LATEWOOD_ISA
}  // namespace latewood
