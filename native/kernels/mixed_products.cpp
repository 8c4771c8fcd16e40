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

// The tables of n groups of four codes each, one code a byte, the first in the lowest. Bytes may lie
// anywhere, so that what does not change must not be read again in the loop.
template <int Bits>
inline void write_tables(const Tables &tables, const std::uint8_t *__restrict codes,
                         std::int64_t step, std::int64_t n, std::uint8_t *__restrict target,
                         std::int64_t stride) {
  for (std::int64_t g = 0; g < n; ++g) {
    std::uint32_t quad;
    std::memcpy(&quad, codes + step * g, 4);
    const std::uint8_t *const table = Bits == 1 ? tables.one[quad * 0x08040201u >> 24 & 15]
                                                : tables.two[quad * 0x40100401u >> 24];
    std::memcpy(target + stride * g, table, 16);
  }
}

struct Scratch {
  std::vector<std::uint8_t> codes, sorted;
  AlignedBytes operands;
  std::vector<std::int32_t> constants, row_constants;
  std::vector<std::uint32_t> quads;
  std::vector<const std::uint8_t *> positions;
};

// The codes of n numbers, of one channel or of n channels. Whether one was NaN.
template <bool OneChannel>
inline int quantise(const float *__restrict numbers, float alpha, float shift,
                    const float *__restrict scale, const float *__restrict half,
                    std::uint8_t *__restrict codes, std::int64_t n) {
  const float only_scale = scale[0], only_half = half[0];
  int nan = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const float number = numbers[i] / alpha - shift;
    nan |= number != number;
    const float middle = OneChannel ? only_half : half[i];
    const float cell = std::floor(number * (OneChannel ? only_scale : scale[i])) + middle;
    codes[i] = std::uint8_t(std::int32_t(std::max(0.0f, std::min(cell, 2 * middle - 1))));
  }
  return nan;
}

inline int beyond_bits(const std::uint8_t *__restrict codes, const std::uint8_t *__restrict beyond,
                       std::int64_t n) {
  std::uint8_t over = 0;
  for (std::int64_t k = 0; k < n; ++k) over |= codes[k] & beyond[k];
  return over;
}

inline void gather(const std::uint8_t *__restrict codes, const std::int32_t *__restrict order,
                   std::uint8_t *__restrict sorted, std::int64_t n) {
  for (std::int64_t j = 0; j < n; ++j) sorted[j] = codes[order[j]];
}

// Values on the grid, and their sum.
template <typename T>
inline std::int32_t write_values(const std::uint8_t *__restrict codes,
                                 const std::int32_t *__restrict gain,
                                 const std::int32_t *__restrict base, T *__restrict values,
                                 std::int64_t n) {
  std::int32_t total = 0;
  for (std::int64_t j = 0; j < n; ++j) {
    const std::int32_t value = gain[j] * codes[j] - base[j];
    values[j] = T(value);
    total += value;
  }
  return total;
}

// Positions one after the other, channels adjacent in memory.
void pack_rows(const MixedProduct &product, const MixedInput &input, std::int64_t start,
               std::int64_t n, std::uint8_t *operands, std::int32_t *constants, Scratch *scratch,
               int *bad) {
  const Tables &tables = all_tables();
  const std::int64_t channels = product.channels, places = std::int64_t(product.order.size());
  const std::int64_t stride = product.position_bytes;
  const bool in_order = product.in_order, uniform = product.uniform;
  std::uint8_t *const buffer = scratch->codes.data(), *const sorted = scratch->sorted.data();
  const float *const scale = product.scale.data(), *const half = product.half.data();
  const std::uint8_t *const beyond = product.beyond.data();
  const std::int32_t *const order = product.order.data(), *const gain = product.gain.data();
  const std::int32_t *const base = product.base.data();
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int64_t from = start + i * input.column_stride;
    const std::uint8_t *row = buffer;
    if (input.numbers) {
      const float *const numbers = input.numbers + from;
      *bad |= uniform ? quantise<true>(numbers, input.alpha, input.shift, scale, half, buffer, channels)
                      : quantise<false>(numbers, input.alpha, input.shift, scale, half, buffer, channels);
    } else {
      row = input.codes + from;
      *bad |= beyond_bits(row, beyond, channels);
      if (!in_order) std::memcpy(buffer, row, std::size_t(channels));
    }
    if (!in_order) {
      buffer[channels] = 0;
      gather(buffer, order, sorted, places);
      row = sorted;
    }
    std::int32_t constant = 0;
    for (const ProductSegment &segment : product.segments) {
      std::uint8_t *const target = operands + i * stride + segment.where;
      const std::int64_t begin = segment.begin, groups = segment.groups;
      if (segment.method == ProductMethod::lookup) {
        if (segment.bits == 1) write_tables<1>(tables, row + begin, 4, groups, target, 16);
        else write_tables<2>(tables, row + begin, 4, groups, target, 16);
        constant += segment.constant;
      } else if (segment.method == ProductMethod::bytes) {
        const std::int32_t total =
            write_values(row + begin, gain + begin, base + begin,
                         reinterpret_cast<std::int8_t *>(target), 4 * groups);
        constant -= segment.factor * segment.offset * total;
      } else {
        write_values(row + begin, gain + begin, base + begin,
                     reinterpret_cast<std::int16_t *>(target), 2 * groups);
      }
    }
    constants[i] = constant;
  }
}

