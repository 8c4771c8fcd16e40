// Operands of a band of positions are packed once and then met by all weights: 4 positions by up to
// 64 outputs at a time. Compiled without fused multiply-adds: numbers are scaled as torch does.
#include "mixed_products.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "mixed_tiles.hpp"

namespace latewood {
namespace LATEWOOD_ISA {
namespace {

// By code of each of four inputs, and by sign of each of four weights: how far the sum of products
// stays behind its largest value, halved.
struct Tables {
  alignas(64) std::uint8_t one[16][16], two[256][16];
  Tables() {
    for (int i = 0; i < 16; ++i) fill(one[i], 1, i);
    for (int i = 0; i < 256; ++i) fill(two[i], 2, i);
  }
  static void fill(std::uint8_t *table, int bits, int index) {
    const int top = (1 << bits) - 1;
    for (int signs = 0; signs < 16; ++signs) {
      int total = 0;
      for (int k = 0; k < 4; ++k) {
        const int code = index >> (bits * (3 - k)) & top;
        total += signs >> k & 1 ? top - code : code;
      }
      table[signs] = std::uint8_t(total);
    }
  }
};

// Filled at the first use: what runs when the module loads must not need this instruction set.
const Tables &all_tables() {
  static const Tables tables;
  return tables;
}

// The table of four codes, one a byte, the first in the lowest.
inline const std::uint8_t *table_of(const Tables &tables, std::uint32_t codes, int bits) {
  return bits == 1 ? tables.one[codes * 0x08040201u >> 24 & 15]
                   : tables.two[codes * 0x40100401u >> 24];
}

struct Scratch {
  std::vector<std::uint8_t> codes, sorted;
  AlignedBytes operands;
  std::vector<std::int32_t> constants;
  std::vector<std::uint32_t> quads;
};

// The codes of n numbers of one channel, or of one number of n channels each. Accumulates in `bad`.
template <typename Scale, typename Half>
inline void quantise(const float *numbers, float alpha, float shift, Scale scale, Half half,
                     std::uint8_t *codes, std::int64_t n, int *bad) {
  int nan = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const float number = numbers[i] / alpha - shift;
    nan |= number != number;
    const float cell = std::floor(number * scale(i)) + half(i);
    codes[i] = std::uint8_t(std::int32_t(std::max(0.0f, std::min(cell, 2 * half(i) - 1))));
  }
  *bad |= nan;
}

// Positions one after the other, channels adjacent in memory.
void pack_rows(const MixedProduct &product, const MixedInput &input, std::int64_t start,
               std::int64_t n, std::uint8_t *operands, std::int32_t *constants, Scratch *scratch,
               int *bad) {
  const Tables &tables = all_tables();
  const std::int64_t channels = product.channels, places = std::int64_t(product.order.size());
  std::uint8_t *const codes = scratch->codes.data();
  const float *const scale = product.scale.data(), *const half = product.half.data();
  for (std::int64_t i = 0; i < n; ++i, operands += product.position_bytes) {
    const std::int64_t from = start + i * input.column_stride;
    const std::uint8_t *row = codes;
    if (input.numbers) {
      quantise(input.numbers + from, input.alpha, input.shift, [=](std::int64_t k) { return scale[k]; },
               [=](std::int64_t k) { return half[k]; }, codes, channels, bad);
    } else {
      const std::uint8_t *const beyond = product.beyond.data();
      const std::uint8_t *const source = input.codes + from;
      std::uint8_t over = 0;
      for (std::int64_t k = 0; k < channels; ++k) over |= source[k] & beyond[k];
      *bad |= over;
      if (product.in_order) row = source;
      else std::copy(source, source + channels, codes);
    }
    if (!product.in_order) {
      codes[channels] = 0;
      std::uint8_t *const sorted = scratch->sorted.data();
      const std::int32_t *const order = product.order.data();
      for (std::int64_t j = 0; j < places; ++j) sorted[j] = codes[order[j]];
      row = sorted;
    }
    std::int32_t constant = 0;
    for (const ProductSegment &segment : product.segments) {
      std::uint8_t *const target = operands + segment.where;
      const std::uint8_t *const source = row + segment.begin;
      const std::int32_t *const gain = product.gain.data() + segment.begin;
      const std::int32_t *const base = product.base.data() + segment.begin;
      if (segment.method == ProductMethod::lookup) {
        for (std::int64_t g = 0; g < segment.groups; ++g) {
          std::uint32_t quad;
          std::memcpy(&quad, source + 4 * g, 4);
          std::memcpy(target + 16 * g, table_of(tables, quad, segment.bits), 16);
        }
        constant += segment.constant;
      } else if (segment.method == ProductMethod::bytes) {
        std::int8_t *const values = reinterpret_cast<std::int8_t *>(target);
        std::int32_t total = 0;
        for (std::int64_t j = 0; j < 4 * segment.groups; ++j) {
          const std::int32_t value = gain[j] * source[j] - base[j];
          values[j] = std::int8_t(value);
          total += value;
        }
        constant -= segment.factor * segment.offset * total;
      } else {
        std::int16_t *const values = reinterpret_cast<std::int16_t *>(target);
        for (std::int64_t j = 0; j < 2 * segment.groups; ++j)
          values[j] = std::int16_t(gain[j] * source[j] - base[j]);
      }
    }
    constants[i] = constant;
  }
}

// Channels one after the other, positions adjacent in memory.
void pack_planes(const MixedProduct &product, const MixedInput &input, std::int64_t start,
                 std::int64_t n, std::uint8_t *operands, std::int32_t *constants,
                 Scratch *scratch, int *bad) {
  const Tables &tables = all_tables();
  const std::int64_t channels = product.channels;
  scratch->codes.resize(std::size_t((channels + 1) * n));
  scratch->quads.resize(std::size_t(n));
  std::uint8_t *const codes = scratch->codes.data();
  for (std::int64_t c = 0; c < channels; ++c) {
    const std::int64_t from = start + c * input.channel_stride;
    std::uint8_t *const row = codes + c * n;
    if (input.numbers) {
      const float scale = product.scale[c], half = product.half[c];
      quantise(input.numbers + from, input.alpha, input.shift, [=](std::int64_t) { return scale; },
               [=](std::int64_t) { return half; }, row, n, bad);
    } else {
      const std::uint8_t *const source = input.codes + from;
      std::uint8_t any = 0;
      for (std::int64_t i = 0; i < n; ++i) any |= row[i] = source[i];
      *bad |= any & product.beyond[c];
    }
  }
  std::fill(codes + channels * n, codes + (channels + 1) * n, std::uint8_t(0));
  std::fill(constants, constants + n, 0);
  std::uint32_t *const quads = scratch->quads.data();
  const std::int64_t stride = product.position_bytes;
  for (const ProductSegment &segment : product.segments) {
    for (std::int64_t g = 0; g < segment.groups; ++g) {
      if (segment.method == ProductMethod::lookup) {
        const std::int32_t *const order = product.order.data() + segment.begin + 4 * g;
        const std::uint8_t *const p0 = codes + order[0] * n, *const p1 = codes + order[1] * n;
        const std::uint8_t *const p2 = codes + order[2] * n, *const p3 = codes + order[3] * n;
        for (std::int64_t i = 0; i < n; ++i)
          quads[i] = std::uint32_t(p0[i]) | std::uint32_t(p1[i]) << 8 | std::uint32_t(p2[i]) << 16 |
                     std::uint32_t(p3[i]) << 24;
        std::uint8_t *target = operands + segment.where + 16 * g;
        for (std::int64_t i = 0; i < n; ++i, target += stride)
          std::memcpy(target, table_of(tables, quads[i], segment.bits), 16);
        continue;
      }
      const bool bytes = segment.method == ProductMethod::bytes;
      const int in_group = bytes ? 4 : 2;
      for (int k = 0; k < in_group; ++k) {
        const std::int64_t place = segment.begin + g * in_group + k;
        const std::uint8_t *const row = codes + product.order[place] * n;
        const std::int32_t gain = product.gain[place], base = product.base[place];
        const std::int32_t weight = bytes ? segment.factor * segment.offset : 0;
        const int shift = bytes ? 8 * k : 16 * k;
        const std::uint32_t mask = bytes ? 0xffu : 0xffffu;
        for (std::int64_t i = 0; i < n; ++i) {
          const std::int32_t value = gain * row[i] - base;
          quads[i] = (k ? quads[i] : 0) | (std::uint32_t(value) & mask) << shift;
          constants[i] -= weight * value;
        }
      }
      std::uint8_t *target = operands + segment.where + 4 * g;
      for (std::int64_t i = 0; i < n; ++i, target += stride) std::memcpy(target, &quads[i], 4);
    }
    if (segment.method == ProductMethod::lookup)
      for (std::int64_t i = 0; i < n; ++i) constants[i] += segment.constant;
  }
}

// Adds what all segments give for up to 4 positions and the outputs from n on, up to 64.
void add_tile(const MixedProduct &product, const std::uint8_t *const *positions, int m,
              const std::int64_t *taps, std::int64_t n, std::uint32_t *sums) {
  const std::int64_t left = std::min<std::int64_t>(block_outputs, product.outputs - n);
  for (const ProductSegment &segment : product.segments) {
    const TileInputs inputs{positions, taps, product.taps};
    const bool lookup = segment.method == ProductMethod::lookup;
    const std::int64_t in_panel = lookup ? 32 : 8;
    for (std::int64_t done = 0; done < left;) {
      // Two planes of two panels would not fit into the registers.
      const bool pair = left - done > in_panel && (!lookup || segment.planes == 1);
      const std::uint8_t *const weights =
          segment.weights.get() + (n + done) / in_panel * segment.panel;
      if (m == 4) tile<4>(segment, inputs, pair, weights, sums + done);
      else if (m == 3) tile<3>(segment, inputs, pair, weights, sums + done);
      else if (m == 2) tile<2>(segment, inputs, pair, weights, sums + done);
      else tile<1>(segment, inputs, pair, weights, sums + done);
      done += pair ? 2 * in_panel : in_panel;
    }
  }
}

// What inputs that are never negative add, at the taps that are inside the image.
void add_tap_sums(const MixedProduct &product, const MixedGeometry &geometry, std::int64_t y,
                  std::int64_t x, std::int64_t n, std::uint32_t *sums) {
  const std::int64_t count = std::min<std::int64_t>(block_outputs, product.outputs - n);
  const std::int64_t bottom = y + (geometry.kernel_height - 1) * geometry.dilation_y;
  const std::int64_t right = x + (geometry.kernel_width - 1) * geometry.dilation_x;
  if (y >= 0 && x >= 0 && bottom < geometry.height && right < geometry.width) {
    const std::uint32_t *const all = product.all_taps.data() + n;
    for (std::int64_t k = 0; k < count; ++k) sums[k] += all[k];
    return;
  }
  for (std::int64_t t = 0; t < product.taps; ++t) {
    const std::int64_t tap_y = y + t / geometry.kernel_width * geometry.dilation_y;
    const std::int64_t tap_x = x + t % geometry.kernel_width * geometry.dilation_x;
    if (tap_y < 0 || tap_x < 0 || tap_y >= geometry.height || tap_x >= geometry.width) continue;
    const std::uint32_t *const tap = product.tap_sums.data() + t * product.outputs + n;
    for (std::int64_t k = 0; k < count; ++k) sums[k] += tap[k];
  }
}

void write_tile(const MixedOutput &output, std::int64_t out_width, std::int64_t first, int m,
                std::int64_t n, std::int64_t count, const std::uint32_t *sums) {
  for (int r = 0; r < m; ++r) {
    const std::int64_t position = first + r;
    const std::int64_t to = position / out_width * output.row_stride +
                            position % out_width * output.column_stride +
                            n * output.channel_stride;
    const std::uint32_t *const row = sums + r * block_outputs;
    if (output.sums) {
      std::int32_t *const target = output.sums + to;
      if (output.channel_stride == 1)
        for (std::int64_t k = 0; k < count; ++k) target[k] = std::int32_t(row[k]);
      else
        for (std::int64_t k = 0; k < count; ++k)
          target[k * output.channel_stride] = std::int32_t(row[k]);
    } else {
      float *const target = output.numbers + to;
      const float *const scale = output.scale + n, *const bias = output.bias + n;
      if (output.channel_stride == 1)
        for (std::int64_t k = 0; k < count; ++k)
          target[k] = float(std::int32_t(row[k])) * scale[k] + bias[k];
      else
        for (std::int64_t k = 0; k < count; ++k)
          target[k * output.channel_stride] = float(std::int32_t(row[k])) * scale[k] + bias[k];
    }
  }
}

}  // namespace

bool mixed_band(const MixedProduct &product, const MixedGeometry &geometry,
                const MixedInput &input, const MixedOutput &output, std::int64_t first,
                std::int64_t last) {
  static thread_local Scratch scratch;
  const std::int64_t in_first = first * geometry.stride_y - geometry.top;
  const std::int64_t rows =
      (last - 1 - first) * geometry.stride_y + (geometry.kernel_height - 1) * geometry.dilation_y + 1;
  const std::int64_t columns = (geometry.out_width - 1) * geometry.stride_x +
                               (geometry.kernel_width - 1) * geometry.dilation_x + 1;
  const std::int64_t bytes = product.position_bytes;
  scratch.operands.resize(std::size_t(rows * columns * bytes + 64));
  scratch.constants.assign(std::size_t(rows * columns), 0);
  scratch.codes.resize(std::size_t(product.channels + 1));
  scratch.sorted.resize(product.order.size() + 4);
  std::uint8_t *const operands = scratch.operands.get();
  std::int32_t *const constants = scratch.constants.data();
  int bad = 0;
  // Columns of the image that some output meets.
  const std::int64_t inside = std::clamp<std::int64_t>(geometry.left, 0, columns);
  const std::int64_t beyond =
      std::clamp<std::int64_t>(geometry.width + geometry.left, inside, columns);
  for (std::int64_t y = 0; y < rows; ++y) {
    std::uint8_t *const row = operands + y * columns * bytes;
    const std::int64_t image_y = in_first + y;
    if (image_y < 0 || image_y >= geometry.height || inside == beyond) {
      std::memset(row, 0, std::size_t(columns * bytes));
      continue;
    }
    std::memset(row, 0, std::size_t(inside * bytes));
    std::memset(row + beyond * bytes, 0, std::size_t((columns - beyond) * bytes));
    const std::int64_t start =
        image_y * input.row_stride + (inside - geometry.left) * input.column_stride;
    const auto pack = input.channel_stride == 1 ? pack_rows : pack_planes;
    pack(product, input, start, beyond - inside, row + inside * bytes,
         constants + y * columns + inside, &scratch, &bad);
  }
  if (bad) return false;

  std::vector<std::int64_t> taps, steps;
  for (std::int64_t y = 0; y < geometry.kernel_height; ++y)
    for (std::int64_t x = 0; x < geometry.kernel_width; ++x) {
      steps.push_back(y * geometry.dilation_y * columns + x * geometry.dilation_x);
      taps.push_back(steps.back() * bytes);
    }
  const std::int64_t count = (last - first) * geometry.out_width;
  alignas(64) std::uint32_t sums[4 * block_outputs];
  for (std::int64_t n = 0; n < product.outputs; n += block_outputs) {
    for (std::int64_t p = 0; p < count; p += 4) {
      const int m = int(std::min<std::int64_t>(4, count - p));
      const std::uint8_t *positions[4];
      for (int r = 0; r < m; ++r) {
        const std::int64_t y = (p + r) / geometry.out_width, x = (p + r) % geometry.out_width;
        const std::int64_t place = y * geometry.stride_y * columns + x * geometry.stride_x;
        positions[r] = operands + place * bytes;
        std::uint32_t constant = 0;
        for (const std::int64_t step : steps) constant += std::uint32_t(constants[place + step]);
        std::uint32_t *const row = sums + r * block_outputs;
        std::fill(row, row + block_outputs, constant);
        if (!product.tap_sums.empty())
          add_tap_sums(product, geometry, (first + y) * geometry.stride_y - geometry.top,
                       x * geometry.stride_x - geometry.left, n, row);
      }
      add_tile(product, positions, m, taps.data(), n, sums);
      write_tile(output, geometry.out_width, first * geometry.out_width + p, m, n,
                 std::min<std::int64_t>(block_outputs, product.outputs - n), sums);
    }
  }
  return true;
}

}  // namespace LATEWOOD_ISA
}  // namespace latewood
