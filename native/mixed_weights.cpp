#include "mixed_weights.hpp"

#include <algorithm>
#include <limits>

#include "require.hpp"

namespace latewood {

namespace {

// Codes (outputs, channels, taps) of weights, and which of them are there.
struct Weights {
  const std::uint8_t *codes, *mask, *bits;
  std::int64_t channels, taps;
  int most_on_grid;

  std::int64_t at(std::int64_t n, std::int64_t c, std::int64_t t) const {
    return (n * channels + c) * taps + t;
  }
  bool present(std::int64_t i) const { return !mask || mask[i]; }
  // The odd integer that a code stands for.
  std::int32_t odd(std::int64_t i, std::int64_t c) const {
    return 2 * codes[i] - ((1 << bits[c]) - 1);
  }
};

// Signs of four weights by group, panel, plane and output; two panels that are worked on together lie
// side by side, as one stream of whole cache lines. Without a channel the sign and the code of the
// input are 0, which counts nothing.
void fill_lookup(const MixedProduct &product, const Weights &weights, ProductSegment *segment) {
  std::uint8_t *target = segment->weights.get();
  const std::int64_t panels = (product.outputs + 31) / 32;
  const std::int64_t side_by_side = segment->planes == 1 ? 2 : 1;
  for (std::int64_t first = 0; first < panels; first += side_by_side)
    for (std::int64_t t = 0; t < product.taps; ++t)
      for (std::int64_t g = 0; g < segment->groups; ++g)
        for (std::int64_t panel = first; panel < std::min(first + side_by_side, panels); ++panel)
          for (int p = 0; p < segment->planes; ++p, target += 32)
            for (int k = 0; k < 32; ++k) {
              const std::int64_t n = 32 * panel + k / 2 + 16 * (k % 2);
              target[k] = 0;
              if (n >= product.outputs) continue;
              for (int j = 0; j < 4; ++j) {
                const std::int64_t c = product.order[segment->begin + 4 * g + j];
                if (c == product.channels) continue;
                const std::int64_t i = weights.at(n, c, t);
                // A weight that is not there has two signs, which add up to nothing.
                const int sign =
                    weights.present(i) ? weights.codes[i] >> (segment->shift ? p : 0) & 1 : p;
                target[k] |= std::uint8_t(sign << j);
              }
            }
}

void fill_grid(const MixedProduct &product, const Weights &weights, ProductSegment *segment) {
  const bool bytes = segment->method == ProductMethod::bytes;
  const int in_group = bytes ? 4 : 2;
  std::uint8_t *target = segment->weights.get();
  const std::int64_t panels = (product.outputs + 7) / 8;
  const auto value_at = [&](std::int64_t n, std::int64_t c, std::int64_t t) {
    if (n >= product.outputs || c == product.channels) return 0;
    const std::int64_t i = weights.at(n, c, t);
    if (!weights.present(i)) return 0;
    return int(weights.odd(i, c)) * (1 << (weights.most_on_grid - weights.bits[c]));
  };
  for (std::int64_t first = 0; first < panels; first += 2)
    for (std::int64_t t = 0; t < product.taps; ++t)
      for (std::int64_t g = 0; g < segment->groups; ++g)
        for (std::int64_t panel = first; panel < std::min(first + 2, panels); ++panel)
          for (int k = 0; k < 8; ++k)
            for (int j = 0; j < in_group; ++j) {
              const std::int64_t c = product.order[segment->begin + in_group * g + j];
              const int value = value_at(8 * panel + k, c, t);
              if (bytes) {
                *target++ = std::uint8_t(value + segment->offset);
              } else {
                *target++ = std::uint8_t(value & 0xff);
                *target++ = std::uint8_t(value >> 8 & 0xff);
              }
            }
}

// Appends the channels that are in it, widest first, in groups, with inputs on a grid of `most` bits.
ProductSegment &add_segment(MixedProduct *product, ProductMethod method, int most,
                            const std::vector<bool> &inside) {
  const int in_group = method == ProductMethod::words ? 2 : 4;
  const std::int64_t begin = std::int64_t(product->order.size());
  for (int bits = most; bits >= 1; --bits)
    for (std::int64_t c = 0; c < product->channels; ++c)
      if (inside[c] && product->bits[c] == bits) {
        product->order.push_back(std::int32_t(c));
        const std::int32_t step = 1 << (most - bits);
        product->gain.push_back(2 * step);
        product->base.push_back(((1 << bits) - 1) * step);
      }
  const std::int64_t count = std::int64_t(product->order.size()) - begin;
  while ((std::int64_t(product->order.size()) - begin) % in_group) {
    product->order.push_back(std::int32_t(product->channels));
    product->gain.push_back(0);
    product->base.push_back(0);
  }
  product->segments.emplace_back();
  ProductSegment &segment = product->segments.back();
  segment.method = method;
  segment.bits = most;
  segment.planes = 1;
  segment.shift = 0;
  segment.constant = std::int32_t(count);
  segment.offset = 0;
  segment.begin = begin;
  segment.groups = (std::int64_t(product->order.size()) - begin) / in_group;
  segment.where = product->position_bytes;
  // Whole tables lie at multiples of their size.
  const std::int64_t bytes = segment.groups * (method == ProductMethod::lookup ? 16 : 4);
  product->position_bytes += (bytes + 15) / 16 * 16;
  return segment;
}

}  // namespace

void require_product_size(std::int64_t outputs, std::int64_t channels, std::int64_t taps) {
  require(outputs > 0 && channels > 0 && taps > 0, "a product without weights");
  constexpr std::int64_t most = std::int64_t{1} << 31;
  require(outputs < most && channels < most && taps < most &&
              channels * taps < (most << 8) / outputs,
          "a product is too large");
}

std::unique_ptr<MixedProduct> mixed_product(const CodedWeights &given,
                                            const std::vector<int> &widths_by_table) {
  const std::int64_t outputs = given.outputs, channels = given.channels, taps = given.taps;
  require_product_size(outputs, channels, taps);
  Weights weights{given.codes, given.mask, given.bits, channels, taps, 0};
  const std::uint8_t *const width = given.input_bits;
  auto product = std::make_unique<MixedProduct>();
  product->outputs = outputs;
  product->channels = channels;
  product->taps = taps;
  product->position_bytes = 0;
  product->bits.assign(width, width + channels);
  int widest_weight = 0, widest = 0, widest_on_grid = 0;
  std::vector<bool> on_grid(channels), by_table[3];
  for (std::int64_t c = 0; c < channels; ++c) {
    const int bits = weights.bits[c];
    require(width[c] <= 8 && bits <= 8 && !width[c] == !bits, "bits are out of range");
    // Channels of 0 bits have left: their inputs are not read.
    product->beyond.push_back(bits ? std::uint8_t(~((1 << width[c]) - 1)) : 0);
    widest_weight = std::max(widest_weight, bits);
    widest = std::max<int>(widest, width[c]);
    product->scale.push_back(float(1 << width[c]) / 4);
    product->half.push_back(float(1 << width[c]) / 2);
  }
  for (std::int64_t n = 0; n < outputs; ++n)
    for (std::int64_t c = 0; c < channels; ++c)
      for (std::int64_t t = 0; t < taps; ++t)
        require(!weights.bits[c] || weights.codes[weights.at(n, c, t)] >> weights.bits[c] == 0,
                "a code is out of range");
  for (int w = 1; w <= 2; ++w) by_table[w].assign(channels, false);
  for (std::int64_t c = 0; c < channels; ++c) {
    const int w = width[c];
    if (w == 0) continue;
    // The two signs of a pruned weight take the place of a second plane.
    const bool table = w == weights.bits[c] && (w == 1 || (w == 2 && !weights.mask)) &&
                       std::count(widths_by_table.begin(), widths_by_table.end(), w) > 0;
    if (table) {
      by_table[w][c] = true;
    } else {
      on_grid[c] = true;
      widest_on_grid = std::max(widest_on_grid, w);
      weights.most_on_grid = std::max<int>(weights.most_on_grid, weights.bits[c]);
    }
  }
  if (widest_on_grid) {
    const bool bytes = widest_on_grid <= 4 && weights.most_on_grid <= 4;
    ProductSegment &segment =
        add_segment(product.get(), bytes ? ProductMethod::bytes : ProductMethod::words,
                    widest_on_grid, on_grid);
    segment.factor = 1 << (widest - widest_on_grid + widest_weight - weights.most_on_grid);
    const int top = (1 << weights.most_on_grid) - 1, input_top = (1 << widest_on_grid) - 1;
    segment.offset = bytes ? top + 1 : 0;
    segment.narrow = bytes ? 32767 / (2 * (2 * top + 1) * input_top)
                           : std::numeric_limits<std::int64_t>::max();
    segment.wide = std::numeric_limits<std::int64_t>::max();
    segment.panel = taps * segment.groups * 32;
    segment.weights.resize(std::size_t((outputs + 7) / 8 * segment.panel));
  }
  for (int w = 2; w >= 1; --w)
    if (std::count(by_table[w].begin(), by_table[w].end(), true)) {
      ProductSegment &segment = add_segment(product.get(), ProductMethod::lookup, w, by_table[w]);
      const int top = (1 << w) - 1;
      segment.planes = w == 2 || weights.mask ? 2 : 1;
      segment.shift = w == 2;
      const std::int32_t unit = 1 << (widest - w + widest_weight - w);
      // Halved where a weight is the mean of its two signs.
      segment.factor = unit * (weights.mask ? 1 : 2);
      segment.constant *= unit * top * top;
      segment.narrow = 255 / (4 * top);
      segment.wide = 65535 / (255 * (segment.planes == 1 ? 1 : 1 + (1 << segment.shift)));
      segment.panel = taps * segment.groups * segment.planes * 32;
      segment.weights.resize(std::size_t((outputs + 31) / 32 * segment.panel));
    }
  if (given.never_negative) {
    product->tap_sums.assign(std::size_t(taps * outputs), 0);
    product->all_taps.assign(std::size_t(outputs), 0);
    for (std::int64_t n = 0; n < outputs; ++n)
      for (std::int64_t c = 0; c < channels; ++c)
        for (std::int64_t t = 0; t < taps; ++t) {
          const std::int64_t i = weights.at(n, c, t);
          if (!weights.present(i) || !weights.bits[c]) continue;
          const std::uint32_t sum =
              std::uint32_t(weights.odd(i, c) * (1 << (widest_weight - weights.bits[c] + widest)));
          product->tap_sums[t * outputs + n] += sum;
          product->all_taps[n] += sum;
        }
  }
  product->uniform = std::count(width, width + channels, width[0]) == channels;
  product->in_order = std::int64_t(product->order.size()) == channels;
  for (std::size_t j = 0; j < product->order.size(); ++j)
    product->in_order = product->in_order && product->order[j] == std::int32_t(j);
  for (ProductSegment &segment : product->segments) {
    if (segment.method == ProductMethod::lookup) fill_lookup(*product, weights, &segment);
    else fill_grid(*product, weights, &segment);
  }
  return product;
}

}  // namespace latewood