// Four rows of bytes side by side.
inline void interleave(const std::uint8_t *__restrict p0, const std::uint8_t *__restrict p1,
                       const std::uint8_t *__restrict p2, const std::uint8_t *__restrict p3,
                       std::uint32_t *__restrict quads, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i)
    quads[i] = std::uint32_t(p0[i]) | std::uint32_t(p1[i]) << 8 | std::uint32_t(p2[i]) << 16 |
               std::uint32_t(p3[i]) << 24;
}

// Adds the values of one channel to the groups that it belongs to.
inline void place_values(const std::uint8_t *__restrict codes, std::int32_t gain, std::int32_t base,
                         std::uint32_t mask, int shift, std::int32_t weight,
                         std::uint32_t *__restrict quads, std::int32_t *__restrict constants,
                         std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int32_t value = gain * codes[i] - base;
    quads[i] |= (std::uint32_t(value) & mask) << shift;
    constants[i] -= weight * value;
  }
}

// Channels one after the other, positions adjacent in memory.
void pack_planes(const MixedProduct &product, const MixedInput &input, std::int64_t start,
                 std::int64_t n, std::uint8_t *operands, std::int32_t *constants,
                 Scratch *scratch, int *bad) {
  const Tables &tables = all_tables();
  const std::int64_t channels = product.channels, stride = product.position_bytes;
  scratch->codes.resize(std::max(scratch->codes.size(), std::size_t((channels + 1) * n)));
  scratch->quads.resize(std::size_t(n));
  std::uint8_t *const codes = scratch->codes.data();
  for (std::int64_t c = 0; c < channels; ++c) {
    const std::int64_t from = start + c * input.channel_stride;
    std::uint8_t *const row = codes + c * n;
    if (input.numbers) {
      if (product.bits[c])
        *bad |= quantise<true>(input.numbers + from, input.alpha, input.shift, &product.scale[c],
                               &product.half[c], row, n);
    } else {
      const std::uint8_t *const source = input.codes + from;
      std::uint8_t any = 0;
      for (std::int64_t i = 0; i < n; ++i) any |= source[i];
      std::memcpy(row, source, std::size_t(n));
      *bad |= any & product.beyond[c];
    }
  }
  std::fill(codes + channels * n, codes + (channels + 1) * n, std::uint8_t(0));
  std::fill(constants, constants + n, 0);
  std::uint32_t *const quads = scratch->quads.data();
  for (const ProductSegment &segment : product.segments) {
    const bool lookup = segment.method == ProductMethod::lookup;
    const bool bytes = segment.method == ProductMethod::bytes;
    const int in_group = bytes || lookup ? 4 : 2;
    const std::int32_t weight = bytes ? segment.factor * segment.offset : 0;
    for (std::int64_t g = 0; g < segment.groups; ++g) {
      const std::int64_t place = segment.begin + g * in_group;
      const std::int32_t *const order = product.order.data() + place;
      std::uint8_t *const target = operands + segment.where + (lookup ? 16 : 4) * g;
      if (lookup) {
        interleave(codes + order[0] * n, codes + order[1] * n, codes + order[2] * n,
                   codes + order[3] * n, quads, n);
        const std::uint8_t *const four = reinterpret_cast<const std::uint8_t *>(quads);
        if (segment.bits == 1) write_tables<1>(tables, four, 4, n, target, stride);
        else write_tables<2>(tables, four, 4, n, target, stride);
        continue;
      }
      std::fill(quads, quads + n, 0u);
      for (int k = 0; k < in_group; ++k)
        place_values(codes + order[k] * n, product.gain[place + k], product.base[place + k],
                     bytes ? 0xffu : 0xffffu, bytes ? 8 * k : 16 * k, weight, quads, constants, n);
      for (std::int64_t i = 0; i < n; ++i) std::memcpy(target + i * stride, quads + i, 4);
    }
    if (lookup)
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

// Some positions by up to 64 outputs, from sums with the outputs of a position together. Positions lie
// `step` elements apart, outputs `stride`: one of the two is 1.
template <typename T, typename Convert>
inline void write_block(const std::uint32_t *__restrict sums, std::int64_t positions,
                        std::int64_t outputs, T *__restrict target, std::int64_t step,
                        std::int64_t stride, const Convert &convert) {
  if (stride == 1) {
    for (std::int64_t p = 0; p < positions; ++p)
      for (std::int64_t k = 0; k < outputs; ++k)
        target[p * step + k] = convert(sums[p * block_outputs + k], k);
  } else {
    // A cache line of positions at a time.
    for (std::int64_t k = 0; k < outputs; ++k)
      for (std::int64_t p = 0; p < positions; ++p)
        target[k * stride + p * step] = convert(sums[p * block_outputs + k], k);
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
  scratch.codes.resize(std::max(scratch.codes.size(), std::size_t(product.channels + 1)));
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
  // Where the operands of each output position start, and what does not depend on the output.
  const std::int64_t count = (last - first) * geometry.out_width;
  scratch.positions.resize(std::size_t(count));
  scratch.row_constants.resize(std::size_t(count));
  for (std::int64_t p = 0, y = 0; y < last - first; ++y)
    for (std::int64_t x = 0; x < geometry.out_width; ++x, ++p) {
      const std::int64_t place = y * geometry.stride_y * columns + x * geometry.stride_x;
      std::uint32_t constant = 0;
      for (const std::int64_t step : steps) constant += std::uint32_t(constants[place + step]);
      scratch.positions[p] = operands + place * bytes;
      scratch.row_constants[p] = std::int32_t(constant);
    }
  constexpr std::int64_t block = 16;
  alignas(64) std::uint32_t sums[block * block_outputs];
  const bool higher = !product.tap_sums.empty();
  for (std::int64_t n = 0; n < product.outputs; n += block_outputs) {
    const std::int64_t left = std::min<std::int64_t>(block_outputs, product.outputs - n);
    std::int64_t y = first, x = 0;
    for (std::int64_t start = 0; start < count; start += block) {
      const std::int64_t end = std::min(start + block, count);
      for (std::int64_t p = start; p < end; ++p) {
        std::uint32_t *const row = sums + (p - start) * block_outputs;
        std::fill(row, row + block_outputs, std::uint32_t(scratch.row_constants[p]));
        if (higher)
          add_tap_sums(product, geometry, y * geometry.stride_y - geometry.top,
                       x * geometry.stride_x - geometry.left, n, row);
        if (++x == geometry.out_width) ++y, x = 0;
      }
      for (std::int64_t p = start; p < end; p += 4)
        add_tile(product, scratch.positions.data() + p, int(std::min<std::int64_t>(4, end - p)),
                 taps.data(), n, sums + (p - start) * block_outputs);
      const std::int64_t to = (first * geometry.out_width + start) * output.position_stride +
                              n * output.channel_stride;
      if (output.sums) {
        write_block(sums, end - start, left, output.sums + to, output.position_stride,
                    output.channel_stride,
                    [](std::uint32_t sum, std::int64_t) { return std::int32_t(sum); });
      } else {
        const float *const scale = output.scale + n, *const bias = output.bias + n;
        write_block(sums, end - start, left, output.numbers + to, output.position_stride,
                    output.channel_stride, [=](std::uint32_t sum, std::int64_t k) {
                      return float(std::int32_t(sum)) * scale[k] + bias[k];
                    });
      }
    }
  }
  return true;
}

}  // namespace LATEWOOD_ISA
}  // namespace latewood
