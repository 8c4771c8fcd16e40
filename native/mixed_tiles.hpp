// The innermost loops of mixed products: some positions by one or two panels of outputs. The same
// sums in plain C++ and with 256 bits at a time.
#pragma once

#include <cstdint>
#include <cstring>

#include "mixed_products.hpp"
#include "vectors.hpp"

namespace latewood {
namespace LATEWOOD_ISA {
namespace {

constexpr std::int64_t block_outputs = 64;  // outputs for which sums are kept at a time

struct TileInputs {
  const std::uint8_t *const *positions;
  const std::int64_t *taps;  // from the operands of a position to those at each tap
  std::int64_t count;        // of taps
};

#if defined(LATEWOOD_VECTORS)

// A shuffle looks 32 indices up in the table of one position; bytes add up until they may be full.
template <int M, int N, int Planes, int Shift>
inline void lookup_tile(const ProductSegment &segment, const TileInputs &inputs,
                        const std::uint8_t *weights, std::uint32_t *sums) {
  const Vector zero = zeros(), factor = every_32(segment.factor);
  Vector narrow[M][N][Planes], wide[M][N][2];
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
          const Vector even = even_unsigned(narrow[r][n][p]);
          const Vector odd = odd_unsigned(narrow[r][n][p]);
          wide[r][n][0] = add_16(wide[r][n][0], shift_left_16(even, shift));
          wide[r][n][1] = add_16(wide[r][n][1], shift_left_16(odd, shift));
          narrow[r][n][p] = zero;
        }
  };
  // Even bytes hold the first 16 outputs of a panel, odd bytes the others.
  const auto spill = [&]() {
    for (int r = 0; r < M; ++r)
      for (int n = 0; n < N; ++n)
        for (int half = 0; half < 2; ++half) {
          std::uint32_t *const target = sums + r * block_outputs + 32 * n + 16 * half;
          const Vector first = multiply_32(first_unsigned(wide[r][n][half]), factor);
          const Vector second = multiply_32(last_unsigned(wide[r][n][half]), factor);
          store_aligned(target, subtract_32(load_aligned(target), first));
          store_aligned(target + 8, subtract_32(load_aligned(target + 8), second));
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
        Vector signs[N][Planes];
        LATEWOOD_UNROLL for (int n = 0; n < N; ++n)
          LATEWOOD_UNROLL for (int p = 0; p < Planes; ++p) signs[n][p] =
              load_aligned(weights + 32 * (n * Planes + p));
        LATEWOOD_UNROLL for (int r = 0; r < M; ++r) {
          const Vector table = load_table(tables[r] + 16 * i);
          LATEWOOD_UNROLL for (int n = 0; n < N; ++n)
            LATEWOOD_UNROLL for (int p = 0; p < Planes; ++p) narrow[r][n][p] =
                add_8(narrow[r][n][p], look_up(table, signs[n][p]));
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
  const Vector zero = zeros();
  Vector narrow[M][N], wide[M][N];
  LATEWOOD_UNROLL for (int r = 0; r < M; ++r)
    LATEWOOD_UNROLL for (int n = 0; n < N; ++n) narrow[r][n] = wide[r][n] = zero;
  const auto widen = [&]() __attribute__((always_inline)) {
    LATEWOOD_UNROLL for (int r = 0; r < M; ++r)
      LATEWOOD_UNROLL for (int n = 0; n < N; ++n) {
        wide[r][n] = add_32(wide[r][n], Bytes ? add_neighbours(narrow[r][n]) : narrow[r][n]);
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
        Vector panel[N];
        LATEWOOD_UNROLL for (int n = 0; n < N; ++n) panel[n] = load_aligned(weights + 32 * n);
        LATEWOOD_UNROLL for (int r = 0; r < M; ++r) {
          std::int32_t group;
          std::memcpy(&group, values[r] + 4 * i, 4);
          const Vector value = every_32(group);
          LATEWOOD_UNROLL for (int n = 0; n < N; ++n) {
            if constexpr (Bytes)
              narrow[r][n] = add_16(narrow[r][n], multiply_bytes(panel[n], value));
            else
              narrow[r][n] = add_32(narrow[r][n], multiply_words(panel[n], value));
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
  const Vector factor = every_32(segment.factor);
  for (int r = 0; r < M; ++r)
    for (int n = 0; n < N; ++n) {
      std::uint32_t *const target = sums + r * block_outputs + 8 * n;
      store_aligned(target, add_32(load_aligned(target), multiply_32(wide[r][n], factor)));
    }
}

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
