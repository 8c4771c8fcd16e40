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

#include "mixed_weights.hpp"
#include "tensors.hpp"

namespace nb = nanobind;
using namespace latewood;

namespace {

// `widths_by_table`: the widths whose inputs become tables.
std::unique_ptr<MixedProduct> prepare(nb::handle codes, nb::handle mask, nb::handle weight_bits,
                                      nb::handle input_bits, bool never_negative,
                                      std::int64_t outputs, std::int64_t channels,
                                      std::int64_t taps,
                                      const std::vector<int> &widths_by_table) {
  require_product_size(outputs, channels, taps);
  const TensorTypes &types = tensor_types();
  const std::int64_t count = outputs * channels * taps;
  const CodedWeights weights{
      elements<std::uint8_t>(codes, types.uint8, count),
      mask.is_none() ? nullptr : elements<std::uint8_t>(mask, types.boolean, count),
      elements<std::uint8_t>(weight_bits, types.uint8, channels),
      elements<std::uint8_t>(input_bits, types.uint8, channels),
      never_negative,
      outputs,
      channels,
      taps};
  return mixed_product(weights, widths_by_table);
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
