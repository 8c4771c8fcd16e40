// The search of inpainting-error maximisation on one image.
#pragma once

#include <cstdint>

#include "cpu.hpp"

namespace latewood {

struct InpaintingSettings {
  const float *taps;  // centre, then outwards: reach + 1 of them
  int reach, repetitions, neighbours;  // neighbours 0: no smoothing
  double diversity;
  std::int64_t iterations;
};

struct InpaintingImage {
  const float *pixels;  // (channels, height, width)
  int channels, height, width;
  const std::uint8_t *start;  // 0 and 1
};

struct InpaintingOutcome {
  std::uint8_t *mask;
  std::int64_t *steps, *period;
  std::uint8_t *degenerate;
  double *inpainting, *diversity;
};

}  // namespace latewood

#define LATEWOOD_INPAINTING_KERNELS                                              \
  void inpainting_ascend(const InpaintingImage &image,                           \
                         const InpaintingSettings &settings,                     \
                         const InpaintingOutcome &outcome);

LATEWOOD_FOR_EACH_ISA(LATEWOOD_INPAINTING_KERNELS)
