// The innermost loops of products with positions as lanes: some vectors of positions by four outputs.
// The same sums in plain C++ and with the 256-bit instructions of AVX2.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "integer_network.hpp"

namespace latewood {
namespace LATEWOOD_ISA {
namespace {

constexpr std::int64_t lane_positions = 32;  // sums are kept for multiples of so many positions
constexpr std::int64_t lane_outputs = 4;

// Adds the sums of `count` positions, a multiple of 32, to those of four outputs, which lie `stride`
// apart. The operands of a step lie `step` bytes behind those of the step before.
struct LaneOperands {
  const std::uint8_t *columns;
  std::int64_t step;
};

#if defined(__AVX2__)

#define LATEWOOD_UNROLL _Pragma("GCC unroll 8")

inline void add_sums(std::int32_t *sums, __m256i numbers, __m128i shift) {
  __m256i *const target = reinterpret_cast<__m256i *>(sums);
  _mm256_store_si256(target,
                     _mm256_add_epi32(_mm256_load_si256(target), _mm256_sll_epi32(numbers, shift)));
}

// A shuffle looks 32 positions up; signed bytes add up until they may be full.
template <int M>
inline void lookup_lanes(const LaneSegment &segment, const LaneOperands &operands,
                         const std::uint8_t *weights, std::int32_t *sums, std::int64_t stride) {
  const __m256i zero = _mm256_setzero_si256();
  const __m128i shift = _mm_cvtsi32_si128(segment.shift);
  constexpr int N = lane_outputs;
  __m256i narrow[M][N], wide[M][N][2];
  LATEWOOD_UNROLL for (int m = 0; m < M; ++m)
    LATEWOOD_UNROLL for (int n = 0; n < N; ++n)
      narrow[m][n] = wide[m][n][0] = wide[m][n][1] = zero;
  const std::uint8_t *columns = operands.columns;
  std::int64_t rooms = 256;  // of 127 at most in 16 bits
  const auto spill = [&]() __attribute__((always_inline)) {
    LATEWOOD_UNROLL for (int m = 0; m < M; ++m)
      LATEWOOD_UNROLL for (int n = 0; n < N; ++n) {
        std::int32_t *const target = sums + n * stride + 32 * m;
        const __m256i first = _mm256_unpacklo_epi16(wide[m][n][0], wide[m][n][1]);
        const __m256i second = _mm256_unpackhi_epi16(wide[m][n][0], wide[m][n][1]);
        add_sums(target, _mm256_cvtepi16_epi32(_mm256_castsi256_si128(first)), shift);
        add_sums(target + 8, _mm256_cvtepi16_epi32(_mm256_castsi256_si128(second)), shift);
        add_sums(target + 16, _mm256_cvtepi16_epi32(_mm256_extracti128_si256(first, 1)), shift);
        add_sums(target + 24, _mm256_cvtepi16_epi32(_mm256_extracti128_si256(second, 1)), shift);
        wide[m][n][0] = wide[m][n][1] = zero;
      }
  };
  for (std::int64_t left = segment.steps; left > 0;) {
    const std::int64_t steps = left < segment.narrow ? left : segment.narrow;
    for (std::int64_t i = 0; i < steps; ++i, columns += operands.step, weights += 16 * N) {
      __m256i index[M];
      LATEWOOD_UNROLL for (int m = 0; m < M; ++m) index[m] =
          _mm256_loadu_si256(reinterpret_cast<const __m256i *>(columns + 32 * m));
      LATEWOOD_UNROLL for (int n = 0; n < N; ++n) {
        const __m256i table = _mm256_broadcastsi128_si256(
            _mm_load_si128(reinterpret_cast<const __m128i *>(weights + 16 * n)));
        LATEWOOD_UNROLL for (int m = 0; m < M; ++m) narrow[m][n] =
            _mm256_add_epi8(narrow[m][n], _mm256_shuffle_epi8(table, index[m]));
      }
    }
    LATEWOOD_UNROLL for (int m = 0; m < M; ++m)
      LATEWOOD_UNROLL for (int n = 0; n < N; ++n) {
        const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(narrow[m][n], 8), 8);
        wide[m][n][0] = _mm256_add_epi16(wide[m][n][0], even);
        wide[m][n][1] = _mm256_add_epi16(wide[m][n][1], _mm256_srai_epi16(narrow[m][n], 8));
        narrow[m][n] = zero;
      }
    left -= steps;
    if (--rooms == 0) {
      spill();
      rooms = 256;
    }
  }
  spill();
}

// bytes: 16 positions a vector, pairs of products in 16 bits until they may be full; words: 8
// positions, pairs in 32 bits.
template <int M, bool Bytes>
inline void grid_lanes(const LaneSegment &segment, const LaneOperands &operands,
                       const std::uint8_t *weights, std::int32_t *sums, std::int64_t stride) {
  const __m256i zero = _mm256_setzero_si256();
  const __m128i shift = _mm_cvtsi32_si128(segment.shift);
  constexpr int N = lane_outputs;
  __m256i narrow[M][N];
  LATEWOOD_UNROLL for (int m = 0; m < M; ++m)
    LATEWOOD_UNROLL for (int n = 0; n < N; ++n) narrow[m][n] = zero;
  const std::uint8_t *columns = operands.columns;
  for (std::int64_t left = segment.steps; left > 0;) {
    const std::int64_t steps = left < segment.narrow ? left : segment.narrow;
    for (std::int64_t i = 0; i < steps; ++i, columns += operands.step, weights += 4 * N) {
      __m256i input[M];
      LATEWOOD_UNROLL for (int m = 0; m < M; ++m) input[m] =
          _mm256_loadu_si256(reinterpret_cast<const __m256i *>(columns + 32 * m));
      LATEWOOD_UNROLL for (int n = 0; n < N; ++n) {
        std::int32_t pair;
        std::memcpy(&pair, weights + 4 * n, 4);
        const __m256i weight = _mm256_set1_epi32(pair);
        LATEWOOD_UNROLL for (int m = 0; m < M; ++m) {
          if constexpr (Bytes)
            narrow[m][n] =
                _mm256_add_epi16(narrow[m][n], _mm256_maddubs_epi16(input[m], weight));
          else
            narrow[m][n] = _mm256_add_epi32(narrow[m][n], _mm256_madd_epi16(input[m], weight));
        }
      }
    }
    left -= steps;
    LATEWOOD_UNROLL for (int m = 0; m < M; ++m)
      LATEWOOD_UNROLL for (int n = 0; n < N; ++n) {
        std::int32_t *const target = sums + n * stride + (Bytes ? 16 : 8) * m;
        if constexpr (Bytes) {
          const __m256i full = narrow[m][n];
          add_sums(target, _mm256_cvtepi16_epi32(_mm256_castsi256_si128(full)), shift);
          add_sums(target + 8, _mm256_cvtepi16_epi32(_mm256_extracti128_si256(full, 1)), shift);
        } else {
          add_sums(target, narrow[m][n], shift);
        }
        narrow[m][n] = zero;
      }
  }
}

#undef LATEWOOD_UNROLL

inline void add_lanes(const LaneSegment &segment, const LaneOperands &operands,
                      const std::uint8_t *weights, std::int32_t *sums, std::int64_t stride,
                      std::int64_t count) {
  const std::int64_t in_vector = 32 / segment.position_bytes;
  for (std::int64_t p = 0; p < count;) {
    const bool pair = count - p >= 2 * in_vector;
    const LaneOperands from{operands.columns + p * segment.position_bytes, operands.step};
    std::int32_t *const to = sums + p;
    if (segment.method == LaneMethod::lookup) {
      if (pair) lookup_lanes<2>(segment, from, weights, to, stride);
      else lookup_lanes<1>(segment, from, weights, to, stride);
    } else if (segment.method == LaneMethod::bytes) {
      if (pair) grid_lanes<2, true>(segment, from, weights, to, stride);
      else grid_lanes<1, true>(segment, from, weights, to, stride);
    } else {
      if (pair) grid_lanes<2, false>(segment, from, weights, to, stride);
      else grid_lanes<1, false>(segment, from, weights, to, stride);
    }
    p += pair ? 2 * in_vector : in_vector;
  }
}

#else

inline void add_lanes(const LaneSegment &segment, const LaneOperands &operands,
                      const std::uint8_t *weights, std::int32_t *sums, std::int64_t stride,
                      std::int64_t count) {
  const bool lookup = segment.method == LaneMethod::lookup;
  const bool bytes = segment.method == LaneMethod::bytes;
  const std::uint8_t *columns = operands.columns;
  for (std::int64_t step = 0; step < segment.steps; ++step, columns += operands.step)
    for (int n = 0; n < lane_outputs; ++n, weights += lookup ? 16 : 4) {
      std::int32_t *const target = sums + n * stride;
      std::int8_t small[2];
      std::int16_t large[2];
      std::memcpy(small, weights, 2);
      std::memcpy(large, weights, 4);
      for (std::int64_t p = 0; p < count; ++p) {
        std::int32_t sum = 0;
        if (lookup) {
          if (columns[p] < 16) sum = reinterpret_cast<const std::int8_t *>(weights)[columns[p]];
        } else if (bytes) {
          sum = columns[2 * p] * small[0] + columns[2 * p + 1] * small[1];
        } else {
          std::int16_t input[2];
          std::memcpy(input, columns + 4 * p, 4);
          sum = input[0] * large[0] + input[1] * large[1];
        }
        target[p] += sum * (1 << segment.shift);
      }
    }
}

#endif

}  // namespace
}  // namespace LATEWOOD_ISA
}  // namespace latewood
