#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "faults.hpp"
#include "tensors.hpp"

namespace nb = nanobind;
using namespace latewood;

namespace {

int helpful(std::int64_t n, int threads) {
  return int(std::max<std::int64_t>(1, std::min<std::int64_t>(threads, n / block_size)));
}

FaultLimits checked(std::int64_t low, std::int64_t high) {
  require(0 <= low && low <= high && high <= 65536, "limits are not those of 16-bit lanes");
  return {std::int32_t(low), std::int32_t(high)};
}

FaultStream stream_of(const std::vector<std::uint64_t> &words) {
  require(words.size() == 4, "a stream has four words");
  return {words[0], words[1], words[2], words[3]};
}

void draw_states(nb::handle states, std::int64_t n, const std::vector<std::uint64_t> &stream,
                 std::int64_t low, std::int64_t high, int threads) {
  std::uint8_t *out = elements<std::uint8_t>(states, tensor_types().uint8, n);
  const FaultStream start = stream_of(stream);
  const FaultLimits limits = checked(low, high);
  const nb::gil_scoped_release unlocked;
  for_each_block(n, helpful(n, threads), [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    LATEWOOD_DISPATCH(faults_draw_states, out, begin, end - begin, limits, start);
  });
}

void read_drawn(nb::handle codes, nb::handle read, std::int64_t n,
                const std::vector<std::vector<std::int32_t>> &cells, int digit_bits, int offset,
                int width, const std::vector<std::uint64_t> &stream, std::int64_t low,
                std::int64_t high, int threads) {
  const std::int32_t *in = elements<std::int32_t>(codes, tensor_types().int32, n);
  std::int32_t *out = elements<std::int32_t>(read, tensor_types().int32, n);
  require(static_cast<const void *>(in) != static_cast<const void *>(out) || n == 0,
          "what is read needs memory of its own");
  require(!cells.empty() && cells.size() <= most_fault_cells, "too many cells, or none");
  require(1 <= digit_bits && digit_bits <= 16 && 1 <= width && width <= 24 && 0 <= offset &&
              offset <= 1 << 24,
          "a layout out of range");
  FaultCells held;
  held.count = int(cells.size());
  held.digit_mask = (1 << digit_bits) - 1;
  held.number_mask = (1 << width) - 1;
  held.offset = offset;
  for (int c = 0; c < held.count; ++c) {
    const auto &cell = cells[c];
    require(cell.size() == 4 && 0 <= cell[0] && cell[0] <= 2 && 0 <= cell[1] && cell[1] <= 23 &&
                (cell[2] == 1 || cell[2] == -1) && 0 <= cell[3] && cell[3] <= held.digit_mask &&
                cell[1] + digit_bits <= 30,
            "a cell out of range");
    held.source[c] = cell[0];
    held.shift[c] = cell[1];
    held.sign[c] = cell[2];
    held.stuck[c] = cell[3];
  }
  const FaultStream start = stream_of(stream);
  const FaultLimits limits = checked(low, high);
  const nb::gil_scoped_release unlocked;
  for_each_block(n, helpful(n, threads), [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    LATEWOOD_DISPATCH(faults_read_drawn, in, out, n, begin, end - begin, held, limits, start);
  });
}

}  // namespace

void bind_faults(nb::module_ &module) {
  module.def("faults_draw_states", &draw_states);
  module.def("faults_read_drawn", &read_drawn);
}
