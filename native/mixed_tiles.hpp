// The innermost loops of mixed products: some positions by one or two panels of outputs. The same
// sums in plain C++ and with the 256-bit instructions of AVX2.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "mixed_products.hpp"

namespace latewood {
namespace LATEWOOD_ISA {
namespace {

constexpr std::int64_t block_outputs = 64;  // outputs for which sums are kept at a time

struct TileInputs {
  const std::uint8_t *const *positions;
  const std::int64_t *taps;  // from the operands of a position to those at each tap
  std::int64_t count;        // of taps
};

#if defined(__AVX2__)

#define LATEWOOD_UNROLL _Pragma("GCC unroll 8")

// A shuffle looks 32 indices up in the table of one position; bytes add up until they may be full.
template <int M, int N, int Planes, int Shift>
inline void lookup_tile(const ProductSegment &segment, const TileInputs &inputs,
                        const std::uint8_t *weights, std::uint32_t *sums) {
  const __m256i zero = _mm256_setzero_si256(), low = _mm256_set1_epi16(0xff);
  const __m256i factor = _mm256_set1_epi32(segment.factor);
  __m256i narrow[M][N][Planes], wide[M][N][2];
  LATEWOOD_UNROLL for (int r = 0; r < M; ++r)
    LATEWOOD_UNROLL for (int n = 0; n < N; ++n) {
      LATEWOOD_UNROLL for (int p = 0; p < Planes; ++p) narrow[r][n][p] = zero;
      wide[r][n][0] = wide[r][n][1] = zero;
    }
  const auto widen = [&]() __attribute__((always_inline)) {
    LATEWOOD_UNROLL for (int r = 0; r < M; ++r)
      LATEWOOD_UNROLL for (int n = 0; n < N; ++n)
        LATEWOOD_UNROLL for (int p = 0; p < Planes; ++p) {
          const int shift = p ? Shift : 0;
          const __m256i even = _mm256_and_si256(narrow[r][n][p], low);
          const __m256i odd = _mm256_srli_epi16(narrow[r][n][p], 8);
          wide[r][n][0] = _mm256_add_epi16(wide[r][n][0], _mm256_slli_epi16(even, shift));
          wide[r][n][1] = _mm256_add_epi16(wide[r][n][1], _mm256_slli_epi16(odd, shift));
          narrow[r][n][p] = zero;
        }
  };
  // Even bytes hold the first 16 outputs of a panel, odd bytes the others.
  const auto spill = [&]() {
    for (int r = 0; r < M; ++r)
      for (int n = 0; n < N; ++n)
        for (int half = 0; half < 2; ++half) {
          __m256i *const target =
              reinterpret_cast<__m256i *>(sums + r * block_outputs + 32 * n + 16 * half);
          const __m256i first =
              _mm256_cvtepu16_epi32(_mm256_castsi256_si128(wide[r][n][half]));
          const __m256i second =
              _mm256_cvtepu16_epi32(_mm256_extracti128_si256(wide[r][n][half], 1));
          _mm256_store_si256(target, _mm256_sub_epi32(_mm256_load_si256(target),
                                                      _mm256_mullo_epi32(first, factor)));
          _mm256_store_si256(target + 1, _mm256_sub_epi32(_mm256_load_si256(target + 1),
                                                          _mm256_mullo_epi32(second, factor)));
          wide[r][n][half] = zero;
        }
  };
  std::int64_t room = segment.narrow, rooms = segment.wide;
  for (std::int64_t t = 0; t < inputs.count; ++t) {
    const std::uint8_t *tables[M];
    LATEWOOD_UNROLL for (int r = 0; r < M; ++r)
      tables[r] = inputs.positions[r] + inputs.taps[t] + segment.where;
    for (std::int64_t left = segment.groups; left > 0;) {
      const std::int64_t steps = left < room ? left : room;
      for (std::int64_t i = 0; i < steps; ++i, weights += 32 * N * Planes) {
        __m256i signs[N][Planes];
        LATEWOOD_UNROLL for (int n = 0; n < N; ++n)
          LATEWOOD_UNROLL for (int p = 0; p < Planes; ++p) signs[n][p] = _mm256_load_si256(
              reinterpret_cast<const __m256i *>(weights + 32 * (n * Planes + p)));
        LATEWOOD_UNROLL for (int r = 0; r < M; ++r) {
          const __m256i table = _mm256_broadcastsi128_si256(
              _mm_loadu_si128(reinterpret_cast<const __m128i *>(tables[r] + 16 * i)));
          LATEWOOD_UNROLL for (int n = 0; n < N; ++n)
            LATEWOOD_UNROLL for (int p = 0; p < Planes; ++p) narrow[r][n][p] =
                _mm256_add_epi8(narrow[r][n][p], _mm256_shuffle_epi8(table, signs[n][p]));
        }
      }
      LATEWOOD_UNROLL for (int r = 0; r < M; ++r) tables[r] += 16 * steps;
      left -= steps;
      room -= steps;
      if (room == 0) {
        widen();
        room = segment.narrow;
        if (--rooms == 0) {
          spill();
          rooms = segment.wide;
        }
      }
    }
  }
  widen();
  spill();
}

// bytes: pairs of products in 16 bits until they may be full. words: pairs in 32 bits.
template <int M, int N, bool Bytes>
inline void grid_tile(const ProductSegment &segment, const TileInputs &inputs,
                      const std::uint8_t *weights, std::uint32_t *sums) {
  const __m256i zero = _mm256_setzero_si256(), ones = _mm256_set1_epi16(1);
  __m256i narrow[M][N], wide[M][N];
  LATEWOOD_UNROLL for (int r = 0; r < M; ++r)
    LATEWOOD_UNROLL for (int n = 0; n < N; ++n) narrow[r][n] = wide[r][n] = zero;
  const auto widen = [&]() __attribute__((always_inline)) {
    LATEWOOD_UNROLL for (int r = 0; r < M; ++r)
      LATEWOOD_UNROLL for (int n = 0; n < N; ++n) {
        wide[r][n] = _mm256_add_epi32(
            wide[r][n], Bytes ? _mm256_madd_epi16(narrow[r][n], ones) : narrow[r][n]);
        narrow[r][n] = zero;
      }
  };
  std::int64_t room = segment.narrow;
  for (std::int64_t t = 0; t < inputs.count; ++t) {
    const std::uint8_t *values[M];
    LATEWOOD_UNROLL for (int r = 0; r < M; ++r)
      values[r] = inputs.positions[r] + inputs.taps[t] + segment.where;
    for (std::int64_t left = segment.groups; left > 0;) {
      const std::int64_t steps = left < room ? left : room;
      for (std::int64_t i = 0; i < steps; ++i, weights += 32 * N) {
        __m256i panel[N];
        LATEWOOD_UNROLL for (int n = 0; n < N; ++n) panel[n] =
            _mm256_load_si256(reinterpret_cast<const __m256i *>(weights + 32 * n));
        LATEWOOD_UNROLL for (int r = 0; r < M; ++r) {
          std::int32_t group;
          std::memcpy(&group, values[r] + 4 * i, 4);
          const __m256i value = _mm256_set1_epi32(group);
          LATEWOOD_UNROLL for (int n = 0; n < N; ++n) {
            if constexpr (Bytes)
              narrow[r][n] =
                  _mm256_add_epi16(narrow[r][n], _mm256_maddubs_epi16(panel[n], value));
            else
              narrow[r][n] = _mm256_add_epi32(narrow[r][n], _mm256_madd_epi16(panel[n], value));
          }
        }
      }
      LATEWOOD_UNROLL for (int r = 0; r < M; ++r) values[r] += 4 * steps;
      left -= steps;
      room -= steps;
      if (room == 0) {
        widen();
        room = segment.narrow;
      }
    }
  }
  widen();
  const __m256i factor = _mm256_set1_epi32(segment.factor);
  for (int r = 0; r < M; ++r)
    for (int n = 0; n < N; ++n) {
      __m256i *const target = reinterpret_cast<__m256i *>(sums + r * block_outputs + 8 * n);
      _mm256_store_si256(target, _mm256_add_epi32(_mm256_load_si256(target),
                                                  _mm256_mullo_epi32(wide[r][n], factor)));
    }
}

#undef LATEWOOD_UNROLL

#else

template <int M, int N, int Planes, int Shift>
inline void lookup_tile(const ProductSegment &segment, const TileInputs &inputs,
                        const std::uint8_t *weights, std::uint32_t *sums) {
  for (int r = 0; r < M; ++r)
    for (int n = 0; n < N; ++n) {
      const std::uint8_t *signs = weights + 32 * Planes * n;
      std::uint32_t total[32] = {};
      for (std::int64_t t = 0; t < inputs.count; ++t) {
        const std::uint8_t *table = inputs.positions[r] + inputs.taps[t] + segment.where;
        for (std::int64_t i = 0; i < segment.groups; ++i, table += 16, signs += 32 * N * Planes)
          for (int p = 0; p < Planes; ++p)
            for (int k = 0; k < 32; ++k)
              total[k] += std::uint32_t(table[signs[32 * p + k]]) << (p ? Shift : 0);
      }
      std::uint32_t *const target = sums + r * block_outputs + 32 * n;
      for (int k = 0; k < 32; ++k)
        target[k / 2 + 16 * (k % 2)] -= std::uint32_t(segment.factor) * total[k];
    }
}

template <int M, int N, bool Bytes>
inline void grid_tile(const ProductSegment &segment, const TileInputs &inputs,
                      const std::uint8_t *weights, std::uint32_t *sums) {
  constexpr int group = Bytes ? 4 : 2;
  for (int r = 0; r < M; ++r)
    for (int n = 0; n < N; ++n) {
      const std::uint8_t *panel = weights + 32 * n;
      std::uint32_t total[8] = {};
      for (std::int64_t t = 0; t < inputs.count; ++t) {
        const std::uint8_t *const from = inputs.positions[r] + inputs.taps[t] + segment.where;
        for (std::int64_t i = 0; i < segment.groups; ++i, panel += 32 * N)
          for (int j = 0; j < 8; ++j)
            for (int k = 0; k < group; ++k) {
              if constexpr (Bytes) {
                total[j] += panel[4 * j + k] *
                            reinterpret_cast<const std::int8_t *>(from)[4 * i + k];
              } else {
                std::int16_t weight, value;
                std::memcpy(&weight, panel + 2 * (2 * j + k), 2);
                std::memcpy(&value, from + 2 * (2 * i + k), 2);
                total[j] += weight * value;
              }
            }
      }
      for (int j = 0; j < 8; ++j)
        sums[r * block_outputs + 8 * n + j] += std::uint32_t(segment.factor) * total[j];
    }
}

#endif

template <int M>
void tile(const ProductSegment &segment, const TileInputs &inputs, bool pair,
          const std::uint8_t *weights, std::uint32_t *sums) {
  if (segment.method == ProductMethod::lookup) {
    if (segment.planes == 1) {
      if (pair) lookup_tile<M, 2, 1, 0>(segment, inputs, weights, sums);
      else lookup_tile<M, 1, 1, 0>(segment, inputs, weights, sums);
    } else if (segment.shift) {
      lookup_tile<M, 1, 2, 1>(segment, inputs, weights, sums);
    } else {
      lookup_tile<M, 1, 2, 0>(segment, inputs, weights, sums);
    }
  } else if (segment.method == ProductMethod::bytes) {
    if (pair) grid_tile<M, 2, true>(segment, inputs, weights, sums);
    else grid_tile<M, 1, true>(segment, inputs, weights, sums);
  } else {
    if (pair) grid_tile<M, 2, false>(segment, inputs, weights, sums);
    else grid_tile<M, 1, false>(segment, inputs, weights, sums);
  }
}

}  // namespace
}  // namespace LATEWOOD_ISA
}  // namespace latewood
