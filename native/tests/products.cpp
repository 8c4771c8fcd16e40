// Products of codes against plain sums, without Python: for instruction sets that only an emulator
// runs. Prints what it computed and with which vectors; returns 1 at the first difference.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <limits>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "integer_network.hpp"
#include "lane_products.hpp"
#include "mixed_weights.hpp"

using namespace latewood;

extern const char *const vectors;  // in vectors.cpp, of the instruction set of the kernels

namespace {

std::uint64_t state = 88172645463325252u;
std::int64_t below(std::int64_t n) {
  state ^= state << 13, state ^= state >> 7, state ^= state << 17;
  return std::int64_t(state % std::uint64_t(n));
}

// highest: all codes have all bits; opposite: weights have all bits, inputs none. Both fill the
// narrow sums as far as they go.
enum class Fill { random, highest, opposite };

// One product of codes. Bits of weights and inputs by channel; inputs (channels, rows, columns).
struct Case {
  MixedGeometry g;
  std::int64_t outputs, channels;
  std::vector<std::uint8_t> weight_bits, input_bits;
  bool masked, never_negative;
  Fill fill = Fill::random;
  std::vector<std::uint8_t> weights = {}, mask = {}, inputs = {};

  std::int64_t taps() const { return g.kernel_height * g.kernel_width; }
  std::int64_t plane() const { return g.height * g.width; }
  std::int64_t out_plane() const { return g.out_height * g.out_width; }
  CodedWeights coded() const {
    return {weights.data(), masked ? mask.data() : nullptr, weight_bits.data(), input_bits.data(),
            never_negative, outputs, channels, taps()};
  }

  std::uint8_t code(int bits, bool high) const {
    if (fill == Fill::random) return std::uint8_t(below(std::int64_t{1} << bits));
    return high ? std::uint8_t((1 << bits) - 1) : 0;
  }
  void draw() {
    for (std::int64_t n = 0; n < outputs; ++n)
      for (std::int64_t c = 0; c < channels; ++c)
        for (std::int64_t t = 0; t < taps(); ++t) {
          weights.push_back(code(weight_bits[c], true));
          mask.push_back(below(3) > 0);
        }
    for (std::int64_t c = 0; c < channels; ++c)
      for (std::int64_t i = 0; i < plane(); ++i)
        inputs.push_back(code(input_bits[c], fill == Fill::highest));
  }

  // The sums (outputs, rows, columns), term by term. Channels of 0 bits have left.
  std::vector<std::int32_t> sums() const {
    const int widest = *std::max_element(weight_bits.begin(), weight_bits.end()) +
                       *std::max_element(input_bits.begin(), input_bits.end());
    std::vector<std::int32_t> result;
    for (std::int64_t n = 0; n < outputs; ++n)
      for (std::int64_t y = 0; y < g.out_height; ++y)
        for (std::int64_t x = 0; x < g.out_width; ++x) {
          std::int64_t sum = 0;
          for (std::int64_t c = 0; c < channels; ++c) {
            const int w = weight_bits[c], v = input_bits[c];
            if (w == 0) continue;
            std::int64_t of_channel = 0;
            for (std::int64_t t = 0; t < taps(); ++t) {
              const std::int64_t row = y * g.stride_y - g.top + t / g.kernel_width * g.dilation_y;
              const std::int64_t column = x * g.stride_x - g.left + t % g.kernel_width * g.dilation_x;
              if (row < 0 || row >= g.height || column < 0 || column >= g.width) continue;
              const std::int64_t at = (n * channels + c) * taps() + t;
              if (masked && !mask[at]) continue;
              const int input = 2 * inputs[c * plane() + row * g.width + column];
              of_channel += (2 * weights[at] - ((1 << w) - 1)) *
                            (never_negative ? input + 1 : input - ((1 << v) - 1));
            }
            sum += of_channel * (1 << (widest - w - v));
          }
          result.push_back(std::int32_t(sum));
        }
    return result;
  }

