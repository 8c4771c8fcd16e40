// Sums of products of codes of 1 to 8 bits, exact in int32. The channels of one width, or of several
// on a common grid, are a segment; all segments add to the same sums.
#pragma once

#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "cpu.hpp"

namespace latewood {

// Memory that starts on a cache line.
class AlignedBytes {
 public:
  void resize(std::size_t n) {
    if (n <= size_) return;
    data_.reset(static_cast<std::uint8_t *>(::operator new(n, std::align_val_t{64})));
    size_ = n;
  }
  std::uint8_t *get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(std::uint8_t *data) const { ::operator delete(data, std::align_val_t{64}); }
  };
  std::unique_ptr<std::uint8_t, Free> data_;
  std::size_t size_ = 0;
};

// lookup: the inputs of four channels are a table of 16 bytes, the signs of four weights an index.
// bytes: weights above zero times signed inputs, on the common grid of up to 4 bits.
// words: the same on the grid of up to 8 bits, signed.
enum class ProductMethod : int { lookup, bytes, words };

struct ProductSegment {
  ProductMethod method;
  int bits;             // of the inputs of a lookup
  int planes;           // lookup: sign planes of a weight, of which the second counts 2^shift
  int shift;
  std::int32_t factor;  // what its partial sums count in the unit of the whole product
  std::int32_t constant;  // lookup: what a position inside the image adds
  std::int32_t offset;    // bytes: what was added to the weights
  std::int64_t begin;     // its first place in the order of the product
  std::int64_t groups;    // of 4 places (words: 2) at one tap
  std::int64_t where;     // of its operands in those of a position, in bytes
  std::int64_t narrow;    // groups until the narrow partial sums are full
  std::int64_t wide;      // how often these fit into the wide ones
  std::int64_t panel;     // bytes of the weights of 32 outputs (lookup) or of 8
  AlignedBytes weights;
};

struct MixedProduct {
  MixedProduct() = default;
  MixedProduct(const MixedProduct &) = delete;
  std::int64_t outputs, channels, taps, position_bytes;
  std::vector<std::uint8_t> bits;      // of the inputs, by channel
  std::vector<std::uint8_t> beyond;    // by channel: the bits that a code may not have
  std::vector<float> scale, half;      // by channel: cells in a unit, half of their number
  std::vector<std::int32_t> order;     // channel by place; `channels` stands for none
  bool in_order;                       // places are channels
  bool uniform;                        // all inputs have the same bits
  std::vector<std::int32_t> gain, base;  // by place: an input of code u is gain u - base on the grid
  // Of inputs whose values are never negative, by tap and output, and of all taps together: what
  // the weights there add for the half of the grid by which these are higher.
  std::vector<std::uint32_t> tap_sums, all_taps;
  std::vector<ProductSegment> segments;
};

// How taps meet positions. A matrix of inputs is an image of width 1.
struct MixedGeometry {
  std::int64_t height, width, out_height, out_width, kernel_height, kernel_width;
  std::int64_t stride_y, stride_x, top, left, dilation_y, dilation_x;
};

// One image: codes, or numbers that become codes of number / alpha - shift.
struct MixedInput {
  const std::uint8_t *codes;
  const float *numbers;
  float alpha, shift;
  std::int64_t channel_stride, row_stride, column_stride;
};

// Sums, or numbers sum * scale + bias by output.
struct MixedOutput {
  std::int32_t *sums;
  float *numbers;
  const float *scale, *bias;
  std::int64_t channel_stride, position_stride;
};

}  // namespace latewood

// Computes the rows [first, last) of the outputs of one image. False if a code is out of range or a
// number is NaN.
#define LATEWOOD_MIXED_KERNELS                                                            \
  bool mixed_band(const MixedProduct &product, const MixedGeometry &geometry,             \
                  const MixedInput &input, const MixedOutput &output, std::int64_t first, \
                  std::int64_t last);

LATEWOOD_FOR_EACH_ISA(LATEWOOD_MIXED_KERNELS)
