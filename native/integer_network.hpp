// A whole packed network as steps over buffers of one image, run in one call. Numbers are float32
// planes (channels, rows, columns); codes are planes of bytes. What every step computes is said by
// its oracle in Python, to the bit.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "mixed_products.hpp"

namespace latewood {

// lookup: four bits of codes of a position are an index into 16 sums of products, signed bytes.
// bytes: pairs of unsigned inputs times signed weights, words: the same with 16 bits.
enum class LaneMethod : int { lookup, bytes, words };

// Channels whose products lie on one grid. Positions are lanes, so that borders are bytes whose
// products are 0: index 128 of a lookup, and the input that stands for 0 elsewhere.
struct LaneSegment {
  LaneMethod method;
  int in_plane;              // channels of one plane
  int position_bytes;        // 1, 2 or 4 of one plane
  int shift;                 // of its sums in those of the product
  std::uint8_t pad;          // each byte of a position outside the image
  std::int64_t planes, steps;  // steps: planes by taps
  std::int64_t narrow;       // steps until the narrow sums may be full
  std::vector<std::int32_t> channels;  // by place, -1 for none
  std::vector<std::int32_t> gain, base;  // by place: what stands for the code u is gain u + base
  AlignedBytes weights;      // by four outputs, step and output: 16 or 4 bytes
};

struct LaneProduct {
  std::vector<LaneSegment> segments;
  std::vector<std::int32_t> constants;  // by output
};

struct NetworkBuffer {
  std::int64_t channels, rows, columns;
  bool codes;
  std::vector<std::uint8_t> bits;  // of codes, by channel
  std::int64_t offset;             // in the memory of one image, in bytes
  std::int64_t plane() const { return rows * columns; }
  std::int64_t count() const { return channels * plane(); }
  std::int64_t bytes() const { return count() * (codes ? 1 : 4); }
};

// How numbers, or sums where there are thresholds, become the codes of a reader.
struct NetworkEncoder {
  int target;
  float alpha, offset;
  bool counts_sums;
  std::vector<std::int32_t> thresholds;  // by channel: three, of which 1 bit uses the first
  std::vector<std::int32_t> signs;
  float cut, cuts[3];                    // of 1 and of 2 bits, among numbers
  std::vector<float> scale, half;        // by channel: cells in a unit, half of their number
};

struct NetworkEpilogue {
  std::vector<float> factor, addend;  // empty for none
  int residual = -1, target = -1;     // buffers
  float low = -std::numeric_limits<float>::infinity();
  float high = std::numeric_limits<float>::infinity();
  std::vector<NetworkEncoder> encoders;
};

enum class NetworkKind : int { packed, lanes, floating, largest, average, mean, numbers, flatten };

struct NetworkStep {
  NetworkKind kind;
  int source, target;  // target: of flatten
  MixedGeometry geometry;
  NetworkEpilogue epilogue;
  const MixedProduct *product = nullptr;  // packed; kept alive by the owner of the network
  LaneProduct lanes;
  std::vector<float> scale, bias;  // of sums; bias of floating, empty for none
  std::vector<float> weight;       // floating: (outputs, inputs of a group, taps)
  std::vector<float> transposed;   // floating on vectors: (inputs, outputs)
  std::int64_t groups = 1;
  bool counts_padding = false;
  std::int64_t divisor = 0;        // of averages; 0 for the count
  std::int64_t after_rows = 0, after_columns = 0;  // padding behind the image, of averages
};

struct Network {
  std::vector<NetworkBuffer> buffers;
  std::vector<NetworkStep> steps;
  int source = -1, target = -1;
  std::int64_t image_bytes = 0;  // of all buffers of one image
};

}  // namespace latewood

// Runs a network on some images, whose numbers lie one after the other. False if a number that has
// to become a code is NaN.
#define LATEWOOD_NETWORK_KERNELS                                                        \
  bool run_network(const Network &network, const float *inputs, float *outputs,         \
                   std::int64_t images);

LATEWOOD_FOR_EACH_ISA(LATEWOOD_NETWORK_KERNELS)
