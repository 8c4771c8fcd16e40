// Steps of whole packed networks. Compiled without fused multiply-adds of its own: where numbers are
// rounded is part of what a step computes.
#include "integer_network.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "lane_operands.hpp"
#include "lane_tiles.hpp"
#include "network_epilogues.hpp"

namespace latewood {
namespace LATEWOOD_ISA {

LATEWOOD_MIXED_KERNELS  // of this instruction set

namespace {

constexpr std::int64_t slack = 64;  // bytes that vectors may touch on both sides of an operand

struct Scratch {
  AlignedBytes image, planes, columns, sums, padded;
  std::vector<float> row;
};

int run_lanes(const NetworkStep &step, const Memory &memory, Scratch *scratch) {
  constexpr std::int64_t together = 256;  // positions whose sums stay in the nearest cache
  const MixedGeometry &g = step.geometry;
  const LaneProduct &product = step.lanes;
  const std::int64_t in_plane = memory.network.buffers[step.source].plane();
  const std::int64_t out_plane = g.out_height * g.out_width;
  const std::int64_t outputs = std::int64_t(step.scale.size());
  const std::int64_t blocks = std::int64_t(product.constants.size()) / lane_outputs;
  const auto plane_stride = [&](const LaneSegment &segment) {
    return (in_plane * segment.position_bytes + 2 * slack + 63) / 64 * 64;
  };
  std::int64_t plane_bytes = 0, strip_bytes = 0;
  for (const LaneSegment &segment : product.segments) {
    plane_bytes += segment.planes * plane_stride(segment);
    strip_bytes += (segment.strip_bytes + 4 * slack) / 64 * 64;
  }
  // The codes of no channel lie behind the planes.
  scratch->planes.resize(std::size_t(plane_bytes + in_plane));
  scratch->columns.resize(std::size_t(strip_bytes));
  scratch->sums.resize(std::size_t(blocks * lane_outputs * together * 4));
  scratch->row.resize(std::size_t(together));
  std::uint8_t *const none = scratch->planes.get() + plane_bytes;
  std::memset(none, 0, std::size_t(in_plane));
  std::uint8_t *planes = scratch->planes.get() + slack;
  for (const LaneSegment &segment : product.segments) {
    write_planes(segment, memory.codes(step.source), none, in_plane, planes, plane_stride(segment));
    planes += segment.planes * plane_stride(segment);
  }
  std::int32_t *const sums = reinterpret_cast<std::int32_t *>(scratch->sums.get());
  if (product.segments.empty()) std::fill(sums, sums + blocks * lane_outputs * together, 0);
  int nan = 0;
  for (std::int64_t first = 0; first < g.out_height; first += product.band) {
    planes = scratch->planes.get() + slack;
    std::uint8_t *columns = scratch->columns.get();
    for (const LaneSegment &segment : product.segments) {
      const int bytes = segment.position_bytes;
      std::uint8_t *target = columns;
      for (const LaneStrip &strip : segment.strips) {
        write_strip(g, strip, planes + strip.plane * plane_stride(segment), bytes, segment.pad,
                    first, target);
        target += strip.rows * g.out_width * bytes;
      }
      planes += segment.planes * plane_stride(segment);
      columns += (segment.strip_bytes + 4 * slack) / 64 * 64;
    }
    const std::int64_t in_band = std::min(product.band, g.out_height - first) * g.out_width;
    for (std::int64_t p = 0; p < in_band; p += together) {
      const std::int64_t count = std::min(together, in_band - p);
      const std::int64_t whole = (count + lane_positions - 1) / lane_positions * lane_positions;
      columns = scratch->columns.get();
      for (const LaneSegment &segment : product.segments) {
        const bool starts = &segment == &product.segments.front();
        const std::int64_t of_block =
            segment.steps * lane_outputs * (segment.method == LaneMethod::lookup ? 16 : 4);
        for (std::int64_t block = 0; block < blocks; ++block)
          add_lanes(segment, {columns + p * segment.position_bytes, segment.offsets.data(),
                              segment.weights.get() + block * of_block,
                              sums + block * lane_outputs * together, together, whole,
                              starts ? &product.constants[block * lane_outputs] : nullptr});
        columns += (segment.strip_bytes + 4 * slack) / 64 * 64;
      }
      const std::int64_t start = first * g.out_width + p;
      for (std::int64_t n = 0; n < outputs; ++n) {
        const std::int32_t *const from = sums + n * together;
        const float scale = step.scale[n], bias = step.bias[n];
        nan |= finish_channel(memory, step.epilogue, n, out_plane, start, count, from,
                              scratch->row.data(),
                              [&](float *row) { scale_sums(from, scale, bias, row, count); });
      }
    }
  }
  return nan;
}

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