  void describe() const {
    std::printf("outputs %lld, channels %lld, image %lldx%lld, kernel %lldx%lld, strides %lld %lld, "
                "borders %lld %lld, dilation %lld %lld, masked %d, never negative %d, fill %d\nbits",
                (long long)outputs, (long long)channels, (long long)g.height, (long long)g.width,
                (long long)g.kernel_height, (long long)g.kernel_width, (long long)g.stride_y,
                (long long)g.stride_x, (long long)g.top, (long long)g.left, (long long)g.dilation_y,
                (long long)g.dilation_x, masked, never_negative, int(fill));
    for (std::size_t c = 0; c < std::min<std::size_t>(weight_bits.size(), 64); ++c)
      std::printf(" %d:%d", weight_bits[c], input_bits[c]);
    std::printf("\n");
  }
};

std::set<std::string> seen;  // what ran
std::int64_t products = 0;

template <typename T, typename U>
bool equal(const Case &given, const char *what, const std::vector<T> &wanted,
           const std::vector<U> &found) {
  ++products;
  for (std::size_t i = 0; i < wanted.size(); ++i)
    if (!(double(wanted[i]) == double(found[i]))) {
      std::printf("%s: place %zu is %.9g, not %.9g\n", what, i, double(found[i]), double(wanted[i]));
      given.describe();
      return false;
    }
  return true;
}

// Every form of input and output, in bands.
bool check_mixed(const Case &given, const std::vector<std::int32_t> &sums,
                 const std::vector<int> &widths_by_table) {
  const auto product = mixed_product(given.coded(), widths_by_table);
  for (const ProductSegment &segment : product->segments) {
    std::string name[] = {"lookup", "bytes", "words"};
    std::string &form = name[int(segment.method)];
    if (segment.method == ProductMethod::lookup)
      form += " " + std::to_string(segment.bits) + " planes " + std::to_string(segment.planes);
    seen.insert("outputs: " + form);
  }
  const std::int64_t plane = given.plane(), out_plane = given.out_plane();
  const std::int64_t channels = given.channels, outputs = given.outputs;
  // Numbers that lie in the middle of the cells of their codes.
  constexpr float alpha = 0.5f, shift = 0.25f;
  std::vector<float> numbers(given.inputs.size()), scale, bias;
  for (std::int64_t i = 0; i < channels * plane; ++i) {
    const float half = product->half[i / plane];
    numbers[i] = ((given.inputs[i] + 0.5f - half) / product->scale[i / plane] + shift) * alpha;
  }
  for (std::int64_t n = 0; n < outputs; ++n) {
    scale.push_back(0.3f + 0.01f * float(n));
    bias.push_back(1.7f - float(n));
  }
  std::vector<float> scaled(sums.size());
  for (std::size_t i = 0; i < sums.size(); ++i)
    scaled[i] = float(sums[i]) * scale[i / out_plane] + bias[i / out_plane];
  for (const bool last : {false, true}) {
    std::vector<std::uint8_t> codes(given.inputs);
    std::vector<float> sources(numbers);
    for (std::int64_t c = 0; last && c < channels; ++c)
      for (std::int64_t i = 0; i < plane; ++i) {
        codes[i * channels + c] = given.inputs[c * plane + i];
        sources[i * channels + c] = numbers[c * plane + i];
      }
    for (const bool floating : {false, true}) {
      std::vector<std::int32_t> found_sums(sums.size(), -1), placed_sums(sums.size());
      std::vector<float> found(sums.size(), -1.0f), placed(sums.size());
      const MixedInput input{floating ? nullptr : codes.data(),
                             floating ? sources.data() : nullptr,
                             alpha,
                             shift,
                             last ? 1 : plane,
                             last ? given.g.width * channels : given.g.width,
                             last ? channels : 1};
      const MixedOutput output{floating ? nullptr : found_sums.data(),
                               floating ? found.data() : nullptr,
                               scale.data(),
                               bias.data(),
                               last ? 1 : out_plane,
                               last ? outputs : 1};
      const std::int64_t band = 1 + below(given.g.out_height);
      for (std::int64_t first = 0; first < given.g.out_height; first += band)
        if (!isa_baseline::mixed_band(*product, given.g, input, output, first,
                                      std::min(first + band, given.g.out_height))) {
          std::printf("codes were refused\n");
          given.describe();
          return false;
        }
      for (std::int64_t n = 0; n < outputs; ++n)
        for (std::int64_t i = 0; i < out_plane; ++i) {
          const std::int64_t to = n * out_plane + i, from = last ? i * outputs + n : to;
          placed_sums[to] = found_sums[from];
          placed[to] = found[from];
        }
      if (floating ? !equal(given, "outputs as lanes, numbers", scaled, placed)
                   : !equal(given, "outputs as lanes", sums, placed_sums))
        return false;
    }
    // A code that has one bit too many.
    const std::int64_t c = below(channels);
    if (last || given.weight_bits[c] == 0 || given.input_bits[c] == 8 || given.g.left ||
        given.g.top || given.g.stride_x > 1 || given.g.stride_y > 1)
      continue;
    codes[c * plane] = std::uint8_t(1 << given.input_bits[c]);
    std::vector<std::int32_t> found(sums.size());
    const MixedInput input{codes.data(), nullptr, alpha, shift, plane, given.g.width, 1};
    const MixedOutput output{found.data(), nullptr, nullptr, nullptr, out_plane, 1};
    seen.insert("a code out of range");
    if (isa_baseline::mixed_band(*product, given.g, input, output, 0, 1)) {
      std::printf("a code out of range was taken\n");
      given.describe();
      return false;
    }
  }
  return true;
}

// A network of two steps: numbers become codes, codes become sums.
bool check_lanes(const Case &given, const std::vector<std::int32_t> &sums) {
  // The sums leave as float32.
  for (const std::int32_t sum : sums)
    if (std::abs(std::int64_t{sum}) > std::int64_t{1} << 24) return true;
  Network network;
  const MixedGeometry &g = given.g;
  network.buffers = {{given.channels, g.height, g.width, false, {}, 0},
                     {given.channels, g.height, g.width, true, given.input_bits, 0},
                     {given.outputs, g.out_height, g.out_width, false, {}, 0}};
  network.source = 0;
  network.target = 2;
  network.image_bytes = (network.buffers[1].bytes() + 127) / 64 * 64;
  NetworkEncoder encoder{};
  encoder.target = 1;
  encoder.alpha = 1;
  encoder.cut = 0.25f;
  encoder.cuts[0] = -0.75f, encoder.cuts[1] = 0.25f, encoder.cuts[2] = 1.25f;
  std::vector<float> numbers, found(sums.size(), -1.0f);
  for (std::int64_t c = 0; c < given.channels; ++c) {
    const float half = float(1 << given.input_bits[c]) / 2;
    encoder.scale.push_back(1);
    encoder.half.push_back(half);
    for (std::int64_t i = 0; i < given.plane(); ++i)
      numbers.push_back(float(given.inputs[c * given.plane() + i]) - half + 0.5f);
  }
  network.steps.resize(2);
  network.steps[0].kind = NetworkKind::numbers;
  network.steps[0].source = 0;
  network.steps[0].epilogue.encoders = {encoder};
  NetworkStep &step = network.steps[1];
  step.kind = NetworkKind::lanes;
  step.source = 1;
  step.geometry = g;
  step.epilogue.target = 2;
  step.lanes = lane_product(given.coded(), g);
  step.scale.assign(std::size_t(given.outputs), 1.0f);
  step.bias.assign(std::size_t(given.outputs), 0.0f);
  for (const LaneSegment &segment : step.lanes.segments) {
    std::string name[] = {"lookup", "bytes", "words"};
    std::string &form = name[int(segment.method)];
    if (segment.method == LaneMethod::lookup) form += " of " + std::to_string(segment.in_plane);
    seen.insert("positions: " + form);
  }
  if (!isa_baseline::run_network(network, numbers.data(), found.data(), 1)) {
    std::printf("numbers were refused\n");
    given.describe();
    return false;
  }
  return equal(given, "positions as lanes", sums, found);
}

bool check(Case given) {
  given.draw();
  const std::vector<std::int32_t> sums = given.sums();
  static const std::vector<std::vector<int>> tables = {{1, 2}, {}, {1}, {2}};
  const bool narrow = std::any_of(given.input_bits.begin(), given.input_bits.end(),
                                  [](std::uint8_t bits) { return bits == 1 || bits == 2; });
  return check_mixed(given, sums, tables[0]) &&
         (!narrow || check_mixed(given, sums, tables[1 + below(3)])) && check_lanes(given, sums);
}

MixedGeometry geometry(std::int64_t height, std::int64_t width, std::array<std::int64_t, 2> kernel,
                       std::array<std::int64_t, 2> stride, std::array<std::int64_t, 2> border,
                       std::array<std::int64_t, 2> dilation) {
  const auto places = [](std::int64_t n, std::int64_t k, std::int64_t s, std::int64_t b,
                         std::int64_t d) { return (n + 2 * b - (k - 1) * d - 1) / s + 1; };
  return {height,    width,
          places(height, kernel[0], stride[0], border[0], dilation[0]),
          places(width, kernel[1], stride[1], border[1], dilation[1]),
          kernel[0], kernel[1], stride[0], stride[1], border[0], border[1], dilation[0], dilation[1]};
}

MixedGeometry matrix(std::int64_t rows) { return geometry(rows, 1, {1, 1}, {1, 1}, {0, 0}, {1, 1}); }

std::vector<std::uint8_t> same(std::int64_t channels, int bits) {
  return std::vector<std::uint8_t>(std::size_t(channels), std::uint8_t(bits));
}

bool check_widths() {
  for (int bits = 1; bits <= 8; ++bits)
    for (const bool masked : {false, true})
      for (const bool never_negative : {false, true})
        for (const Fill fill : {Fill::random, Fill::highest, Fill::opposite}) {
          const std::int64_t channels = 1 + below(90), outputs = 1 + below(80);
          if (!check({matrix(1 + below(9)), outputs, channels, same(channels, bits),
                      same(channels, bits), masked, never_negative, fill}))
            return false;
        }
  return true;
}

// Images, with weights and inputs of any widths side by side.
bool check_images() {
  for (int k = 0; k < 150; ++k) {
    const int most = k % 3 == 0 ? 2 : k % 3 == 1 ? 4 : 8;
    const std::int64_t channels = 1 + below(20), outputs = 1 + below(k % 10 ? 14 : 70);
    std::vector<std::uint8_t> weight_bits, input_bits;
    for (std::int64_t c = 0; c < channels; ++c) {
      const bool left = below(12) == 0;
      weight_bits.push_back(left ? 0 : std::uint8_t(1 + below(most)));
      // As wide as the weights, like those that the tables take, or of another width.
      input_bits.push_back(left || k % 2 ? weight_bits[c] : std::uint8_t(1 + below(most)));
    }
    const std::array<std::int64_t, 2> kernel{1 + below(3), 1 + below(3)},
        dilation{1 + below(2), 1 + below(2)};
    const std::array<std::int64_t, 2> image{5 + below(6), 5 + below(8)},
        stride{1 + below(3), 1 + below(3)}, border{below(3), below(3)};
    if (!check({geometry(image[0], image[1], kernel, stride, border, dilation), outputs, channels,
                weight_bits, input_bits, below(2) > 0, below(2) > 0}))
      return false;
  }
  return true;
}

// Convolutions of numbers, in groups: the products of a sum one after the other, each rounded.
bool check_numbers() {
  for (int k = 0; k < 20; ++k) {
    const std::int64_t groups = 1 + below(3), in_group = 1 + below(4), out_group = 1 + below(5);
    const MixedGeometry g = geometry(7 + k % 3, 5 + 4 * k, {3, 1 + k % 4}, {1 + k % 2, 1 + k % 3},
                                     {k % 3, k % 2}, {1, 1 + k % 2});
    const std::int64_t taps = g.kernel_height * g.kernel_width, plane = g.height * g.width;
    Network network;
    network.buffers = {{groups * in_group, g.height, g.width, false, {}, 0},
                       {groups * out_group, g.out_height, g.out_width, false, {}, 0}};
    network.source = 0;
    network.target = 1;
    network.steps.resize(1);
    NetworkStep &step = network.steps[0];
    step.kind = NetworkKind::floating;
    step.source = 0;
    step.geometry = g;
    step.groups = groups;
    step.epilogue.target = 1;
    const auto draw = [](std::int64_t n) {
      std::vector<float> numbers;
      for (; n; --n) numbers.push_back(float(below(1 << 24) - (1 << 23)) / 3e6f);
      return numbers;
    };
    step.weight = draw(groups * out_group * in_group * taps);
    const std::vector<float> input = draw(groups * in_group * plane);
    std::vector<float> wanted, found(std::size_t(network.buffers[1].count()), -1.0f);
    for (std::int64_t n = 0; n < groups * out_group; ++n)
      for (std::int64_t y = 0; y < g.out_height; ++y)
        for (std::int64_t x = 0; x < g.out_width; ++x) {
          float sum = 0;
          for (std::int64_t c = 0; c < in_group; ++c)
            for (std::int64_t t = 0; t < taps; ++t) {
              const std::int64_t row = y * g.stride_y - g.top + t / g.kernel_width * g.dilation_y;
              const std::int64_t column = x * g.stride_x - g.left + t % g.kernel_width * g.dilation_x;
              if (row < 0 || row >= g.height || column < 0 || column >= g.width) continue;
              const std::int64_t from = n / out_group * in_group + c;
              sum = sum + input[from * plane + row * g.width + column] *
                              step.weight[(n * in_group + c) * taps + t];
            }
          wanted.push_back(sum);
        }
    seen.insert("numbers");
    if (!isa_baseline::run_network(network, input.data(), found.data(), 1) ||
        !equal({g, groups * out_group, groups * in_group, {}, {}, false, false}, "numbers", wanted,
               found))
      return false;
  }
  return true;
}

// So many channels that partial sums of 8 and of 16 bits are emptied on the way.
bool check_long() {
  for (const Fill fill : {Fill::random, Fill::highest, Fill::opposite})
    for (const bool masked : {false, true}) {
      const std::int64_t most = masked ? 33'000 : 66'000;
      if (!check({matrix(2), 2, most, same(most, 1), same(most, 1), masked, false, fill}) ||
          !check({matrix(5), 2, 7'500, same(7'500, 2), same(7'500, 2), masked, false, fill}) ||
          !check({matrix(3), 2, 1'500, same(1'500, 4), same(1'500, 4), masked, true, fill}) ||
          !check({matrix(3), 2, 120, same(120, 8), same(120, 8), masked, false, fill}))
        return false;
    }
  return true;
}

}  // namespace

int main() {
  if (!check_widths() || !check_images() || !check_long() || !check_numbers()) return 1;
  std::printf("%lld products equal, vectors: %s\n", (long long)products, vectors);
  for (const std::string &what : seen) std::printf("%s\n", what.c_str());
}
