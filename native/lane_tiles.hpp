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

// What one call works on: `count` positions, a multiple of 32, by four outputs. The operands of a
// step lie at its offset in the columns, those of the outputs in rows of sums `stride` apart.
struct LaneTile {
  const std::uint8_t *columns;
  const std::int32_t *offsets;
  const std::uint8_t *weights;
  std::int32_t *sums;
  std::int64_t stride, count;
  const std::int32_t *constants;  // what the sums start from; null: from what they are
};

constexpr int block = 32;  // positions whose sums of numbers stay in registers

#if defined(__AVX2__)

#define LATEWOOD_UNROLL _Pragma("GCC unroll 8")

// In place: compilers otherwise move every accumulator once a step.
inline void add_8(__m256i &sum, __m256i value) { asm("vpaddb %1,%0,%0" : "+x"(sum) : "x"(value)); }
inline void add_16(__m256i &sum, __m256i value) { asm("vpaddw %1,%0,%0" : "+x"(sum) : "x"(value)); }
inline void add_32(__m256i &sum, __m256i value) { asm("vpaddd %1,%0,%0" : "+x"(sum) : "x"(value)); }

// Adds to eight sums of an output, or starts them.
struct SumWriter {
  __m128i shift;
  const std::int32_t *constants;
  void add(std::int32_t *sums, int n, __m256i numbers) const {
    __m256i *const target = reinterpret_cast<__m256i *>(sums);
    const __m256i before =
        constants ? _mm256_set1_epi32(constants[n]) : _mm256_load_si256(target);
    _mm256_store_si256(target, _mm256_add_epi32(before, _mm256_sll_epi32(numbers, shift)));
  }
};

