#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <new>
#include <vector>

#include "inpainting.hpp"

namespace nb = nanobind;
using namespace latewood;

namespace {

template <typename T>
T *at(std::uintptr_t address) {
  return reinterpret_cast<T *>(address);
}

// One image is one unit of work: its result depends neither on the others nor on the threads.
void ascend(std::uintptr_t pixels, std::uintptr_t starts, std::uintptr_t masks,
            std::uintptr_t steps, std::uintptr_t periods, std::uintptr_t degenerate,
            std::uintptr_t inpainting, std::uintptr_t diversity, std::int64_t n, int channels,
            int height, int width, const std::vector<float> &taps, int repetitions,
            int neighbours, double weight, std::int64_t iterations, int threads) {
  const InpaintingSettings settings{taps.data(), int(taps.size()) - 1, repetitions,
                                    neighbours,  weight,               iterations};
  const std::int64_t plane = std::int64_t(height) * width;
  std::atomic<bool> exhausted{false};
  for_each_block(n * block_size, threads, [&](std::int64_t i, std::int64_t, std::int64_t) {
    const InpaintingImage image{at<float>(pixels) + i * channels * plane, channels, height, width,
                                at<std::uint8_t>(starts) + i * plane};
    const InpaintingOutcome outcome{at<std::uint8_t>(masks) + i * plane,
                                    at<std::int64_t>(steps) + i,
                                    at<std::int64_t>(periods) + i,
                                    at<std::uint8_t>(degenerate) + i,
                                    at<double>(inpainting) + i,
                                    at<double>(diversity) + i};
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
  module.def("inpainting_ascend", &ascend, nb::call_guard<nb::gil_scoped_release>());
}
