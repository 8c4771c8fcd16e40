#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <new>
#include <vector>

#include "inpainting.hpp"
#include "tensors.hpp"

namespace nb = nanobind;
using namespace latewood;

namespace {

// One image is one unit of work: its result depends neither on the others nor on the threads.
void ascend(nb::handle pixels, nb::handle starts, nb::handle masks, nb::handle steps,
            nb::handle periods, nb::handle degenerate, nb::handle inpainting,
            nb::handle diversity, std::int64_t n, int channels, int height, int width,
            const std::vector<float> &taps, int repetitions, int neighbours, double weight,
            std::int64_t iterations, int threads) {
  require(n >= 0 && channels > 0 && height > 0 && width > 0, "an image has no pixels");
  require(!taps.empty() && repetitions > 0 && iterations >= 0, "settings are out of range");
  require(neighbours >= 0 && neighbours <= 9, "settings are out of range");
  const InpaintingSettings settings{taps.data(), int(taps.size()) - 1, repetitions,
                                    neighbours,  weight,               iterations};
  const std::int64_t plane = std::int64_t(height) * width;
  const TensorTypes &types = tensor_types();
  const float *const images = elements<float>(pixels, types.float32, n * channels * plane);
  const std::uint8_t *const from = elements<std::uint8_t>(starts, types.boolean, n * plane);
  const InpaintingOutcome first{elements<std::uint8_t>(masks, types.boolean, n * plane),
                                elements<std::int64_t>(steps, types.int64, n),
                                elements<std::int64_t>(periods, types.int64, n),
                                elements<std::uint8_t>(degenerate, types.boolean, n),
                                elements<double>(inpainting, types.float64, n),
                                elements<double>(diversity, types.float64, n)};
  const nb::gil_scoped_release unlocked;
  std::atomic<bool> exhausted{false};
  for_each_block(n * block_size, threads, [&](std::int64_t i, std::int64_t, std::int64_t) {
    const InpaintingImage image{images + i * channels * plane, channels, height, width,
                                from + i * plane};
    const InpaintingOutcome outcome{first.mask + i * plane, first.steps + i,
                                    first.period + i,       first.degenerate + i,
                                    first.inpainting + i,   first.diversity + i};
    try {
      LATEWOOD_DISPATCH(inpainting_ascend, image, settings, outcome);
    } catch (const std::bad_alloc &) {
      exhausted = true;
    }
  });
  if (exhausted) throw std::bad_alloc();
}

}  // namespace

void bind_inpainting(nb::module_ &module) {
  module.def("inpainting_ascend", &ascend);
}