// A shuffle looks 32 positions up; signed bytes add up until they may be full.
template <int M>
inline void lookup_lanes(const LaneSegment &segment, const LaneTile &tile) {
  const __m256i zero = _mm256_setzero_si256();
  SumWriter writer{_mm_cvtsi32_si128(segment.shift), tile.constants};
  constexpr int N = lane_outputs;
  __m256i narrow[M][N], wide[M][N][2];
  LATEWOOD_UNROLL for (int m = 0; m < M; ++m)
    LATEWOOD_UNROLL for (int n = 0; n < N; ++n)
      narrow[m][n] = wide[m][n][0] = wide[m][n][1] = zero;
  const std::uint8_t *weights = tile.weights;
  std::int64_t rooms = 256;  // of 127 at most in 16 bits
  const auto spill = [&]() __attribute__((always_inline)) {
    LATEWOOD_UNROLL for (int m = 0; m < M; ++m)
      LATEWOOD_UNROLL for (int n = 0; n < N; ++n) {
        std::int32_t *const target = tile.sums + n * tile.stride + 32 * m;
        const __m256i first = _mm256_unpacklo_epi16(wide[m][n][0], wide[m][n][1]);
        const __m256i second = _mm256_unpackhi_epi16(wide[m][n][0], wide[m][n][1]);
        writer.add(target, n, _mm256_cvtepi16_epi32(_mm256_castsi256_si128(first)));
        writer.add(target + 8, n, _mm256_cvtepi16_epi32(_mm256_castsi256_si128(second)));
        writer.add(target + 16, n, _mm256_cvtepi16_epi32(_mm256_extracti128_si256(first, 1)));
        writer.add(target + 24, n, _mm256_cvtepi16_epi32(_mm256_extracti128_si256(second, 1)));
        wide[m][n][0] = wide[m][n][1] = zero;
      }
    writer.constants = nullptr;
  };
  for (std::int64_t step = 0; step < segment.steps;) {
    const std::int64_t end =
        step + segment.narrow < segment.steps ? step + segment.narrow : segment.steps;
    for (; step < end; ++step, weights += 16 * N) {
      const std::uint8_t *const columns = tile.columns + tile.offsets[step];
      __m256i index[M];
      LATEWOOD_UNROLL for (int m = 0; m < M; ++m) index[m] =
          _mm256_loadu_si256(reinterpret_cast<const __m256i *>(columns + 32 * m));
      LATEWOOD_UNROLL for (int n = 0; n < N; ++n) {
        const __m256i table = _mm256_broadcastsi128_si256(
            _mm_load_si128(reinterpret_cast<const __m128i *>(weights + 16 * n)));
        LATEWOOD_UNROLL for (int m = 0; m < M; ++m)
          add_8(narrow[m][n], _mm256_shuffle_epi8(table, index[m]));
      }
    }
    LATEWOOD_UNROLL for (int m = 0; m < M; ++m)
      LATEWOOD_UNROLL for (int n = 0; n < N; ++n) {
        const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(narrow[m][n], 8), 8);
        wide[m][n][0] = _mm256_add_epi16(wide[m][n][0], even);
        wide[m][n][1] = _mm256_add_epi16(wide[m][n][1], _mm256_srai_epi16(narrow[m][n], 8));
        narrow[m][n] = zero;
      }
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
inline void grid_lanes(const LaneSegment &segment, const LaneTile &tile) {
  const __m256i zero = _mm256_setzero_si256();
  SumWriter writer{_mm_cvtsi32_si128(segment.shift), tile.constants};
  constexpr int N = lane_outputs;
  __m256i narrow[M][N];
  LATEWOOD_UNROLL for (int m = 0; m < M; ++m)
    LATEWOOD_UNROLL for (int n = 0; n < N; ++n) narrow[m][n] = zero;
  const std::uint8_t *weights = tile.weights;
  for (std::int64_t step = 0; step < segment.steps;) {
    const std::int64_t end =
        step + segment.narrow < segment.steps ? step + segment.narrow : segment.steps;
    for (; step < end; ++step, weights += 4 * N) {
      const std::uint8_t *const columns = tile.columns + tile.offsets[step];
      __m256i input[M];
      LATEWOOD_UNROLL for (int m = 0; m < M; ++m) input[m] =
          _mm256_loadu_si256(reinterpret_cast<const __m256i *>(columns + 32 * m));
      LATEWOOD_UNROLL for (int n = 0; n < N; ++n) {
        std::int32_t pair;
        std::memcpy(&pair, weights + 4 * n, 4);
        const __m256i weight = _mm256_set1_epi32(pair);
        LATEWOOD_UNROLL for (int m = 0; m < M; ++m) {
          if constexpr (Bytes) add_16(narrow[m][n], _mm256_maddubs_epi16(input[m], weight));
          else add_32(narrow[m][n], _mm256_madd_epi16(input[m], weight));
        }
      }
    }
    LATEWOOD_UNROLL for (int m = 0; m < M; ++m)
      LATEWOOD_UNROLL for (int n = 0; n < N; ++n) {
        std::int32_t *const target = tile.sums + n * tile.stride + (Bytes ? 16 : 8) * m;
        const __m256i full = narrow[m][n];
        if constexpr (Bytes) {
          writer.add(target, n, _mm256_cvtepi16_epi32(_mm256_castsi256_si128(full)));
          writer.add(target + 8, n, _mm256_cvtepi16_epi32(_mm256_extracti128_si256(full, 1)));
        } else {
          writer.add(target, n, full);
        }
        narrow[m][n] = zero;
      }
    writer.constants = nullptr;
  }
}

// Two outputs at 32 positions, whose inputs lie one after the other. Every product and every sum is
// rounded: no fused operations.
inline void add_products(const float *const *taps, const float *const *weights, std::int64_t count,
                         float (*sums)[block]) {
  __m256 total[2][block / 8];
  LATEWOOD_UNROLL for (int n = 0; n < 2; ++n)
    LATEWOOD_UNROLL for (int i = 0; i < block / 8; ++i) total[n][i] = _mm256_setzero_ps();
  for (std::int64_t t = 0; t < count; ++t) {
    const float *const from = taps[t];
    const __m256 first = _mm256_broadcast_ss(weights[0] + t);
    const __m256 second = _mm256_broadcast_ss(weights[1] + t);
    LATEWOOD_UNROLL for (int i = 0; i < block / 8; ++i) {
      const __m256 numbers = _mm256_loadu_ps(from + 8 * i);
      total[0][i] = _mm256_add_ps(total[0][i], _mm256_mul_ps(numbers, first));
      total[1][i] = _mm256_add_ps(total[1][i], _mm256_mul_ps(numbers, second));
    }
  }
  LATEWOOD_UNROLL for (int n = 0; n < 2; ++n)
    LATEWOOD_UNROLL for (int i = 0; i < block / 8; ++i)
      _mm256_storeu_ps(sums[n] + 8 * i, total[n][i]);
}

#undef LATEWOOD_UNROLL

template <int M>
inline void add_vectors(const LaneSegment &segment, const LaneTile &tile) {
  if (segment.method == LaneMethod::lookup) lookup_lanes<M>(segment, tile);
  else if (segment.method == LaneMethod::bytes) grid_lanes<M, true>(segment, tile);
  else grid_lanes<M, false>(segment, tile);
}

inline void add_lanes(const LaneSegment &segment, LaneTile tile) {
  const std::int64_t in_vector = 32 / segment.position_bytes;
  while (tile.count > 0) {
    const bool pair = tile.count >= 2 * in_vector;
    if (pair) add_vectors<2>(segment, tile);
    else add_vectors<1>(segment, tile);
    const std::int64_t done = pair ? 2 * in_vector : in_vector;
    tile.count -= done;
    tile.sums += done;
    tile.columns += done * segment.position_bytes;
  }
}

#else

inline void add_products(const float *const *taps, const float *const *weights, std::int64_t count,
                         float (*sums)[block]) {
  for (int n = 0; n < 2; ++n)
    for (int i = 0; i < block; ++i) sums[n][i] = 0;
  for (int n = 0; n < 2; ++n)
    for (std::int64_t t = 0; t < count; ++t)
      for (int i = 0; i < block; ++i) sums[n][i] = sums[n][i] + taps[t][i] * weights[n][t];
}

inline void add_lanes(const LaneSegment &segment, LaneTile tile) {
  const bool lookup = segment.method == LaneMethod::lookup;
  const bool bytes = segment.method == LaneMethod::bytes;
  if (tile.constants)
    for (int n = 0; n < lane_outputs; ++n)
      for (std::int64_t p = 0; p < tile.count; ++p) tile.sums[n * tile.stride + p] = tile.constants[n];
  for (std::int64_t step = 0; step < segment.steps; ++step) {
    const std::uint8_t *const columns = tile.columns + tile.offsets[step];
    for (int n = 0; n < lane_outputs; ++n, tile.weights += lookup ? 16 : 4) {
      std::int32_t *const target = tile.sums + n * tile.stride;
      std::int8_t small[2];
      std::int16_t large[2];
      std::memcpy(small, tile.weights, 2);
      std::memcpy(large, tile.weights, 4);
      for (std::int64_t p = 0; p < tile.count; ++p) {
        std::int32_t sum = 0;
        if (lookup) {
          if (columns[p] < 16) sum = reinterpret_cast<const std::int8_t *>(tile.weights)[columns[p]];
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
}

#endif

}  // namespace
}  // namespace LATEWOOD_ISA
}  // namespace latewood
