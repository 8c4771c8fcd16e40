#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <optional>
#include <vector>

#include "optim.hpp"
#include "tensors.hpp"

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

// Parameter, gradient and the three moments of every tensor, in the order of StepTensor.
using Columns = std::array<nb::list, 5>;

enum class Fit {
  fully,         // the step can be taken
  but_gradient,  // after the gradient is copied into the layout of its parameter
  not_at_all,
};

struct FittedTensor {
  StepTensor tensor;
  StepType type;
  std::int64_t size;
  bool on_cpu;
};

bool step_type(std::int32_t dtype, StepType *type) {
  const TensorTypes &types = tensor_types();
  if (dtype == types.float32) *type = StepType::float32;
  else if (dtype == types.float64) *type = StepType::float64;
  else if (dtype == types.bfloat16) *type = StepType::bfloat16;
  else if (dtype == types.float16) *type = StepType::float16;
  else return false;
  return true;
}

Fit fit(const Columns &columns, std::size_t t, FittedTensor *fitted) {
  TensorView parameter, gradient;
  if (!view_memory(columns[0][t], &parameter) || !step_type(parameter.dtype, &fitted->type))
    return Fit::not_at_all;
  const std::int32_t wide =
      fitted->type == StepType::float64 ? tensor_types().float64 : tensor_types().float32;
  void *moments[3] = {};
  for (int k = 0; k < 3; ++k) {
    const nb::handle moment = columns[k + 2][t];
    if (moment.is_none()) continue;
    TensorView view;
    if (!view_memory(moment, &view) || view.dtype != wide || !same_device(parameter, view) ||
        !same_shape(parameter, view) || !same_layout(parameter, view))
      return Fit::not_at_all;
    moments[k] = view.data;
  }
  fitted->tensor = {parameter.data, nullptr, moments[0], moments[1], moments[2]};
  fitted->size = parameter.numel;
  fitted->on_cpu = on_cpu(parameter);
  if (!view_memory(columns[1][t], &gradient)) return Fit::but_gradient;
  if (!same_shape(parameter, gradient) || gradient.dtype != parameter.dtype ||
      !same_device(parameter, gradient))
    return Fit::not_at_all;
  if (!same_layout(parameter, gradient)) return Fit::but_gradient;
  fitted->tensor.gradient = gradient.data;
  return Fit::fully;
}

void require_lengths(const Columns &columns, std::size_t n) {
  for (const nb::list &column : columns) require(column.size() == n, "lists differ in length");
}

// How each tensor fits, by the numbers of Fit; nothing if all of them fit fully and are on the CPU.
std::vector<int> fits(const Columns &columns) {
  const std::size_t n = columns[0].size();
  require_lengths(columns, n);
  std::vector<int> codes(n);
  bool fully = true;
  for (std::size_t t = 0; t < n; ++t) {
    FittedTensor fitted;
    codes[t] = int(fit(columns, t, &fitted));
    fully = fully && codes[t] == int(Fit::fully) && fitted.on_cpu;
  }
  return fully ? std::vector<int>() : codes;
}

// Where a count of steps lies; nowhere if it is not a float32 of its own.
float *count_of(nb::handle step) {
  TensorView view;
  if (!view_tensor(step, &view) || view.dim != 0 || view.dtype != tensor_types().float32)
    return nullptr;
  return static_cast<float *>(view.data);
}

// `rows` says which row of numbers is a tensor's, `keys` the key of the noise that a tensor is
// rounded with, or -1; nobody's if there are none. `steps` are counted up. Before anything is written
// it refuses what does not fit, and returns nothing where a gradient has to be copied first.
std::optional<std::vector<double>> step(int rule, int rates, const Columns &columns,
                                        const std::vector<std::size_t> &rows,
                                        const std::vector<double> &numbers,
                                        const std::vector<std::int64_t> &keys, nb::list steps,
                                        int threads) {
  constexpr std::size_t row = sizeof(StepNumbers) / sizeof(double);
  require(rule >= 0 && rule <= int(StepRule::bounded), "there is no such rule");
  require(rates >= 0 && rates <= int(StepRates::after), "there are no such rates");
  require_lengths(columns, rows.size());
  require(keys.empty() || keys.size() == rows.size(), "lists differ in length");
  std::vector<FittedTensor> fitted(rows.size());
  std::vector<std::int64_t> sizes(rows.size());
  bool fully = true;
  for (std::size_t t = 0; t < rows.size(); ++t) {
    require(rows[t] < numbers.size() / row, "there are no numbers of this row");
    const Fit found = fit(columns, t, &fitted[t]);
    require(found != Fit::not_at_all && fitted[t].on_cpu, "a tensor does not fit its parameter");
    fitted[t].tensor.key = keys.empty() ? -1 : keys[t];
    fully = fully && found == Fit::fully;
    const bool both = !columns[2][t].is_none() && !columns[3][t].is_none();
    require(both || StepRule(rule) == StepRule::momentum, "the rule needs both moments");
    sizes[t] = fitted[t].size;
  }
  if (!fully) return std::nullopt;
  std::vector<float *> counted;
  counted.reserve(steps.size());
  for (const nb::handle step : steps) {
    counted.push_back(count_of(step));
    require(counted.back(), "a count of steps is not a float32 of its own");
  }
  for (float *const count : counted) *count += 1;
  const nb::gil_scoped_release unlocked;
  return for_each_chunk(sizes, threads, [&](std::size_t t, std::int64_t begin, std::int64_t end) {
    const double *n = &numbers[row * rows[t]];
    const StepNumbers of_tensor{n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9], n[10]};
    return LATEWOOD_DISPATCH(optim_step, StepRule(rule), fitted[t].type, StepRates(rates),
                             fitted[t].tensor, of_tensor, begin, end);
  });
}

// Nothing if a moment is not memory of single or double precision.
std::optional<std::vector<double>> rate_sums(nb::list moments,
                                             const std::vector<double> &corrections,
                                             const std::vector<double> &eps, int threads) {
  const std::size_t n = moments.size();
  require(corrections.size() == n && eps.size() == n, "lists differ in length");
  std::vector<std::int64_t> sizes(n);
  std::vector<StepType> types(n);
  std::vector<const void *> starts(n);
  for (std::size_t t = 0; t < n; ++t) {
    TensorView view;
    if (!view_tensor(moments[t], &view) || !step_type(view.dtype, &types[t])) return std::nullopt;
    if (types[t] != StepType::float32 && types[t] != StepType::float64) return std::nullopt;
    starts[t] = view.data;
    sizes[t] = view.numel;
  }
  const nb::gil_scoped_release unlocked;
  return for_each_chunk(sizes, threads, [&](std::size_t t, std::int64_t begin, std::int64_t end) {
    return LATEWOOD_DISPATCH(optim_rate_sum, types[t], starts[t], corrections[t], eps[t], begin,
                             end);
  });
}

// What the counts of steps say; nothing if one is not a float32 of its own.
std::optional<std::vector<double>> counts(nb::list steps) {
  std::vector<double> said;
  said.reserve(steps.size());
  for (const nb::handle step : steps) {
    const float *const start = count_of(step);
    if (!start) return std::nullopt;
    said.push_back(*start);
  }
  return said;
}

}  // namespace

void bind_optim(nb::module_ &module) {
  module.def("optim_counts", &counts);
  module.def("optim_fits", &fits);
  module.def("optim_step", &step);
  module.def("optim_rate_sums", &rate_sums);
}
