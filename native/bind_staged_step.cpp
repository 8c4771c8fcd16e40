#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "staged_step.hpp"
#include "tensors.hpp"

namespace nb = nanobind;
using namespace latewood;

namespace {

// Positions along one axis, run by run: where each ends, and the rank of its stage.
struct Runs {
  std::vector<std::int64_t> ends, ranks;
};

// Rows of one tensor that are treated alike.
struct Work {
  StageMemory memory;
  std::int64_t row;  // elements
  std::int64_t begin, end;
  std::size_t stretches;  // which of all lists
};

Runs runs(const std::array<std::vector<std::int64_t>, 2> &given, std::int64_t size,
          std::size_t ranks) {
  Runs found{given[0], given[1]};
  require(found.ends.size() == found.ranks.size() && !found.ends.empty(), "lists differ in length");
  std::int64_t before = 0;
  for (std::size_t k = 0; k < found.ends.size(); ++k) {
    require(found.ends[k] >= before, "runs overlap");
    require(found.ranks[k] >= 0 && std::size_t(found.ranks[k]) < ranks, "a stage has no numbers");
    before = found.ends[k];
  }
  require(before == size, "runs do not cover their axis");
  return found;
}

// The stretches of a row of the rank: its own stage, or that of a column if it is younger.
std::vector<Stretch> stretches(std::int64_t rank, const Runs &columns, std::int64_t inner,
                               const std::vector<StageNumbers> &numbers) {
  std::vector<Stretch> found;
  std::int64_t before = 0;
  for (std::size_t k = 0; k < columns.ends.size(); ++k) {
    const std::int64_t end = columns.ends[k] * inner;
    const StageNumbers *const own = &numbers[std::max(rank, columns.ranks[k])];
    if (!found.empty() && !std::memcmp(found.back().numbers, own, sizeof *own))
      found.back().end = end;
    else if (end > before) found.push_back({before, end, own});
    before = end;
  }
  return found;
}

using AxisRuns = std::array<std::vector<std::int64_t>, 2>;

// Every tensor is rows of columns of `inner` elements. Before anything is written it refuses what
// does not fit.
void step(nb::list parameters, nb::list gradients, nb::list firsts, nb::list seconds,
          const std::vector<AxisRuns> &rows, const std::vector<AxisRuns> &columns,
          const std::vector<std::vector<double>> &numbers, int threads) {
  constexpr std::size_t width = sizeof(StageNumbers) / sizeof(float);
  const std::size_t count = parameters.size();
  require(gradients.size() == count && firsts.size() == count && seconds.size() == count &&
              rows.size() == count && columns.size() == count && numbers.size() == count,
          "lists differ in length");
  const std::int32_t single = tensor_types().float32;
  std::vector<std::vector<StageNumbers>> tables(count);
  std::vector<std::vector<Stretch>> lists;
  std::vector<Work> work;
  for (std::size_t t = 0; t < count; ++t) {
    TensorView view;
    require(view_tensor(parameters[t], &view) && view.dim > 0,
            "not a tensor whose memory a kernel can work on");
    const std::int64_t n = view.numel, height = view.sizes[0];
    const std::int64_t breadth = view.dim > 1 ? view.sizes[1] : 1;
    const auto memory = [&](nb::handle tensor) {
      TensorView other;
      require(view_tensor(tensor, &other) && same_shape(view, other), "tensors are not alike");
      return elements<float>(tensor, single, n);
    };
    StageMemory of{elements<float>(parameters[t], single, n), memory(gradients[t]), nullptr, nullptr};
    if (!firsts[t].is_none()) of.first = memory(firsts[t]);
    if (!seconds[t].is_none()) of.second = memory(seconds[t]);
    require(!firsts[t].is_none() || seconds[t].is_none(), "the rule needs both moments");
    require(numbers[t].size() % width == 0, "a row of numbers is too short");
    tables[t].resize(numbers[t].size() / width);
    for (std::size_t k = 0; k < tables[t].size(); ++k) {
      const double *const n = &numbers[t][k * width];
      tables[t][k] = {float(n[0]), float(n[1]), float(n[2]), float(n[3]), float(n[4]),
                      float(n[5]), float(n[6]), float(n[7]), float(n[8]), float(n[9])};
    }
    const Runs of_rows = runs(rows[t], height, tables[t].size());
    const Runs of_columns = runs(columns[t], breadth, tables[t].size());
    if (n == 0) continue;
    const std::int64_t row = n / height, inner = row / breadth;
    const std::int64_t at_once = std::max<std::int64_t>(1, block_size / 4 / row);
    std::int64_t before = 0;
    for (std::size_t k = 0; k < of_rows.ends.size(); ++k) {
      lists.push_back(stretches(of_rows.ranks[k], of_columns, inner, tables[t]));
      for (; before < of_rows.ends[k]; before += at_once)
        work.push_back({of, row, before, std::min(before + at_once, of_rows.ends[k]),
                        lists.size() - 1});
      before = of_rows.ends[k];
    }
  }
  std::int64_t total = 0;
  for (const Work &part : work) total += (part.end - part.begin) * part.row;
  const int helpful = int(std::min<std::int64_t>(threads, 1 + total / block_size));
  const nb::gil_scoped_release unlocked;
  for_each_block(std::int64_t(work.size()) * block_size, helpful,
                 [&](std::int64_t i, std::int64_t, std::int64_t) {
    const Work &part = work[i];
    const std::vector<Stretch> &list = lists[part.stretches];
    LATEWOOD_DISPATCH(staged_rows, part.memory, list.data(), list.size(), part.row, part.begin,
                      part.end);
  });
}

}  // namespace

void bind_staged_step(nb::module_ &module) { module.def("staged_step", &step); }
