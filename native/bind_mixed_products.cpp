#include <nanobind/nanobind.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#include "mixed_products.hpp"
#include "tensors.hpp"

namespace nb = nanobind;
using namespace latewood;

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

// `widths_by_table`: the widths whose inputs become tables. Inputs that are never negative stand for
// 2u + 1, others for 2u - (2^bits - 1).
std::unique_ptr<MixedProduct> prepare(nb::handle codes, nb::handle mask, nb::handle weight_bits,
                                      nb::handle input_bits, bool never_negative,
                                      std::int64_t outputs, std::int64_t channels,
                                      std::int64_t taps,
                                      const std::vector<int> &widths_by_table) {
  require(outputs > 0 && channels > 0 && taps > 0, "a product without weights");
  constexpr std::int64_t most = std::int64_t{1} << 31;
  require(outputs < most && channels < most && taps < most &&
              channels * taps < (most << 8) / outputs,
          "a product is too large");
  const TensorTypes &types = tensor_types();
  const std::int64_t count = outputs * channels * taps;
  Weights weights{elements<std::uint8_t>(codes, types.uint8, count),
                  mask.is_none() ? nullptr : elements<std::uint8_t>(mask, types.boolean, count),
                  elements<std::uint8_t>(weight_bits, types.uint8, channels),
                  channels,
                  taps,
                  0};
  const std::uint8_t *const width = elements<std::uint8_t>(input_bits, types.uint8, channels);
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
  if (never_negative) {
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

// Geometry in the order of MixedGeometry, after the number of images. A source of uint8 holds codes;
// one of float32 numbers, which are divided by `alpha` and lowered by `shift` first. A target of
// int32 takes the sums; one of float32 takes them times `scale` plus `bias`, by output.
// The form that computes: the best one of this machine, or one below it that passed its test.
std::atomic<InstructionSet> &form_in_use() {
  static std::atomic<InstructionSet> form{instruction_set()};
  return form;
}

const char *const form_names[] = {"baseline", "avx2", "avx512"};

// Those that this machine can run, the best one first.
std::vector<const char *> forms() {
  std::vector<const char *> names;
  for (int form = int(instruction_set()); form >= 0; --form) names.push_back(form_names[form]);
  return names;
}

void use_form(const char *name) {
  for (int form = 0; form <= int(instruction_set()); ++form)
    if (std::strcmp(name, form_names[form]) == 0) {
      form_in_use() = InstructionSet(form);
      return;
    }
  require(false, "this machine has no such form");
}

bool band_of(InstructionSet form, const MixedProduct &product, const MixedGeometry &geometry,
             const MixedInput &input, const MixedOutput &output, std::int64_t first,
             std::int64_t last) {
#if defined(LATEWOOD_X86)
  if (form == InstructionSet::avx512)
    return isa_avx512::mixed_band(product, geometry, input, output, first, last);
  if (form == InstructionSet::avx2)
    return isa_avx2::mixed_band(product, geometry, input, output, first, last);
#else
  (void)form;
#endif
  return isa_baseline::mixed_band(product, geometry, input, output, first, last);
}

bool run(const MixedProduct &product, nb::handle source, nb::handle target, nb::handle scale,
         nb::handle bias, float alpha, float shift, const std::vector<std::int64_t> &sizes,
         bool source_channels_last, bool target_channels_last, int threads) {
  require(sizes.size() == 13, "sizes are missing");
  for (std::size_t i = 0; i < sizes.size(); ++i)
    require(sizes[i] < (std::int64_t{1} << 40) && (sizes[i] > 0 || ((i == 9 || i == 10) && sizes[i] == 0)),
            "a size is out of range");
  const std::int64_t images = sizes[0];
  const MixedGeometry g{sizes[1], sizes[2], sizes[3],  sizes[4],  sizes[5],  sizes[6],
                        sizes[7], sizes[8], sizes[9], sizes[10], sizes[11], sizes[12]};
  require(g.kernel_height * g.kernel_width == product.taps, "another number of taps");
  const TensorTypes &types = tensor_types();
  const std::int64_t plane = g.height * g.width, out_plane = g.out_height * g.out_width;
  const std::int64_t read = images * product.channels * plane;
  const std::int64_t written = images * product.outputs * out_plane;
  TensorView view;
  require(view_tensor(source, &view) && view.numel == read, "the source has another size");
  require(view.dtype == types.uint8 || view.dtype == types.float32, "the source has another type");
  const bool codes = view.dtype == types.uint8;
  const void *const from = view.data;
  require(view_tensor(target, &view) && view.numel == written, "the target has another size");
  require(view.dtype == types.int32 || view.dtype == types.float32, "the target has another type");
  const bool sums = view.dtype == types.int32;
  void *const to = view.data;
  const float *const factors =
      sums ? nullptr : elements<float>(scale, types.float32, product.outputs);
  const float *const addends = sums ? nullptr : elements<float>(bias, types.float32, product.outputs);
  const std::int64_t channels = product.channels, outputs = product.outputs;
  const InstructionSet form = form_in_use();
  const nb::gil_scoped_release unlocked;
  // A band's operands stay in the cache, and there are bands enough for the threads.
  const std::int64_t row_bytes = g.stride_y * g.width * product.position_bytes;
  std::int64_t band = std::max<std::int64_t>(4 / std::min<std::int64_t>(g.out_width, 4),
                                             (std::int64_t{1} << 15) / std::max<std::int64_t>(row_bytes, 1));
  if (threads > 1) {
    const std::int64_t wanted = (images * g.out_height + threads - 1) / threads;
    const std::int64_t whole = g.out_width == 1 ? (wanted + 3) / 4 * 4 : wanted;
    band = std::max<std::int64_t>(1, std::min(band, whole));
  }
  if (g.out_width == 1) band = std::max<std::int64_t>(4, band / 4 * 4);
  band = std::min(band, g.out_height);
  const std::int64_t bands = (g.out_height + band - 1) / band;
  std::atomic<bool> exhausted{false}, bad{false};
  for_each_block(images * bands * block_size, threads,
                 [&](std::int64_t unit, std::int64_t, std::int64_t) {
    const std::int64_t image = unit / bands, first = unit % bands * band;
    const std::int64_t last = std::min(first + band, g.out_height);
    const std::int64_t read_from = image * channels * plane;
    const std::int64_t write_to = image * outputs * out_plane;
    const MixedInput input{codes ? static_cast<const std::uint8_t *>(from) + read_from : nullptr,
                           codes ? nullptr : static_cast<const float *>(from) + read_from,
                           alpha,
                           shift,
                           source_channels_last ? 1 : plane,
                           source_channels_last ? g.width * channels : g.width,
                           source_channels_last ? channels : 1};
    const MixedOutput output{sums ? static_cast<std::int32_t *>(to) + write_to : nullptr,
                             sums ? nullptr : static_cast<float *>(to) + write_to,
                             factors,
                             addends,
                             target_channels_last ? 1 : out_plane,
                             target_channels_last ? outputs : 1};
    try {
      if (!band_of(form, product, g, input, output, first, last)) bad = true;
    } catch (const std::bad_alloc &) {
      exhausted = true;
    }
  });
  if (exhausted) throw std::bad_alloc();
  return !bad;
}

}  // namespace

void bind_mixed_products(nb::module_ &module) {
  nb::class_<MixedProduct>(module, "MixedProduct");
  module.def("mixed_prepare", &prepare, nb::arg("codes"), nb::arg("mask").none(),
             nb::arg("weight_bits"), nb::arg("input_bits"), nb::arg("never_negative"),
             nb::arg("outputs"), nb::arg("channels"), nb::arg("taps"), nb::arg("widths_by_table"));
  module.def("mixed_forms", [] {
    nb::list names;
    for (const char *name : forms()) names.append(name);
    return names;
  });
  module.def("mixed_use", &use_form, nb::arg("form"));
  module.def("mixed_run", &run, nb::arg("product"), nb::arg("source"), nb::arg("target"),
             nb::arg("scale").none(), nb::arg("bias").none(), nb::arg("alpha"), nb::arg("shift"),
             nb::arg("sizes"), nb::arg("source_channels_last"), nb::arg("target_channels_last"),
             nb::arg("threads"));
}
