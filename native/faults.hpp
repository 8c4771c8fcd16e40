// Integers in memory cells, some of which are stuck: lanes of a PCG64DXSM stream are compared with
// limits, and what the cells then hold is read back.
#pragma once

#include <cstdint>

#include "cpu.hpp"

namespace latewood {

// State and increment of the generator at the start of a stream, 128 bits each.
struct FaultStream {
  std::uint64_t state_high, state_low, increment_high, increment_low;
};

// Stuck at level 0 below `low`, at the highest level from `high` on.
struct FaultLimits {
  std::int32_t low, high;
};

constexpr int most_fault_cells = 32;

// What a cell holds of an integer q: a digit of max(q, 0), of max(-q, 0) or of (q + offset) & mask.
struct FaultCells {
  int count;
  std::int32_t source[most_fault_cells], shift[most_fault_cells], sign[most_fault_cells],
      stuck[most_fault_cells];
  std::int32_t digit_mask, offset, number_mask;
};

}  // namespace latewood

// Elements [begin, begin + count) of n; lane c n + i belongs to cell c of element i.
#define LATEWOOD_FAULTS_KERNELS                                                                 \
  void faults_read_drawn(const std::int32_t *codes, std::int32_t *read, std::int64_t n,         \
                         std::int64_t begin, std::int64_t count, const FaultCells &cells,       \
                         const FaultLimits &limits, const FaultStream &stream);                 \
  void faults_draw_states(std::uint8_t *states, std::int64_t begin, std::int64_t count,         \
                          const FaultLimits &limits, const FaultStream &stream);

LATEWOOD_FOR_EACH_ISA(LATEWOOD_FAULTS_KERNELS)
