#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "noise.hpp"
#include "tensors.hpp"

namespace nb = nanobind;
using namespace latewood;

// Sizes, whether channels come last in memory, and the key.
using Layout = std::tuple<std::int64_t, std::int64_t, std::int64_t, bool, std::int64_t>;

// Stretches of a tensor, fixed by its sizes alone, so that sums do not depend on the threads. Units
// that share channels (`shared`) each have sums of their own.
struct Units {
  std::int64_t count, length;
  bool shared;
};

static Units units_of(const NoiseLayout &layout) {
  const std::int64_t whole = layout.channels * layout.inner, n = layout.outer * whole;
  std::int64_t step = whole;
  bool shared = true;
  if (layout.channels == 1 && !layout.channels_last) {
    step = 1;
  } else if (layout.outer == 1 && !layout.channels_last) {
    step = layout.inner;
    shared = false;
  }
  const std::int64_t length = std::max<std::int64_t>(1, block_size / step) * step;
  const std::int64_t count = (n + length - 1) / length;
  return {count, length, shared && count > 1};
}

static NoiseLayout layout_of(const Layout &given) {
  const auto [outer, channels, inner, channels_last, key] = given;
  require(outer > 0 && channels > 0 && inner > 0, "sizes below 1");
  require(outer <= INT64_MAX / channels && outer * channels <= INT64_MAX / inner, "sizes too large");
  return {outer, channels, inner, channels_last,
          {std::uint32_t(key), std::uint32_t(std::uint64_t(key) >> 32)}};
}

// Float32 memory laid out as is said.
static float *arranged(nb::handle object, const NoiseLayout &layout) {
  const std::int64_t n = layout.outer * layout.channels * layout.inner;
  if (!layout.channels_last) return elements<float>(object, tensor_types().float32, n);
  TensorView view;
  require(view_tensor(object, &view) && view.dtype == tensor_types().float32,
          "not a float32 tensor whose memory a kernel can work on");
  require(view.dim > 2 && view.sizes[0] == layout.outer && view.sizes[1] == layout.channels &&
              view.numel == n,
          "a tensor has another size");
  std::int64_t stride = layout.channels;
  for (std::int64_t d = view.dim; d-- > 2; stride *= view.sizes[d])
    require(view.sizes[d] == 1 || view.strides[d] == stride, "a tensor has another layout");
  require((view.sizes[1] == 1 || view.strides[1] == 1) &&
              (view.sizes[0] == 1 || view.strides[0] == stride),
          "a tensor has another layout");
  return static_cast<float *>(view.data);
}

// The bounds, or none.
using Limits = std::optional<std::pair<float, float>>;

static NoiseRange range_of(nb::handle width, const Limits &limits, const NoiseLayout &layout) {
  const float *widths = elements<float>(width, tensor_types().float32, layout.channels);
  if (!limits) return {widths, 0, 0, false};
  return {widths, limits->first, limits->second, true};
}

template <typename Work>
static void for_each_unit(const Units &units, std::int64_t n, int threads, const Work &work) {
  for_each_block(units.count * block_size, threads,
                 [&](std::int64_t unit, std::int64_t, std::int64_t) {
    work(unit, unit * units.length, std::min(n, (unit + 1) * units.length));
  });
}

static void draw(std::int64_t key, nb::handle noise, int threads) {
  TensorView view;
  require(view_tensor(noise, &view), "not a tensor whose memory a kernel can work on");
  float *out = elements<float>(noise, tensor_types().float32, view.numel);
  const std::uint32_t words[2] = {std::uint32_t(key), std::uint32_t(std::uint64_t(key) >> 32)};
  const nb::gil_scoped_release unlocked;
  for_each_block(view.numel, threads, [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    LATEWOOD_DISPATCH(noise_draw, words, begin, end, out);
  });
}

static void forward(nb::handle values, nb::handle width, const Limits &limits, nb::handle noisy,
                    const Layout &given, int threads) {
  const NoiseLayout layout = layout_of(given);
  const float *x = arranged(values, layout);
  float *y = arranged(noisy, layout);
  const NoiseRange range = range_of(width, limits, layout);
  const Units units = units_of(layout);
  const std::int64_t n = layout.outer * layout.channels * layout.inner;
  const nb::gil_scoped_release unlocked;
  for_each_unit(units, n, threads, [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    LATEWOOD_DISPATCH(noise_forward, layout, range, x, y, begin, end);
  });
}

// Where nothing is clipped, `values` may be None; the values' gradient always may.
static void backward(nb::handle values, nb::handle width, const Limits &limits, nb::handle gradient,
                     nb::handle values_gradient, nb::handle width_gradient, const Layout &given,
                     int threads) {
  const NoiseLayout layout = layout_of(given);
  const NoiseRange range = range_of(width, limits, layout);
  const float *x = range.clips ? arranged(values, layout) : nullptr;
  const float *g = arranged(gradient, layout);
  float *dx = values_gradient.is_none() ? nullptr : arranged(values_gradient, layout);
  float *out = elements<float>(width_gradient, tensor_types().float32, layout.channels);
  const Units units = units_of(layout);
  const std::int64_t n = layout.outer * layout.channels * layout.inner;
  const nb::gil_scoped_release unlocked;
  std::vector<double> sums((units.shared ? units.count : 1) * layout.channels);
  for_each_unit(units, n, threads, [&](std::int64_t unit, std::int64_t begin, std::int64_t end) {
    double *own = sums.data() + (units.shared ? unit * layout.channels : 0);
    LATEWOOD_DISPATCH(noise_backward, layout, range, x, g, dx, own, begin, end);
  });
  for (std::int64_t channel = 0; channel < layout.channels; ++channel) {
    double total = 0;
    for (std::size_t k = channel; k < sums.size(); k += layout.channels) total += sums[k];
    out[channel] = float(total);
  }
}

// Mean square, least and largest of one element or more.
static std::tuple<double, double, double> extent(nb::handle values, int threads) {
  TensorView view;
  require(view_tensor(values, &view) && view.dtype == tensor_types().float32 && view.numel > 0,
          "not a float32 tensor whose memory a kernel can work on");
  const float *x = static_cast<const float *>(view.data);
  const nb::gil_scoped_release unlocked;
  std::vector<NoiseExtent> parts(block_count(view.numel));
  for_each_block(view.numel, threads,
                 [&](std::int64_t block, std::int64_t begin, std::int64_t end) {
    parts[block] = LATEWOOD_DISPATCH(noise_extent, x, begin, end);
  });
  NoiseExtent all = parts[0];
  for (std::size_t block = 1; block < parts.size(); ++block) {
    all.squares += parts[block].squares;
    all.least = std::min(all.least, parts[block].least);
    all.largest = std::max(all.largest, parts[block].largest);
  }
  // A NaN is the extent of all.
  if (std::isnan(all.squares)) all.least = all.largest = float(all.squares);
  return {all.squares / double(view.numel), all.least, all.largest};
}

void bind_noise(nb::module_ &module) {
  module.def("noise_draw", &draw);
  module.def("noise_extent", &extent);
  module.def("noise_forward", &forward, nb::arg("values"), nb::arg("width"),
             nb::arg("limits").none(), nb::arg("noisy"), nb::arg("layout"), nb::arg("threads"));
  module.def("noise_backward", &backward, nb::arg("values").none(), nb::arg("width"),
             nb::arg("limits").none(), nb::arg("gradient"), nb::arg("values_gradient").none(),
             nb::arg("width_gradient"), nb::arg("layout"), nb::arg("threads"));
}
