#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <vector>

#include "optim.hpp"

namespace nb = nanobind;
using namespace latewood;

namespace {

struct Chunk {
  std::size_t tensor;
  std::int64_t begin, end;
};

// Calls work(tensor, begin, end) for all chunks of all tensors and adds what it returns up, one
// sum a tensor, in a fixed order.
template <typename Work>
std::vector<double> for_each_chunk(const std::vector<std::int64_t> &sizes, int threads,
                                   const Work &work) {
  std::vector<Chunk> chunks;
  std::int64_t total = 0;
  for (std::size_t t = 0; t < sizes.size(); ++t) {
    total += sizes[t];
    for (std::int64_t begin = 0; begin < sizes[t]; begin += step_chunk)
      chunks.push_back({t, begin, std::min(sizes[t], begin + step_chunk)});
  }
  // A few blocks' worth of elements is done before a second thread has started.
  const int helpful = int(std::min<std::int64_t>(threads, 1 + total / block_size));
  std::vector<double> sums(chunks.size());
  for_each_block(std::int64_t(chunks.size()) * block_size, helpful,
                 [&](std::int64_t i, std::int64_t, std::int64_t) {
                   sums[i] = work(chunks[i].tensor, chunks[i].begin, chunks[i].end);
                 });
  std::vector<double> totals(sizes.size());
  for (std::size_t i = 0; i < chunks.size(); ++i) totals[chunks[i].tensor] += sums[i];
  return totals;
}

// Six integers a tensor: the addresses in the order of StepTensor, then which row of numbers.
std::vector<double> step(int rule, int type, int rates, const std::vector<std::uintptr_t> &tensors,
                         const std::vector<std::int64_t> &sizes, const std::vector<double> &numbers,
                         int threads) {
  constexpr std::size_t row = sizeof(StepNumbers) / sizeof(double);
  const auto address = [&](std::size_t t, int k) {
    return reinterpret_cast<void *>(tensors[6 * t + k]);
  };
  return for_each_chunk(sizes, threads, [&](std::size_t t, std::int64_t begin, std::int64_t end) {
    const StepTensor tensor{address(t, 0), address(t, 1), address(t, 2), address(t, 3),
                            address(t, 4)};
    const double *n = &numbers[row * tensors[6 * t + 5]];
    const StepNumbers of_tensor{n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9], n[10]};
    return LATEWOOD_DISPATCH(optim_step, StepRule(rule), StepType(type), StepRates(rates), tensor,
                             of_tensor, begin, end);
  });
}

std::vector<double> rate_sums(int type, const std::vector<std::uintptr_t> &moments,
                              const std::vector<std::int64_t> &sizes,
                              const std::vector<double> &corrections,
                              const std::vector<double> &eps, int threads) {
  return for_each_chunk(sizes, threads, [&](std::size_t t, std::int64_t begin, std::int64_t end) {
    return LATEWOOD_DISPATCH(optim_rate_sum, StepType(type),
                             reinterpret_cast<const void *>(moments[t]), corrections[t], eps[t],
                             begin, end);
  });
}

// Counts one step for each float32 count and returns the counts.
std::vector<double> advance(const std::vector<std::uintptr_t> &steps) {
  std::vector<double> counts;
  counts.reserve(steps.size());
  for (const std::uintptr_t step : steps) counts.push_back(*reinterpret_cast<float *>(step) += 1);
  return counts;
}

}  // namespace

void bind_optim(nb::module_ &module) {
  const auto unlocked = nb::call_guard<nb::gil_scoped_release>();
  module.def("optim_advance", &advance);
  module.def("optim_step", &step, unlocked);
  module.def("optim_rate_sums", &rate_sums, unlocked);
}
