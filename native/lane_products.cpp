#include "lane_products.hpp"

#include <algorithm>
#include <array>

#include "require.hpp"

namespace latewood {

namespace {

constexpr std::int64_t in_block = 4;  // outputs that lie together

struct Laid {
  const CodedWeights &given;
  int widest_weight, widest_input;
  bool signed_inputs() const { return !given.never_negative; }

  bool present(std::int64_t n, std::int64_t c, std::int64_t t) const {
    return !given.mask || given.mask[(n * given.channels + c) * given.taps + t];
  }
  // The odd integer of a weight, 0 where it is masked.
  std::int32_t weight(std::int64_t n, std::int64_t c, std::int64_t t) const {
    if (n >= given.outputs || c < 0 || !present(n, c, t)) return 0;
    return 2 * given.codes[(n * given.channels + c) * given.taps + t] - ((1 << given.bits[c]) - 1);
  }
  std::int32_t input(std::int64_t c, int code) const {
    return given.never_negative ? 2 * code + 1 : 2 * code - ((1 << given.input_bits[c]) - 1);
  }
};

bool looked_up(const CodedWeights &weights, std::int64_t c) {
  const int x = weights.input_bits[c], w = weights.bits[c];
  if (x > 2) return false;
  const int most = weights.never_negative ? (2 << x) - 1 : (1 << x) - 1;
  return 4 / x * ((1 << w) - 1) * most <= 127;
}

// Steps until partial sums from some step that is a multiple of so many may leave [low, high]. The
// least and largest product of every output come step by step.
std::int64_t narrow_steps(const std::vector<std::array<std::int32_t, 2>> &extremes,
                          std::int64_t outputs, std::int64_t steps, std::int64_t low,
                          std::int64_t high) {
  const auto fits = [&](std::int64_t window) {
    for (std::int64_t n = 0; n < outputs; ++n) {
      std::int64_t least = 0, largest = 0;
      for (std::int64_t s = 0; s < steps; ++s) {
        if (s % window == 0) least = largest = 0;
        least += extremes[n * steps + s][0];
        largest += extremes[n * steps + s][1];
        if (least < low || largest > high) return false;
      }
    }
    return true;
  };
  // Whether a window fits does not depend on it in one direction alone, so that each is tried.
  for (std::int64_t window = std::min<std::int64_t>(steps, 127); window > 1; --window)
    if (fits(window)) return window;
  return 1;
}

void fill(const Laid &laid, LaneSegment *segment) {
  const CodedWeights &given = laid.given;
  const std::int64_t blocks = (given.outputs + in_block - 1) / in_block;
  const bool lookup = segment->method == LaneMethod::lookup;
  const int of_output = lookup ? 16 : 4;
  segment->steps = segment->planes * given.taps;
  segment->weights.resize(std::size_t(blocks * segment->steps * in_block * of_output));
  std::vector<std::array<std::int32_t, 2>> extremes(
      std::size_t(blocks * in_block * segment->steps));
  int widest = 0;
  for (const std::int32_t c : segment->channels)
    if (c >= 0) widest = std::max<int>(widest, given.bits[c]);
  std::uint8_t *target = segment->weights.get();
  for (std::int64_t block = 0; block < blocks; ++block)
    for (std::int64_t p = 0; p < segment->planes; ++p)
      for (std::int64_t t = 0; t < given.taps; ++t)
        for (std::int64_t k = 0; k < in_block; ++k, target += of_output) {
          const std::int64_t n = block * in_block + k;
          const std::int32_t *const channels = &segment->channels[p * segment->in_plane];
          auto &extreme = extremes[n * segment->steps + p * given.taps + t];
          if (lookup) {
            const int bits = 4 / segment->in_plane;
            for (int index = 0; index < 16; ++index) {
              std::int32_t sum = 0;
              for (int j = 0; j < segment->in_plane; ++j)
                if (channels[j] >= 0)
                  sum += laid.weight(n, channels[j], t) *
                         laid.input(channels[j], index >> (j * bits) & ((1 << bits) - 1));
              target[index] = std::uint8_t(std::int8_t(sum));
              extreme[0] = std::min(extreme[0], sum);
              extreme[1] = std::max(extreme[1], sum);
            }
            continue;
          }
          std::int32_t values[2];
          for (int j = 0; j < 2; ++j) {
            const std::int32_t c = channels[j];
            values[j] = c < 0 ? 0 : laid.weight(n, c, t) * (1 << (widest - given.bits[c]));
            // Unsigned inputs reach from 0, or from what stands for the least, to the largest.
            const std::int64_t place = p * 2 + j;
            const std::int32_t top =
                c < 0 ? 0
                      : segment->gain[place] * ((1 << given.input_bits[c]) - 1) + segment->base[place];
            const std::int32_t most = std::max<std::int32_t>(top, segment->pad);
            extreme[0] += std::min(values[j] * most, 0);
            extreme[1] += std::max(values[j] * most, 0);
          }
          if (segment->method == LaneMethod::bytes) {
            for (int j = 0; j < 4; ++j) target[j] = std::uint8_t(std::int8_t(values[j % 2]));
          } else {
            for (int j = 0; j < 2; ++j) {
              target[2 * j] = std::uint8_t(values[j] & 0xff);
              target[2 * j + 1] = std::uint8_t(values[j] >> 8 & 0xff);
            }
          }
        }
  if (lookup)
    segment->narrow = narrow_steps(extremes, given.outputs, segment->steps, -128, 127);
  else if (segment->method == LaneMethod::bytes)
    segment->narrow = narrow_steps(extremes, given.outputs, segment->steps, -32768, 32767);
  else
    segment->narrow = segment->steps;
}

void add_segment(const Laid &laid, LaneMethod method, const std::vector<std::int32_t> &channels,
                 LaneProduct *product) {
  if (channels.empty()) return;
  const CodedWeights &given = laid.given;
  product->segments.emplace_back();
  LaneSegment &segment = product->segments.back();
  segment.method = method;
  int weight_bits = 0, input_bits = 0;
  for (const std::int32_t c : channels) {
    weight_bits = std::max<int>(weight_bits, given.bits[c]);
    input_bits = std::max<int>(input_bits, given.input_bits[c]);
  }
  const bool lookup = method == LaneMethod::lookup;
  segment.in_plane = lookup ? 4 / input_bits : 2;
  segment.position_bytes = lookup ? 1 : method == LaneMethod::bytes ? 2 : 4;
  segment.shift = laid.widest_weight - weight_bits + laid.widest_input - input_bits;
  // What is added to signed inputs so that they become unsigned.
  const int offset =
      method == LaneMethod::bytes && laid.signed_inputs() ? 1 << input_bits : 0;
  segment.pad = lookup ? 128 : std::uint8_t(offset);
  segment.channels = channels;
  while (segment.channels.size() % std::size_t(segment.in_plane)) segment.channels.push_back(-1);
  segment.planes = std::int64_t(segment.channels.size()) / segment.in_plane;
  for (const std::int32_t c : segment.channels) {
    if (c < 0) {
      segment.gain.push_back(0);
      segment.base.push_back(0);
      continue;
    }
    const int step = 1 << (input_bits - given.input_bits[c]);
    segment.gain.push_back(2 * step);
    segment.base.push_back(laid.input(c, 0) * step + offset);
  }
  fill(laid, &segment);
  if (!offset) return;
  for (std::int64_t n = 0; n < given.outputs; ++n) {
    std::int32_t sum = 0;
    for (const std::int32_t c : channels)
      for (std::int64_t t = 0; t < given.taps; ++t)
        sum += laid.weight(n, c, t) * (1 << (weight_bits - given.bits[c]));
    product->constants[n] -= (sum * offset) * (1 << segment.shift);
  }
}

std::int64_t floor_division(std::int64_t a, std::int64_t b) { return a / b - (a % b < 0); }

constexpr std::int64_t strip_room = 32 << 10;  // bytes that stay in a near cache

void lay_strips(const MixedGeometry &g, LaneProduct *product) {
  const auto place_of = [&](std::int64_t dy, std::int64_t *phase) {
    const std::int64_t row = dy * g.dilation_y - g.top;
    const std::int64_t place = floor_division(row, g.stride_y);
    *phase = row - place * g.stride_y;
    return place;
  };
  // Rows beyond those of the outputs, summed over the phases that some tap has.
  std::vector<std::array<std::int64_t, 3>> phases;  // phase, first place, last place
  for (std::int64_t dy = 0; dy < g.kernel_height; ++dy) {
    std::int64_t phase;
    const std::int64_t place = place_of(dy, &phase);
    auto known = std::find_if(phases.begin(), phases.end(),
                              [&](const auto &entry) { return entry[0] == phase; });
    if (known == phases.end()) phases.push_back({phase, place, place});
    else (*known)[2] = place;
  }
  std::int64_t row_bytes = 0, halo = 0;
  for (const auto &phase : phases) halo += phase[2] - phase[1];
  for (const LaneSegment &segment : product->segments)
    row_bytes += segment.planes * g.kernel_width * g.out_width * segment.position_bytes;
  const std::int64_t room = strip_room / std::max<std::int64_t>(row_bytes, 1) - halo;
  const std::int64_t least = (32 + g.out_width - 1) / g.out_width;
  product->band = std::min(
      g.out_height, std::max(room / std::int64_t(std::max<std::size_t>(phases.size(), 1)), least));
  for (LaneSegment &segment : product->segments) {
    segment.offsets.assign(std::size_t(segment.steps), 0);
    const std::int64_t width = g.out_width * segment.position_bytes;
    for (std::int64_t p = 0; p < segment.planes; ++p)
      for (std::int64_t dx = 0; dx < g.kernel_width; ++dx)
        for (const auto &phase : phases) {
          const std::int64_t rows = product->band + phase[2] - phase[1];
          segment.strips.push_back({p, dx, phase[1], phase[0], rows});
          for (std::int64_t dy = 0; dy < g.kernel_height; ++dy) {
            std::int64_t of_tap;
            const std::int64_t place = place_of(dy, &of_tap);
            if (of_tap == phase[0])
              segment.offsets[(p * g.kernel_height + dy) * g.kernel_width + dx] =
                  std::int32_t(segment.strip_bytes + (place - phase[1]) * width);
          }
          segment.strip_bytes += rows * width;
          require(segment.strip_bytes < std::int64_t{1} << 31, "a product's image is too large");
        }
  }
}

}  // namespace

LaneProduct lane_product(const CodedWeights &weights, const MixedGeometry &geometry) {
  LaneProduct product;
  product.constants.assign(std::size_t((weights.outputs + in_block - 1) / in_block * in_block), 0);
  Laid laid{weights, 0, 0};
  std::vector<std::int32_t> tables[3][9], bytes, words;
  for (std::int64_t c = 0; c < weights.channels; ++c) {
    const int w = weights.bits[c], x = weights.input_bits[c];
    if (!w) continue;
    laid.widest_weight = std::max(laid.widest_weight, w);
    laid.widest_input = std::max(laid.widest_input, x);
    if (looked_up(weights, c)) tables[x][w].push_back(std::int32_t(c));
    else if (w <= 4 && x <= 4) bytes.push_back(std::int32_t(c));
    else words.push_back(std::int32_t(c));
  }
  add_segment(laid, LaneMethod::words, words, &product);
  add_segment(laid, LaneMethod::bytes, bytes, &product);
  for (int x = 2; x >= 1; --x)
    for (int w = 8; w >= 1; --w) add_segment(laid, LaneMethod::lookup, tables[x][w], &product);
  lay_strips(geometry, &product);
  return product;
}

}  // namespace latewood
