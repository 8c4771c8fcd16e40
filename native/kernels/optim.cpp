// Reads parameter, gradient and moments once and writes them once: 28 bytes an element in float32,
// with the sum of squared rates taken while the second moments are still in the cache.
#include <cmath>
#include <cstring>
#include <type_traits>

#include "optim_avx512.hpp"
#include "optim_numbers.hpp"

namespace latewood {
namespace LATEWOOD_ISA {

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
static inline T add_squared_rate(T second, T correction, T eps, T sum) {
  const T rate = T(1) / fused(std::sqrt(second), correction, eps);
  return fused(rate, rate, sum);
}

template <typename T>
static inline double total(const T (&sums)[lanes]) {
  double parts[8] = {};
  for (int k = 0; k < lanes; k += 8)
    for (int j = 0; j < 8; ++j) parts[j] += sums[k + j];
  return ((parts[0] + parts[1]) + (parts[2] + parts[3])) +
         ((parts[4] + parts[5]) + (parts[6] + parts[7]));
}

template <typename T>
static double squared_rates(const T *__restrict v, T correction, T eps, std::int64_t n) {
  T sums[lanes] = {};
  std::int64_t i = 0;
  for (; i + lanes <= n; i += lanes)
    for (int k = 0; k < lanes; ++k) sums[k] = add_squared_rate(v[i + k], correction, eps, sums[k]);
  for (int k = 0; i < n; ++i, ++k) sums[k] = add_squared_rate(v[i], correction, eps, sums[k]);
  return total(sums);
}

// One element; adds its squared rate to the sum.
template <typename T, Move move, StepRates rates>
static inline T delayed_one(T &p, T g, T &m, T &v, Numbers<T> c, T sum) {
  const T direction = move == Move::plainly ? g : c.factor * g + c.l2 * p;
  const T old = v;
  m = c.beta1 * m + c.rest1 * direction;
  v = c.beta2 * old + c.rest2 * direction * direction;
  const T update = c.size * m / (std::sqrt(old) * c.previous + c.eps);
  if (move == Move::plainly) p -= update;
  if (move == Move::fully) p = c.keep * p - update;
  if (rates == StepRates::none) return sum;
  return add_squared_rate(rates == StepRates::before ? old : v, c.following, c.eps, sum);
}

template <typename T, Move move, StepRates rates>
static double delayed(T *__restrict p, const T *__restrict g, T *__restrict m, T *__restrict v,
                      Numbers<T> c, std::int64_t n) {
  T sums[lanes] = {};
  std::int64_t i = 0;
  for (; i + lanes <= n; i += lanes)
    for (int k = 0; k < lanes; ++k)
      sums[k] =
          delayed_one<T, move, rates>(p[i + k], g[i + k], m[i + k], v[i + k], c, sums[k]);
  for (int k = 0; i < n; ++i, ++k)
    sums[k] = delayed_one<T, move, rates>(p[i], g[i], m[i], v[i], c, sums[k]);
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
#if defined(__AVX512F__)
    double sum = 0;
    if constexpr (std::is_same_v<T, float>)
      if (delayed_in_vectors(rates, p, g, m, v, c, n, &sum)) return sum;
#endif
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

// Which 16 bits of noise are an element's, so that other forms draw the same.
static inline std::uint32_t mixed(std::uint32_t x) {
  x = (x ^ (x >> 16)) * 0x21f0aaadu;
  x = (x ^ (x >> 15)) * 0x735a2d97u;
  return x ^ (x >> 15);
}

// Away from zero as often as the bits that do not fit are large; `first` is the index of *wide.
static void narrow_with_noise(const float *__restrict wide, Bfloat16 *__restrict narrowed,
                              std::uint32_t key, std::int64_t first, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    std::uint32_t bits;
    std::memcpy(&bits, &wide[i], sizeof bits);
    const std::uint32_t rounded = bits + (mixed(std::uint32_t(first + i) ^ key) & 0xffffu);
    narrowed[i].bits = std::uint16_t((wide[i] == wide[i] ? rounded : 0x7fc00000u) >> 16);
  }
}

#if defined(__FLT16_MANT_DIG__)
#if defined(__aarch64__)
using Float16 = __fp16;  // compilers had it there long before the other name
#else
using Float16 = _Float16;
#endif
static inline float widen(Float16 value) { return float(value); }
static inline void narrow(float wide, Float16 *value) { *value = Float16(wide); }
#endif

// Works in float32 on a copy that stays in the cache and rounds each parameter once.
template <typename H>
static double step_narrow(StepRule rule, StepRates rates, H *p, const H *g, float *m, float *v,
                          float *peak, const StepNumbers &numbers, std::int64_t n,
                          std::int64_t key, std::int64_t begin) {
  float parameter[stretch], gradient[stretch];
  for (std::int64_t i = 0; i < n; ++i) parameter[i] = widen(p[i]);
  for (std::int64_t i = 0; i < n; ++i) gradient[i] = widen(g[i]);
  const double sum = step<float>(rule, rates, parameter, gradient, m, v, peak, numbers, n);
  // A parameter that does not move keeps its bits, NaN payloads included.
  if (rule == StepRule::delayed && numbers.size == 0) return sum;
  if constexpr (std::is_same_v<H, Bfloat16>)
    if (key >= 0) {
      narrow_with_noise(parameter, p, std::uint32_t(key), begin, n);
      return sum;
    }
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
    else
      sum += step_narrow<P>(rule, rates, p, g, m, v, peak, numbers, n, tensor.key, i);
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
static double count(const T *v, T correction, T eps, std::int64_t n) {
#if defined(__AVX512F__)
  double sum = 0;
  if constexpr (std::is_same_v<T, float>)
    if (count_in_vectors(v, correction, eps, n, &sum)) return sum;
#endif
  return squared_rates<T>(v, correction, eps, n);
}

template <typename T>
static double rate_sum(const void *second, double correction, double eps, std::int64_t begin,
                       std::int64_t end) {
  const T *const v = static_cast<const T *>(second);
  double sum = 0;
  for (std::int64_t i = begin; i < end; i += stretch)
    sum += count<T>(v + i, correction, eps, end - i < stretch ? end - i : stretch);
  return sum;
}

double optim_rate_sum(StepType type, const void *second, double correction, double eps,
                      std::int64_t begin, std::int64_t end) {
  return type == StepType::float64 ? rate_sum<double>(second, correction, eps, begin, end)
                                   : rate_sum<float>(second, correction, eps, begin, end);
}

}  // namespace LATEWOOD_ISA
}  // namespace latewood
