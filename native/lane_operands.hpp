// Operands of products with positions as lanes: planes of the image, and strips of them by tap.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "integer_network.hpp"

namespace latewood {
namespace LATEWOOD_ISA {
namespace {

// Codes of four channels of 1 bit, or of two of 2 bits, as one index.
inline void combine_four(const std::uint8_t *__restrict a, const std::uint8_t *__restrict b,
                         const std::uint8_t *__restrict c, const std::uint8_t *__restrict d,
                         std::uint8_t *__restrict plane, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    std::uint8_t index = std::uint8_t(c[i] + d[i] + d[i]);
    index = std::uint8_t(b[i] + index + index);
    plane[i] = std::uint8_t(a[i] + index + index);
  }
}

inline void combine_two(const std::uint8_t *__restrict a, const std::uint8_t *__restrict b,
                        std::uint8_t *__restrict plane, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    const std::uint8_t twice = std::uint8_t(b[i] + b[i]);
    plane[i] = std::uint8_t(a[i] + twice + twice);
  }
}

template <typename T>
inline void place_inputs(const std::uint8_t *__restrict codes, int gain, int base, int place,
                         T *__restrict plane, std::int64_t n) {
  constexpr int width = 4 * sizeof(T);
  constexpr T half = T((T(1) << width) - 1);
  if (place == 0) {
    for (std::int64_t i = 0; i < n; ++i) plane[i] = T(gain * codes[i] + base) & half;
  } else {
    for (std::int64_t i = 0; i < n; ++i)
      plane[i] = T(plane[i] | T(T(T(gain * codes[i] + base) & half) << width));
  }
}

// The operands of all positions of the image, plane by plane. `none` stands for a channel that is
// not there: its weights are 0.
inline void write_planes(const LaneSegment &segment, const std::uint8_t *codes,
                         const std::uint8_t *none, std::int64_t n, std::uint8_t *planes,
                         std::int64_t stride) {
  for (std::int64_t p = 0; p < segment.planes; ++p) {
    std::uint8_t *const plane = planes + p * stride;
    const std::int64_t place = p * segment.in_plane;
    const std::uint8_t *from[4];
    for (int k = 0; k < segment.in_plane; ++k) {
      const std::int32_t c = segment.channels[place + k];
      from[k] = c < 0 ? none : codes + c * n;
    }
    if (segment.method == LaneMethod::lookup) {
      if (segment.in_plane == 4) combine_four(from[0], from[1], from[2], from[3], plane, n);
      else combine_two(from[0], from[1], plane, n);
      continue;
    }
    for (int k = 0; k < 2; ++k) {
      const std::int32_t gain = segment.gain[place + k], base = segment.base[place + k];
      if (segment.method == LaneMethod::bytes)
        place_inputs(from[k], gain, base, k, reinterpret_cast<std::uint16_t *>(plane), n);
      else
        place_inputs(from[k], gain, base, k, reinterpret_cast<std::uint32_t *>(plane), n);
    }
  }
}

// Copies whole vectors: what is too much is written over by what follows.
template <int Bytes>
inline void copy_rows(const std::uint8_t *from, std::uint8_t *target, std::int64_t n) {
  for (std::int64_t i = 0; i < n; i += Bytes) std::memcpy(target + i, from + i, Bytes);
}

template <typename T>
inline void copy_every_second(const T *__restrict from, T *__restrict target, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) target[i] = from[2 * i];
}

inline void copy_strided(const std::uint8_t *from, std::uint8_t *target, std::int64_t n,
                         std::int64_t stride, int bytes) {
  if (stride == 2 && bytes == 1) {
    copy_every_second(from, target, n);
  } else if (stride == 2 && bytes == 2) {
    copy_every_second(reinterpret_cast<const std::uint16_t *>(from),
                      reinterpret_cast<std::uint16_t *>(target), n);
  } else {
    for (std::int64_t x = 0; x < n; ++x)
      for (int b = 0; b < bytes; ++b) target[x * bytes + b] = from[x * stride * bytes + b];
  }
}

// One strip of the band whose first row of outputs is `first`.
inline void write_strip(const MixedGeometry &g, const LaneStrip &strip, const std::uint8_t *plane,
                        int bytes, std::uint8_t pad, std::int64_t first, std::uint8_t *target) {
  const std::int64_t width = g.out_width * bytes;
  const std::int64_t left = strip.column * g.dilation_x - g.left;
  // The columns of the output whose tap is inside the image.
  const std::int64_t begin =
      std::min(g.out_width, left < 0 ? (-left + g.stride_x - 1) / g.stride_x : 0);
  const std::int64_t end = std::max(
      begin, std::min(g.out_width, g.width > left ? (g.width - left - 1) / g.stride_x + 1 : 0));
  const std::int64_t before = begin * bytes, behind = end * bytes;
  const auto row_of = [&](std::int64_t k) {
    return (first + k + strip.first) * g.stride_y + strip.phase;
  };
  if (g.stride_x == 1 && g.stride_y == 1 && g.out_width == g.width && begin < end) {
    // Rows lie one after the other on both sides: only what came from beside the image is wrong.
    const std::int64_t top = std::min(strip.rows, std::max<std::int64_t>(0, -row_of(0)));
    const std::int64_t bottom = std::max(top, std::min(strip.rows, g.height - row_of(0)));
    std::memset(target, pad, std::size_t(top * width));
    if (bottom > top)
      std::memcpy(target + top * width + before,
                  plane + (row_of(top) * g.width + left + begin) * bytes,
                  std::size_t((bottom - top) * width - before - (width - behind)));
    for (std::int64_t k = top; k < bottom && before; ++k)
      for (std::int64_t i = 0; i < before; ++i) target[k * width + i] = pad;
    for (std::int64_t k = top; k < bottom && behind < width; ++k)
      for (std::int64_t i = behind; i < width; ++i) target[k * width + i] = pad;
    std::memset(target + bottom * width, pad, std::size_t((strip.rows - bottom) * width));
    return;
  }
  for (std::int64_t k = 0; k < strip.rows; ++k, target += width) {
    const std::int64_t row = row_of(k);
    if (row < 0 || row >= g.height || begin == end) {
      std::memset(target, pad, std::size_t(width));
      continue;
    }
    const std::uint8_t *const from = plane + (row * g.width + left + begin * g.stride_x) * bytes;
    if (g.stride_x != 1) copy_strided(from, target + before, end - begin, g.stride_x, bytes);
    else if (width <= 16) copy_rows<16>(from, target + before, behind - before);
    else copy_rows<32>(from, target + before, behind - before);
    for (std::int64_t i = 0; i < before; ++i) target[i] = pad;
    for (std::int64_t i = behind; i < width; ++i) target[i] = pad;
  }
}

}  // namespace
}  // namespace LATEWOOD_ISA
}  // namespace latewood
