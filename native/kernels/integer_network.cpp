// Steps of whole packed networks. Compiled without fused multiply-adds of its own: where numbers are
// rounded is part of what a step computes.
#include "integer_network.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "lane_tiles.hpp"

namespace latewood {
namespace LATEWOOD_ISA {

LATEWOOD_MIXED_KERNELS  // of this instruction set

namespace {

constexpr std::int64_t slack = 64;  // bytes that vectors may touch on both sides of an operand

struct Scratch {
  AlignedBytes image, planes, columns, sums, padded;
  std::vector<float> row;
};

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

// ---- numbers to codes

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

// ---- epilogues

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

// ---- products with positions as lanes

inline void combine_codes(const std::uint8_t *__restrict codes, int shift,
                          std::uint8_t *__restrict plane, std::int64_t n) {
  if (shift == 0) {
    for (std::int64_t i = 0; i < n; ++i) plane[i] = codes[i];
  } else {
    for (std::int64_t i = 0; i < n; ++i) plane[i] |= std::uint8_t(codes[i] << shift);
  }
}

template <typename T>
inline void place_inputs(const std::uint8_t *__restrict codes, int gain, int base, int place,
                         T *__restrict plane, std::int64_t n) {
  constexpr int width = 4 * sizeof(T);
  constexpr T half = T((T(1) << width) - 1);
  if (place == 0) {
    for (std::int64_t i = 0; i < n; ++i) plane[i] = T(gain * codes[i] + base) & half;
  } else {
    for (std::int64_t i = 0; i < n; ++i)
      plane[i] = T(plane[i] | T(T(T(gain * codes[i] + base) & half) << width));
  }
}

// The operands of all positions of the image, plane by plane.
inline void write_planes(const LaneSegment &segment, const std::uint8_t *codes, std::int64_t n,
                         std::uint8_t *planes, std::int64_t stride) {
  for (std::int64_t p = 0; p < segment.planes; ++p) {
    std::uint8_t *const plane = planes + p * stride;
    for (int k = 0; k < segment.in_plane; ++k) {
      const std::int64_t place = p * segment.in_plane + k;
      const std::int32_t c = segment.channels[place];
      if (c < 0) continue;
      const std::uint8_t *const from = codes + c * n;
      if (segment.method == LaneMethod::lookup)
        combine_codes(from, k * (4 / segment.in_plane), plane, n);
      else if (segment.method == LaneMethod::bytes)
        place_inputs(from, segment.gain[place], segment.base[place], k,
                     reinterpret_cast<std::uint16_t *>(plane), n);
      else
        place_inputs(from, segment.gain[place], segment.base[place], k,
                     reinterpret_cast<std::uint32_t *>(plane), n);
    }
  }
}

inline void fill_pad(std::uint8_t *target, std::uint8_t pad, std::int64_t n) {
  std::memset(target, pad, std::size_t(n));
}

// Of one plane and tap: the operands that the outputs in the rows [first, last) meet. Vectors are
// written whole; what is too much is written over by what follows.
inline void write_columns(const MixedGeometry &g, const std::uint8_t *plane, int bytes,
                          std::uint8_t pad, std::int64_t dy, std::int64_t dx, std::int64_t first,
                          std::int64_t last, std::uint8_t *target) {
  const std::int64_t width = g.out_width * bytes;
  const std::int64_t left = dx * g.dilation_x - g.left;
  // The columns of the output whose tap is inside the image.
  const std::int64_t begin =
      std::min(g.out_width, left < 0 ? (-left + g.stride_x - 1) / g.stride_x : 0);
  const std::int64_t end = std::max(
      begin, std::min(g.out_width, g.width - left > 0 ? (g.width - left - 1) / g.stride_x + 1 : 0));
  for (std::int64_t y = first; y < last; ++y, target += width) {
    const std::int64_t row = y * g.stride_y - g.top + dy * g.dilation_y;
    if (row < 0 || row >= g.height || begin == end) {
      fill_pad(target, pad, width);
      continue;
    }
    const std::uint8_t *const from = plane + (row * g.width + left) * bytes;
    if (g.stride_x == 1) {
      for (std::int64_t i = begin * bytes; i < end * bytes; i += 16) std::memcpy(target + i, from + i, 16);
    } else {
      for (std::int64_t x = begin; x < end; ++x)
        for (int b = 0; b < bytes; ++b) target[x * bytes + b] = from[x * g.stride_x * bytes + b];
    }
    for (std::int64_t i = 0; i < begin * bytes; ++i) target[i] = pad;
    for (std::int64_t i = end * bytes; i < width; ++i) target[i] = pad;
  }
}

int run_lanes(const NetworkStep &step, const Memory &memory, Scratch *scratch) {
  const MixedGeometry &g = step.geometry;
  const NetworkBuffer &source = memory.network.buffers[step.source];
  const std::int64_t in_plane = source.plane(), out_plane = g.out_height * g.out_width;
  const std::int64_t outputs = std::int64_t(step.scale.size());
  const std::int64_t rows_of_sums = (outputs + lane_outputs - 1) / lane_outputs * lane_outputs;
  std::int64_t plane_bytes = 0, step_bytes = 1;
  for (const LaneSegment &segment : step.lanes.segments) {
    const std::int64_t stride = (in_plane * segment.position_bytes + 2 * slack + 63) / 64 * 64;
    plane_bytes = std::max(plane_bytes, segment.planes * stride);
    step_bytes = std::max(step_bytes, segment.steps * segment.position_bytes);
  }
  const std::int64_t wanted =
      std::max<std::int64_t>(lane_positions, std::min<std::int64_t>(256, (32 << 10) / step_bytes));
  const std::int64_t band = std::min(g.out_height, std::max<std::int64_t>(1, wanted / g.out_width));
  const std::int64_t lanes =
      (band * g.out_width + lane_positions - 1) / lane_positions * lane_positions;
  scratch->sums.resize(std::size_t(rows_of_sums * lanes * 4));
  scratch->columns.resize(std::size_t(step_bytes * lanes + 2 * slack));
  // Planes of all segments, each behind the other.
  std::int64_t all_planes = 0;
  for (const LaneSegment &segment : step.lanes.segments)
    all_planes +=
        segment.planes * ((in_plane * segment.position_bytes + 2 * slack + 63) / 64 * 64);
  scratch->planes.resize(std::size_t(all_planes));
  std::uint8_t *planes = scratch->planes.get();
  for (const LaneSegment &segment : step.lanes.segments) {
    const std::int64_t stride = (in_plane * segment.position_bytes + 2 * slack + 63) / 64 * 64;
    write_planes(segment, memory.codes(step.source), in_plane, planes + slack, stride);
    planes += segment.planes * stride;
  }
  std::int32_t *const sums = reinterpret_cast<std::int32_t *>(scratch->sums.get());
  scratch->row.resize(std::size_t(lanes));
  const bool direct = step.geometry.kernel_height * step.geometry.kernel_width == 1 &&
                      g.stride_x == 1 && g.stride_y == 1 && g.top == 0 && g.left == 0 &&
                      g.out_height == g.height && g.out_width == g.width;
  int nan = 0;
  for (std::int64_t first = 0; first < g.out_height; first += band) {
    const std::int64_t last = std::min(first + band, g.out_height);
    const std::int64_t count = (last - first) * g.out_width, start = first * g.out_width;
    const std::int64_t whole = (count + lane_positions - 1) / lane_positions * lane_positions;
    for (std::int64_t n = 0; n < rows_of_sums; ++n)
      std::fill(sums + n * lanes, sums + n * lanes + whole,
                n < outputs ? step.lanes.constants[n] : 0);
    planes = scratch->planes.get();
    for (const LaneSegment &segment : step.lanes.segments) {
      const int bytes = segment.position_bytes;
      const std::int64_t stride = (in_plane * bytes + 2 * slack + 63) / 64 * 64;
      LaneOperands operands{planes + slack + start * bytes, stride};
      if (!direct || count != whole) {
        std::uint8_t *columns = scratch->columns.get() + slack;
        operands = {columns, lanes * bytes};
        for (std::int64_t p = 0; p < segment.planes; ++p)
          for (std::int64_t dy = 0; dy < g.kernel_height; ++dy)
            for (std::int64_t dx = 0; dx < g.kernel_width; ++dx, columns += lanes * bytes)
              write_columns(g, planes + slack + p * stride, bytes, segment.pad, dy, dx, first, last,
                            columns);
      }
      const std::int64_t of_block = segment.steps * (segment.method == LaneMethod::lookup ? 64 : 16);
      for (std::int64_t n = 0; n < rows_of_sums; n += lane_outputs)
        add_lanes(segment, operands, segment.weights.get() + n / lane_outputs * of_block,
                  sums + n * lanes, lanes, whole);
      planes += segment.planes * stride;
    }
    for (std::int64_t n = 0; n < outputs; ++n) {
      const std::int32_t *const from = sums + n * lanes;
      const float scale = step.scale[n], bias = step.bias[n];
      nan |= finish_channel(memory, step.epilogue, n, out_plane, start, count, from,
                            scratch->row.data(),
                            [&](float *row) { scale_sums(from, scale, bias, row, count); });
    }
  }
  return nan;
}

// ---- products of other shapes

int run_packed(const NetworkStep &step, const Memory &memory, Scratch *scratch) {
  const MixedGeometry &g = step.geometry;
  const NetworkBuffer &source = memory.network.buffers[step.source];
  const std::int64_t out_plane = g.out_height * g.out_width, in_plane = source.plane();
  const std::int64_t outputs = step.product->outputs;
  scratch->sums.resize(std::size_t(outputs * out_plane * 4));
  std::int32_t *const sums = reinterpret_cast<std::int32_t *>(scratch->sums.get());
  const MixedInput input{memory.codes(step.source), nullptr, 1.0f, 0.0f, in_plane,
                         source.columns, 1};
  const MixedOutput output{sums, nullptr, nullptr, nullptr, out_plane, 1};
  const std::int64_t row_bytes = g.stride_y * g.width * step.product->position_bytes;
  const std::int64_t band = std::max<std::int64_t>(
      1, std::min(g.out_height, (std::int64_t{1} << 15) / std::max<std::int64_t>(row_bytes, 1)));
  int bad = 0;
  for (std::int64_t first = 0; first < g.out_height; first += band) {
    const std::int64_t last = std::min(first + band, g.out_height);
    bad |= !mixed_band(*step.product, g, input, output, first, last);
  }
  scratch->row.resize(std::size_t(std::max(out_plane, outputs)));
  float *const row = scratch->row.data();
  if (out_plane == 1) {
    const float *const scale = step.scale.data(), *const bias = step.bias.data();
    for (std::int64_t n = 0; n < outputs; ++n) row[n] = float(sums[n]) * scale[n] + bias[n];
    return bad | finish_vector(memory, step.epilogue, row, outputs);
  }
  for (std::int64_t n = 0; n < outputs; ++n) {
    const std::int32_t *const from = sums + n * out_plane;
    const float scale = step.scale[n], bias = step.bias[n];
    bad |= finish_channel(memory, step.epilogue, n, out_plane, 0, out_plane, from, row,
                          [&](float *to) { scale_sums(from, scale, bias, to, out_plane); });
  }
  return bad;
}

// One step of all sums of a vector.
inline void add_scaled(const float *__restrict weight, float input, float *__restrict sums,
                       std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) sums[i] = sums[i] + input * weight[i];
}

constexpr int block = 32;  // positions whose sums stay in registers

// Four outputs at 32 positions, whose inputs lie one after the other.
inline void add_products(const float *const *taps, const float *const *weights, std::int64_t count,
                         float (*__restrict sums)[block]) {
  for (int n = 0; n < 2; ++n)
    for (int i = 0; i < block; ++i) sums[n][i] = 0;
  float first[block] = {}, second[block] = {};
  for (std::int64_t t = 0; t < count; ++t) {
    const float *const from = taps[t];
    const float one = weights[0][t], other = weights[1][t];
    for (int i = 0; i < block; ++i) {
      first[i] = first[i] + from[i] * one;
      second[i] = second[i] + from[i] * other;
    }
  }
  for (int i = 0; i < block; ++i) sums[0][i] = first[i], sums[1][i] = second[i];
}

int run_floating(const NetworkStep &step, const Memory &memory, Scratch *scratch) {
  const MixedGeometry &g = step.geometry;
  const NetworkBuffer &source = memory.network.buffers[step.source];
  const float *const input = memory.numbers(step.source);
  const std::int64_t out_plane = g.out_height * g.out_width, taps = g.kernel_height * g.kernel_width;
  const std::int64_t in_group = source.channels / step.groups;
  const std::int64_t outputs = std::int64_t(step.weight.size()) / (in_group * taps);
  const std::int64_t out_group = outputs / step.groups;
  if (!step.transposed.empty()) {
    scratch->row.assign(std::size_t(outputs), 0.0f);
    float *const row = scratch->row.data();
    for (std::int64_t k = 0; k < source.channels; ++k)
      add_scaled(step.transposed.data() + k * outputs, input[k], row, outputs);
    if (!step.bias.empty())
      for (std::int64_t n = 0; n < outputs; ++n) row[n] = row[n] + step.bias[n];
    return finish_vector(memory, step.epilogue, row, outputs);
  }
  // Padded, with the positions that one tap meets next to each other.
  const std::int64_t rows = (g.out_height - 1) * g.stride_y + (g.kernel_height - 1) * g.dilation_y + 1;
  const std::int64_t columns =
      (g.out_width - 1) * g.stride_x + (g.kernel_width - 1) * g.dilation_x + 1;
  // By phase of the stride: column x lies at x / stride_x of the phase x % stride_x.
  const std::int64_t pitch = (columns + g.stride_x - 1) / g.stride_x;
  const std::int64_t line = pitch * g.stride_x, padded_plane = rows * line;
  scratch->padded.resize(std::size_t((source.channels * padded_plane + 2 * block) * 4));
  float *const padded = reinterpret_cast<float *>(scratch->padded.get());
  std::fill(padded, padded + source.channels * padded_plane + 2 * block, 0.0f);
  for (std::int64_t c = 0; c < source.channels; ++c)
    for (std::int64_t y = 0; y < rows; ++y) {
      const std::int64_t from_row = y - g.top;
      if (from_row < 0 || from_row >= g.height) continue;
      const float *const from = input + (c * g.height + from_row) * g.width;
      float *const to = padded + c * padded_plane + y * line;
      const std::int64_t end = std::min(columns, g.width + g.left);
      if (g.stride_x == 1) {
        if (end > g.left) std::memcpy(to + g.left, from, std::size_t(end - g.left) * 4);
      } else {
        for (std::int64_t x = g.left; x < end; ++x)
          to[x % g.stride_x * pitch + x / g.stride_x] = from[x - g.left];
      }
    }
  scratch->row.resize(std::size_t(outputs * g.out_width + block));
  std::vector<const float *> places(static_cast<std::size_t>(in_group * taps));
  int nan = 0;
  for (std::int64_t y = 0; y < g.out_height; ++y) {
    float *const rows_out = scratch->row.data();
    for (std::int64_t group = 0; group < step.groups; ++group)
      for (std::int64_t x = 0; x < g.out_width; x += block) {
        std::int64_t place = 0;
        for (std::int64_t c = 0; c < in_group; ++c)
          for (std::int64_t i = 0; i < g.kernel_height; ++i)
            for (std::int64_t j = 0; j < g.kernel_width; ++j) {
              const std::int64_t column = j * g.dilation_x;
              places[place++] = padded + (group * in_group + c) * padded_plane +
                                (y * g.stride_y + i * g.dilation_y) * line +
                                column % g.stride_x * pitch + column / g.stride_x + x;
            }
        const std::int64_t n_positions = std::min<std::int64_t>(block, g.out_width - x);
        for (std::int64_t n = 0; n < out_group; n += 2) {
          alignas(64) float sums[2][block];
          const std::int64_t output = group * out_group + n;
          const bool second = n + 1 < out_group;
          const float *const weights[2] = {
              step.weight.data() + output * in_group * taps,
              step.weight.data() + (output + second) * in_group * taps};
          add_products(places.data(), weights, place, sums);
          for (int k = 0; k < 1 + second; ++k)
            std::memcpy(rows_out + (output + k) * g.out_width + x, sums[k],
                        std::size_t(n_positions) * 4);
        }
      }
    for (std::int64_t n = 0; n < outputs; ++n) {
      float *const from = rows_out + n * g.out_width;
      if (!step.bias.empty())
        for (std::int64_t x = 0; x < g.out_width; ++x) from[x] = from[x] + step.bias[n];
      nan |= finish_channel(memory, step.epilogue, n, out_plane, y * g.out_width, g.out_width,
                            nullptr, from, [&](float *to) {
                              if (to != from) std::memcpy(to, from, std::size_t(g.out_width) * 4);
                            });
    }
  }
  return nan;
}

// ---- pools and the rest

inline float whole_mean(const float *numbers, std::int64_t n) {
  float parts[8] = {};
  for (std::int64_t k = 0; k < 8 && k < n; ++k) parts[k] = numbers[k];
  std::int64_t i = 8;
  for (; i + 8 <= n; i += 8)
    for (int k = 0; k < 8; ++k) parts[k] = parts[k] + numbers[i + k];
  for (; i < n; ++i) parts[i % 8] = parts[i % 8] + numbers[i];
  for (int width = 4; width >= 1; width /= 2)
    for (int k = 0; k < width; ++k) parts[k] = parts[k] + parts[k + width];
  return parts[0] / float(n);
}

inline float pooled(const NetworkStep &step, const float *plane, std::int64_t y, std::int64_t x) {
  const MixedGeometry &g = step.geometry;
  const std::int64_t top = y * g.stride_y - g.top, left = x * g.stride_x - g.left;
  const bool largest = step.kind == NetworkKind::largest;
  float best = -std::numeric_limits<float>::infinity(), sum = 0;
  std::int64_t inside = 0;
  for (std::int64_t i = 0; i < g.kernel_height; ++i)
    for (std::int64_t j = 0; j < g.kernel_width; ++j) {
      const std::int64_t row = top + i * g.dilation_y, column = left + j * g.dilation_x;
      if (row < 0 || row >= g.height || column < 0 || column >= g.width) continue;
      const float number = plane[row * g.width + column];
      ++inside;
      if (largest) best = number > best || number != number ? number : best;
      else sum = sum + number;
    }
  if (largest) return best;
  std::int64_t count = step.divisor;
  if (!count && !step.counts_padding) count = inside;
  if (!count) {
    const std::int64_t bottom = std::min(top + g.kernel_height, g.height + step.after_rows);
    const std::int64_t right = std::min(left + g.kernel_width, g.width + step.after_columns);
    count = (bottom - top) * (right - left);
  }
  return sum / float(count);
}

int run_pool(const NetworkStep &step, const Memory &memory, Scratch *scratch) {
  const MixedGeometry &g = step.geometry;
  const NetworkBuffer &source = memory.network.buffers[step.source];
  const float *const input = memory.numbers(step.source);
  const std::int64_t out_plane = g.out_height * g.out_width, plane = source.plane();
  scratch->row.resize(std::size_t(std::max(out_plane, source.channels)));
  float *const row = scratch->row.data();
  if (step.kind == NetworkKind::mean) {
    for (std::int64_t c = 0; c < source.channels; ++c) row[c] = whole_mean(input + c * plane, plane);
    return finish_vector(memory, step.epilogue, row, source.channels);
  }
  int nan = 0;
  for (std::int64_t c = 0; c < source.channels; ++c)
    nan |= finish_channel(memory, step.epilogue, c, out_plane, 0, out_plane, nullptr, row,
                          [&](float *to) {
                            for (std::int64_t y = 0; y < g.out_height; ++y)
                              for (std::int64_t x = 0; x < g.out_width; ++x)
                                to[y * g.out_width + x] = pooled(step, input + c * plane, y, x);
                          });
  return nan;
}

int run_numbers(const NetworkStep &step, const Memory &memory, Scratch *scratch) {
  const NetworkBuffer &source = memory.network.buffers[step.source];
  const float *const input = memory.numbers(step.source);
  const std::int64_t plane = source.plane();
  scratch->row.resize(std::size_t(std::max(plane, source.channels)));
  float *const row = scratch->row.data();
  if (plane == 1) {
    std::memcpy(row, input, std::size_t(source.channels) * 4);
    return finish_vector(memory, step.epilogue, row, source.channels);
  }
  int nan = 0;
  for (std::int64_t c = 0; c < source.channels; ++c)
    nan |= finish_channel(memory, step.epilogue, c, plane, 0, plane, nullptr, row, [&](float *to) {
      std::memcpy(to, input + c * plane, std::size_t(plane) * 4);
    });
  return nan;
}

int run_step(const NetworkStep &step, const Memory &memory, Scratch *scratch) {
  switch (step.kind) {
    case NetworkKind::packed: return run_packed(step, memory, scratch);
    case NetworkKind::lanes: return run_lanes(step, memory, scratch);
    case NetworkKind::floating: return run_floating(step, memory, scratch);
    case NetworkKind::numbers: return run_numbers(step, memory, scratch);
    case NetworkKind::flatten:
      std::memcpy(memory.numbers(step.target), memory.numbers(step.source),
                  std::size_t(memory.network.buffers[step.source].bytes()));
      return 0;
    default: return run_pool(step, memory, scratch);
  }
}

}  // namespace

bool run_network(const Network &network, const float *inputs, float *outputs, std::int64_t images) {
  static thread_local Scratch scratch;
  scratch.image.resize(std::size_t(network.image_bytes));
  const std::int64_t in_count = network.buffers[network.source].count();
  const std::int64_t out_count = network.buffers[network.target].count();
  int bad = 0;
  for (std::int64_t image = 0; image < images; ++image) {
    const Memory memory{network, scratch.image.get(), inputs + image * in_count,
                        outputs + image * out_count};
    for (const NetworkStep &step : network.steps) bad |= run_step(step, memory, &scratch);
  }
  return !bad;
}

}  // namespace LATEWOOD_ISA
}  // namespace latewood
