// The delayed step in float32 with its vectors written out, for their reciprocals: a division costs
// as much as six multiplications, and an element asks for two beside two square roots.
#pragma once

#include <cfloat>

#include "optim_numbers.hpp"

#if defined(__AVX512F__)
#include <immintrin.h>

namespace latewood {
namespace LATEWOOD_ISA {

constexpr int width = 16;
// Squared rates are summed in this many vectors side by side.
constexpr int columns = 4;

// 1/d to one unit in the last place: 14 bits from a table, 28 after one of Newton's steps. For d
// from FLT_MIN on; an infinite d counts as the largest number, a NaN stays one.
static inline __m512 reciprocal(__m512 d) {
  const __m512 finite = _mm512_min_ps(_mm512_set1_ps(FLT_MAX), d);
  const __m512 rough = _mm512_rcp14_ps(finite);
  return _mm512_fmadd_ps(rough, _mm512_fnmadd_ps(finite, rough, _mm512_set1_ps(1)), rough);
}

static inline __m512 rate(__m512 second, __m512 correction, __m512 eps) {
  return reciprocal(_mm512_fmadd_ps(_mm512_sqrt_ps(second), correction, eps));
}

// The numbers of a delayed step, each in all lanes.
struct Spread {
  __m512 size, beta1, rest1, beta2, rest2, eps, keep, l2, factor, previous, following;

  explicit Spread(const Numbers<float> &n)
      : size(_mm512_set1_ps(n.size)), beta1(_mm512_set1_ps(n.beta1)),
        rest1(_mm512_set1_ps(n.rest1)), beta2(_mm512_set1_ps(n.beta2)),
        rest2(_mm512_set1_ps(n.rest2)), eps(_mm512_set1_ps(n.eps)), keep(_mm512_set1_ps(n.keep)),
        l2(_mm512_set1_ps(n.l2)), factor(_mm512_set1_ps(n.factor)),
        previous(_mm512_set1_ps(n.previous)), following(_mm512_set1_ps(n.following)) {}
};

// The elements of one vector: all of them, or at the end of a stretch those of a mask.
struct All {
  __m512 load(const float *x) const { return _mm512_loadu_ps(x); }
  void store(float *x, __m512 value) const { _mm512_storeu_ps(x, value); }
  __m512 add_square(__m512 x, __m512 sum) const { return _mm512_fmadd_ps(x, x, sum); }
};

struct Some {
  __mmask16 inside;
  explicit Some(std::int64_t n) : inside(__mmask16((1u << n) - 1u)) {}
  __m512 load(const float *x) const { return _mm512_maskz_loadu_ps(inside, x); }
  void store(float *x, __m512 value) const { _mm512_mask_storeu_ps(x, inside, value); }
  __m512 add_square(__m512 x, __m512 sum) const {
    return _mm512_mask3_fmadd_ps(x, x, sum, inside);
  }
};

static inline double total(const __m512 (&sums)[columns]) {
  __m512d sum = _mm512_setzero_pd();
  for (const __m512 &column : sums) {
    sum += _mm512_cvtps_pd(_mm512_castps512_ps256(column));
    sum += _mm512_cvtps_pd(_mm512_extractf32x8_ps(column, 1));
  }
  return _mm512_reduce_add_pd(sum);
}

// Adds up what work(offset, elements, sum) makes of `sum`, over the vectors of n elements. Work has
// to capture by value: through references the compiler fears that a store changes a number.
template <typename Work>
static inline double over_vectors(std::int64_t n, const Work work) {
  __m512 sums[columns] = {};
  std::int64_t i = 0;
  for (; i + columns * width <= n; i += columns * width)
#pragma GCC unroll 4
    for (int k = 0; k < columns; ++k) sums[k] = work(i + k * width, All{}, sums[k]);
#pragma GCC unroll 4
  for (int k = 0; k < columns; ++k, i += width)
    if (n - i >= width) sums[k] = work(i, All{}, sums[k]);
    else if (n > i) sums[k] = work(i, Some(n - i), sums[k]);
  return total(sums);
}

static double squared_rates(const float *v, float correction, float eps, std::int64_t n) {
  const __m512 c = _mm512_set1_ps(correction), e = _mm512_set1_ps(eps);
  return over_vectors(n, [=](std::int64_t i, auto elements, __m512 sum) {
    return elements.add_square(rate(elements.load(v + i), c, e), sum);
  });
}

template <Move move, StepRates rates>
static double delayed(float *__restrict p, const float *__restrict g, float *__restrict m,
                      float *__restrict v, const Numbers<float> numbers, std::int64_t n) {
  const Spread c(numbers);
  return over_vectors(n, [=](std::int64_t i, auto elements, __m512 sum) {
    const __m512 parameter = elements.load(p + i), old = elements.load(v + i);
    __m512 direction = elements.load(g + i);
    if (move != Move::plainly) direction = c.factor * direction + c.l2 * parameter;
    const __m512 first = c.beta1 * elements.load(m + i) + c.rest1 * direction;
    elements.store(m + i, first);
    if (move != Move::none) {
      const __m512 update = c.size * first * rate(old, c.previous, c.eps);
      const __m512 kept = move == Move::fully ? c.keep * parameter : parameter;
      elements.store(p + i, kept - update);
    }
    const __m512 second = c.beta2 * old + c.rest2 * direction * direction;
    elements.store(v + i, second);
    if (rates == StepRates::none) return sum;
    const __m512 counted = rates == StepRates::before ? old : second;
    return elements.add_square(rate(counted, c.following, c.eps), sum);
  });
}

template <StepRates rates>
static double delayed(float *p, const float *g, float *m, float *v, const Numbers<float> &c,
                      std::int64_t n) {
  if (c.size == 0) return delayed<Move::none, rates>(p, g, m, v, c, n);
  if (c.factor == 1 && c.l2 == 0 && c.keep == 1)
    return delayed<Move::plainly, rates>(p, g, m, v, c, n);
  return delayed<Move::fully, rates>(p, g, m, v, c, n);
}

// Whether these loops can do the step; if so they have done it.
static bool delayed_in_vectors(StepRates rates, float *p, const float *g, float *m, float *v,
                               const Numbers<float> &c, std::int64_t n, double *sum) {
  if (c.eps < FLT_MIN) return false;
  if (rates == StepRates::before) *sum = delayed<StepRates::before>(p, g, m, v, c, n);
  else if (rates == StepRates::after) *sum = delayed<StepRates::after>(p, g, m, v, c, n);
  else *sum = delayed<StepRates::none>(p, g, m, v, c, n);
  return true;
}

static bool count_in_vectors(const float *v, float correction, float eps, std::int64_t n,
                             double *sum) {
  if (eps < FLT_MIN) return false;
  *sum = squared_rates(v, correction, eps, n);
  return true;
}

}  // namespace LATEWOOD_ISA
}  // namespace latewood
#endif
