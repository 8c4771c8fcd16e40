// What becomes of the numbers of a step: norm, residual, bounds, and the codes of its readers.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "integer_network.hpp"

namespace latewood {
namespace LATEWOOD_ISA {
namespace {

// What one image's buffers are.
struct Memory {
  const Network &network;
  std::uint8_t *base;
  const float *input;
  float *output;

  float *numbers(int buffer) const {
    if (buffer == network.target) return output;
    if (buffer == network.source) return const_cast<float *>(input);  // no step writes to it
    return reinterpret_cast<float *>(base + network.buffers[buffer].offset);
  }
  std::uint8_t *codes(int buffer) const { return base + network.buffers[buffer].offset; }
};

template <int Levels>
inline void count_levels(const std::int32_t *__restrict sums, const std::int32_t *thresholds,
                         std::int32_t sign, std::uint8_t *__restrict codes, std::int64_t n) {
  const std::int32_t first = sign * thresholds[0], second = Levels > 1 ? sign * thresholds[1] : 0;
  const std::int32_t third = Levels > 1 ? sign * thresholds[2] : 0;
  if (sign > 0) {
    for (std::int64_t i = 0; i < n; ++i)
      codes[i] = Levels == 1 ? sums[i] >= first
                             : (sums[i] >= first) + (sums[i] >= second) + (sums[i] >= third);
  } else {
    for (std::int64_t i = 0; i < n; ++i)
      codes[i] = Levels == 1 ? sums[i] <= first
                             : (sums[i] <= first) + (sums[i] <= second) + (sums[i] <= third);
  }
}

// Whether one was NaN.
inline int cut_once(const float *__restrict numbers, float cut, std::uint8_t *__restrict codes,
                    std::int64_t n) {
  int nan = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    codes[i] = numbers[i] >= cut;
    nan |= numbers[i] != numbers[i];
  }
  return nan;
}

inline int cut_thrice(const float *__restrict numbers, const float *cuts,
                      std::uint8_t *__restrict codes, std::int64_t n) {
  const float first = cuts[0], second = cuts[1], third = cuts[2];
  int nan = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    codes[i] = (numbers[i] >= first) + (numbers[i] >= second) + (numbers[i] >= third);
    nan |= numbers[i] != numbers[i];
  }
  return nan;
}

// Of one channel, or with a scale and a half for each number.
template <bool OneChannel>
inline int quantise(const float *__restrict numbers, float alpha, float offset,
                    const float *__restrict scale, const float *__restrict half,
                    std::uint8_t *__restrict codes, std::int64_t n) {
  const float only_scale = scale[0], only_half = half[0];
  int nan = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const float number = numbers[i] / alpha - offset;
    const float middle = OneChannel ? only_half : half[i];
    // Cells without bits are all 0, and a number there may be NaN.
    nan |= number != number && middle > 0.5f;
    const float cell = std::floor(number * (OneChannel ? only_scale : scale[i])) + middle;
    codes[i] = std::uint8_t(std::int32_t(std::max(0.0f, std::min(cell, 2 * middle - 1))));
  }
  return nan;
}

// The numbers of one channel at n positions from `start` on, as they leave the epilogue.
inline void finish_numbers(const NetworkEpilogue &epilogue, std::int64_t c,
                           const float *__restrict residual, float *__restrict row,
                           std::int64_t n) {
  if (!epilogue.factor.empty()) {
    const float factor = epilogue.factor[c], addend = epilogue.addend[c];
    for (std::int64_t i = 0; i < n; ++i) row[i] = std::fma(row[i], factor, addend);
  }
  const float low = epilogue.low, high = epilogue.high;
  if (residual) {
    for (std::int64_t i = 0; i < n; ++i) {
      float number = row[i] + residual[i];
      number = low > number ? low : number;
      row[i] = high < number ? high : number;
    }
  } else {
    for (std::int64_t i = 0; i < n; ++i) {
      float number = row[i];
      number = low > number ? low : number;
      row[i] = high < number ? high : number;
    }
  }
}

inline int encode_numbers(const Network &network, const NetworkEncoder &encoder, std::int64_t c,
                          const float *row, std::uint8_t *codes, std::int64_t n) {
  const int bits = network.buffers[encoder.target].bits[c];
  if (bits == 1) return cut_once(row, encoder.cut, codes, n);
  if (bits == 2) return cut_thrice(row, encoder.cuts, codes, n);
  if (bits)
    return quantise<true>(row, encoder.alpha, encoder.offset, &encoder.scale[c], &encoder.half[c],
                          codes, n);
  std::memset(codes, 0, std::size_t(n));
  return 0;
}

// `fill(row)` gives the numbers of one channel at n positions from `start` on; `sums` are those that
// thresholds are compared with, or null.
template <typename Fill>
inline int finish_channel(const Memory &memory, const NetworkEpilogue &epilogue, std::int64_t c,
                          std::int64_t plane, std::int64_t start, std::int64_t n,
                          const std::int32_t *sums, float *scratch, const Fill &fill) {
  const std::int64_t at = c * plane + start;
  float *const row = epilogue.target >= 0 ? memory.numbers(epilogue.target) + at : scratch;
  bool filled = false;
  const auto filled_row = [&] {
    if (!filled) {
      fill(row);
      finish_numbers(epilogue, c,
                     epilogue.residual >= 0 ? memory.numbers(epilogue.residual) + at : nullptr, row,
                     n);
      filled = true;
    }
    return row;
  };
  int nan = 0;
  for (const NetworkEncoder &encoder : epilogue.encoders) {
    std::uint8_t *const codes = memory.codes(encoder.target) + at;
    const int bits = memory.network.buffers[encoder.target].bits[c];
    if (encoder.counts_sums && (bits == 1 || bits == 2)) {
      const std::int32_t *const thresholds = &encoder.thresholds[3 * c];
      if (bits == 1) count_levels<1>(sums, thresholds, encoder.signs[c], codes, n);
      else count_levels<3>(sums, thresholds, encoder.signs[c], codes, n);
    } else {
      nan |= encode_numbers(memory.network, encoder, c, filled_row(), codes, n);
    }
  }
  if (epilogue.target >= 0) filled_row();
  return nan;
}

// The numbers of all channels at the only position, in `row`.
inline int finish_vector(const Memory &memory, const NetworkEpilogue &epilogue, float *row,
                         std::int64_t channels) {
  if (!epilogue.factor.empty()) {
    const float *const factor = epilogue.factor.data(), *const addend = epilogue.addend.data();
    for (std::int64_t i = 0; i < channels; ++i) row[i] = std::fma(row[i], factor[i], addend[i]);
  }
  NetworkEpilogue without;
  without.low = epilogue.low;
  without.high = epilogue.high;
  finish_numbers(without, 0,
                 epilogue.residual >= 0 ? memory.numbers(epilogue.residual) : nullptr, row,
                 channels);
  if (epilogue.target >= 0) {
    float *const to = memory.numbers(epilogue.target);
    if (to != row) std::memcpy(to, row, std::size_t(channels) * sizeof(float));
  }
  int nan = 0;
  for (const NetworkEncoder &encoder : epilogue.encoders)
    nan |= quantise<false>(row, encoder.alpha, encoder.offset, encoder.scale.data(),
                           encoder.half.data(), memory.codes(encoder.target), channels);
  return nan;
}

inline void scale_sums(const std::int32_t *__restrict sums, float scale, float bias,
                       float *__restrict row, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) row[i] = float(sums[i]) * scale + bias;
}

}  // namespace
}  // namespace LATEWOOD_ISA
}  // namespace latewood
