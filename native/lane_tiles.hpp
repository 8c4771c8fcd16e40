// The innermost loops of products with positions as lanes: some vectors of positions by four outputs.
// The same sums in plain C++ and with 256 bits at a time.
#pragma once

#include <cstdint>
#include <cstring>

#include "integer_network.hpp"
#include "vectors.hpp"

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

#if defined(LATEWOOD_VECTORS)

// Adds to eight sums of an output, or starts them.
struct SumWriter {
  ShiftCount shift;
  const std::int32_t *constants;
  void add(std::int32_t *sums, int n, Vector numbers) const {
    const Vector before = constants ? every_32(constants[n]) : load_aligned(sums);
    store_aligned(sums, add_32(before, shift_left_32(numbers, shift)));
  }
};

// A shuffle looks 32 positions up; signed bytes add up until they may be full.
template <int M>
inline void lookup_lanes(const LaneSegment &segment, const LaneTile &tile) {
  const Vector zero = zeros();
  SumWriter writer{shift_count(segment.shift), tile.constants};
  constexpr int N = lane_outputs;
  Vector narrow[M][N], wide[M][N][2];
  LATEWOOD_UNROLL for (int m = 0; m < M; ++m)
    LATEWOOD_UNROLL for (int n = 0; n < N; ++n)
      narrow[m][n] = wide[m][n][0] = wide[m][n][1] = zero;
  const std::uint8_t *weights = tile.weights;
  std::int64_t rooms = 256;  // of 127 at most in 16 bits
  const auto spill = [&]() __attribute__((always_inline)) {
    LATEWOOD_UNROLL for (int m = 0; m < M; ++m)
      LATEWOOD_UNROLL for (int n = 0; n < N; ++n) {
        std::int32_t *const target = tile.sums + n * tile.stride + 32 * m;
        const Vector first = interleave_lower(wide[m][n][0], wide[m][n][1]);
        const Vector second = interleave_upper(wide[m][n][0], wide[m][n][1]);
        writer.add(target, n, first_signed(first));
        writer.add(target + 8, n, first_signed(second));
        writer.add(target + 16, n, last_signed(first));
        writer.add(target + 24, n, last_signed(second));
        wide[m][n][0] = wide[m][n][1] = zero;
      }
    writer.constants = nullptr;
  };
  for (std::int64_t step = 0; step < segment.steps;) {
    const std::int64_t end =
        step + segment.narrow < segment.steps ? step + segment.narrow : segment.steps;
    for (; step < end; ++step, weights += 16 * N) {
      const std::uint8_t *const columns = tile.columns + tile.offsets[step];
      Vector index[M];
      LATEWOOD_UNROLL for (int m = 0; m < M; ++m) index[m] =
          load(columns + 32 * m);
      LATEWOOD_UNROLL for (int n = 0; n < N; ++n) {
        const Vector table = load_table(weights + 16 * n);
        LATEWOOD_UNROLL for (int m = 0; m < M; ++m)
          add_to_8(narrow[m][n], look_up(table, index[m]));
      }
    }
    LATEWOOD_UNROLL for (int m = 0; m < M; ++m)
      LATEWOOD_UNROLL for (int n = 0; n < N; ++n) {
        wide[m][n][0] = add_16(wide[m][n][0], even_signed(narrow[m][n]));
        wide[m][n][1] = add_16(wide[m][n][1], odd_signed(narrow[m][n]));
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
  const Vector zero = zeros();
  SumWriter writer{shift_count(segment.shift), tile.constants};
  constexpr int N = lane_outputs;
  Vector narrow[M][N];
  LATEWOOD_UNROLL for (int m = 0; m < M; ++m)
    LATEWOOD_UNROLL for (int n = 0; n < N; ++n) narrow[m][n] = zero;
  const std::uint8_t *weights = tile.weights;
  for (std::int64_t step = 0; step < segment.steps;) {
    const std::int64_t end =
        step + segment.narrow < segment.steps ? step + segment.narrow : segment.steps;
    for (; step < end; ++step, weights += 4 * N) {
      const std::uint8_t *const columns = tile.columns + tile.offsets[step];
      Vector input[M];
      LATEWOOD_UNROLL for (int m = 0; m < M; ++m) input[m] =
          load(columns + 32 * m);
      LATEWOOD_UNROLL for (int n = 0; n < N; ++n) {
        std::int32_t pair;
        std::memcpy(&pair, weights + 4 * n, 4);
        const Vector weight = every_32(pair);
        LATEWOOD_UNROLL for (int m = 0; m < M; ++m) {
          if constexpr (Bytes) add_to_16(narrow[m][n], multiply_bytes(input[m], weight));
          else add_to_32(narrow[m][n], multiply_words(input[m], weight));
        }
      }
    }
    LATEWOOD_UNROLL for (int m = 0; m < M; ++m)
      LATEWOOD_UNROLL for (int n = 0; n < N; ++n) {
        std::int32_t *const target = tile.sums + n * tile.stride + (Bytes ? 16 : 8) * m;
        const Vector full = narrow[m][n];
        if constexpr (Bytes) {
          writer.add(target, n, first_signed(full));
          writer.add(target + 8, n, last_signed(full));
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
  Floats total[2][block / 8];
  LATEWOOD_UNROLL for (int n = 0; n < 2; ++n)
    LATEWOOD_UNROLL for (int i = 0; i < block / 8; ++i) total[n][i] = zero_floats();
  for (std::int64_t t = 0; t < count; ++t) {
    const float *const from = taps[t];
    const Floats first = every_float(weights[0] + t);
    const Floats second = every_float(weights[1] + t);
    LATEWOOD_UNROLL for (int i = 0; i < block / 8; ++i) {
      const Floats numbers = load_floats(from + 8 * i);
      total[0][i] = add_product(total[0][i], numbers, first);
      total[1][i] = add_product(total[1][i], numbers, second);
    }
  }
  LATEWOOD_UNROLL for (int n = 0; n < 2; ++n)
    LATEWOOD_UNROLL for (int i = 0; i < block / 8; ++i)
      store_floats(sums[n] + 8 * i, total[n][i]);
}

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
