#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <new>
#include <optional>
#include <vector>

#include "integer_network.hpp"
#include "lane_products.hpp"
#include "tensors.hpp"

namespace nb = nanobind;
using namespace latewood;

namespace {

constexpr std::int64_t most_count = std::int64_t{1} << 31;

template <typename T>
std::vector<T> copied(nb::handle tensor, std::int32_t dtype, std::int64_t n) {
  const T *const from = elements<T>(tensor, dtype, n);
  return std::vector<T>(from, from + n);
}

std::vector<float> floats(nb::handle tensor, std::int64_t n) {
  return copied<float>(tensor, tensor_types().float32, n);
}

// Takes a network step by step; whatever does not fit is refused before anything runs.
class NetworkBuilder {
 public:
  NetworkBuilder() = default;
  NetworkBuilder(const NetworkBuilder &) = delete;

  int buffer(std::int64_t channels, std::int64_t rows, std::int64_t columns, nb::handle bits) {
    require(channels > 0 && rows > 0 && columns > 0 && channels < most_count &&
                rows < most_count && columns < most_count &&
                rows * columns < most_count / channels,
            "a buffer's shape is out of range");
    NetworkBuffer made{channels, rows, columns, !bits.is_none(), {}, 0};
    if (made.codes) {
      made.bits = copied<std::uint8_t>(bits, tensor_types().uint8, channels);
      for (const std::uint8_t width : made.bits) require(width <= 8, "bits are out of range");
    }
    network_.buffers.push_back(std::move(made));
    written_.push_back(-1);
    last_read_.push_back(-1);
    return int(network_.buffers.size()) - 1;
  }

  void begin(int source) {
    open();
    require(network_.source < 0, "a network has one source");
    require(source >= 0 && source < int(written_.size()) && !network_.buffers[source].codes,
            "a source is no buffer of numbers");
    network_.source = source;
    written_[source] = 0;
  }

  // `factor` to `encoders` are those of the step that is added next.
  void epilogue(nb::handle factor, nb::handle addend, int residual, int target, float low,
                float high) {
    open();
    next_ = NetworkEpilogue{};
    factor_ = nb::borrow(factor);
    addend_ = nb::borrow(addend);
    next_.residual = residual;
    next_.target = target;
    next_.low = low;
    next_.high = high;
  }

  void encoder(int target, float alpha, float offset, nb::handle thresholds, nb::handle signs,
               int levels, nb::handle one_cut, nb::handle three_cuts) {
    open();
    require(target >= 0 && target < int(written_.size()) && network_.buffers[target].codes,
            "an encoder's target is no buffer of codes");
    require(alpha > 0 && std::isfinite(alpha) && (offset == 0 || offset == 2),
            "an encoder's scale is out of range");
    const NetworkBuffer &codes = network_.buffers[target];
    NetworkEncoder made{};
    made.target = target;
    made.alpha = alpha;
    made.offset = offset;
    made.counts_sums = !thresholds.is_none();
    if (made.counts_sums) {
      const int most = *std::max_element(codes.bits.begin(), codes.bits.end());
      require(levels == (1 << most) - 1 && most <= 4, "thresholds are missing");
      const std::vector<std::int32_t> all =
          copied<std::int32_t>(thresholds, tensor_types().int32, codes.channels * levels);
      made.signs = copied<std::int32_t>(signs, tensor_types().int32, codes.channels);
      for (const std::int32_t sign : made.signs) require(sign == 1 || sign == -1, "a sign is none");
      for (const std::int32_t threshold : all)
        require(threshold > std::numeric_limits<std::int32_t>::min(), "a threshold is out of range");
      for (std::int64_t c = 0; c < codes.channels; ++c)
        for (int k = 0; k < 3; ++k)
          made.thresholds.push_back(k < levels ? all[c * levels + k] : 0);
    }
    made.cut = floats(one_cut, 1)[0];
    const std::vector<float> cuts = floats(three_cuts, 3);
    std::copy(cuts.begin(), cuts.end(), made.cuts);
    for (const std::uint8_t width : codes.bits) {
      made.scale.push_back(float(1 << width) / 4);
      made.half.push_back(float(1 << width) / 2);
    }
    next_.encoders.push_back(std::move(made));
  }

  void packed(int source, nb::handle codes, nb::handle mask, nb::handle weight_bits,
              nb::handle input_bits, bool never_negative, std::int64_t outputs,
              const std::vector<std::int64_t> &taps, nb::handle scale, nb::handle bias,
              const MixedProduct *product) {
    const NetworkBuffer &from = readable(source, true);
    NetworkStep step = step_of(NetworkKind::lanes, source, taps);
    const std::int64_t in_kernel = step.geometry.kernel_height * step.geometry.kernel_width;
    require(outputs > 0 && from.channels * in_kernel < most_count / outputs,
            "a product's shape is out of range");
    const TensorTypes &types = tensor_types();
    const std::int64_t count = outputs * from.channels * in_kernel;
    const CodedWeights weights{
        elements<std::uint8_t>(codes, types.uint8, count),
        mask.is_none() ? nullptr : elements<std::uint8_t>(mask, types.boolean, count),
        elements<std::uint8_t>(weight_bits, types.uint8, from.channels),
        elements<std::uint8_t>(input_bits, types.uint8, from.channels),
        never_negative,
        outputs,
        from.channels,
        in_kernel};
    for (std::int64_t c = 0; c < from.channels; ++c)
      require(weights.bits[c] <= 8 && weights.input_bits[c] == from.bits[c] &&
                  !weights.bits[c] == !from.bits[c],
              "a product's bits are not those of its source");
    step.scale = floats(scale, outputs);
    step.bias = floats(bias, outputs);
    if (product) {
      require(product->outputs == outputs && product->channels == from.channels &&
                  product->taps == in_kernel && product->bits == from.bits,
              "a product has another shape");
      step.kind = NetworkKind::packed;
      step.product = product;
    } else {
      for (std::int64_t i = 0; i < count; ++i) {
        const int width = weights.bits[i / in_kernel % from.channels];
        require(!width || weights.codes[i] >> width == 0, "a code is out of range");
      }
      step.lanes = lane_product(weights);
    }
    add(std::move(step), outputs, true);
  }

  void floating(int source, nb::handle weight, nb::handle bias, std::int64_t outputs,
                std::int64_t groups, const std::vector<std::int64_t> &taps) {
    const NetworkBuffer &from = readable(source, false);
    NetworkStep step = step_of(NetworkKind::floating, source, taps);
    const std::int64_t in_kernel = step.geometry.kernel_height * step.geometry.kernel_width;
    require(groups > 0 && outputs > 0 && outputs % groups == 0 && from.channels % groups == 0 &&
                from.channels * in_kernel < most_count / outputs,
            "a product's shape is out of range");
    const std::int64_t inputs = from.channels / groups * in_kernel;
    step.groups = groups;
    step.weight = floats(weight, outputs * inputs);
    if (!bias.is_none()) step.bias = floats(bias, outputs);
    if (groups == 1 && in_kernel == 1 && from.plane() == 1)
      for (std::int64_t k = 0; k < inputs; ++k)
        for (std::int64_t n = 0; n < outputs; ++n)
          step.transposed.push_back(step.weight[n * inputs + k]);
    add(std::move(step), outputs, false);
  }

  // kind: 0 the largest, 1 the average of a window, 2 the mean of the image.
  void pool(int source, int kind, const std::vector<std::int64_t> &taps, bool counts_padding,
            std::int64_t divisor, std::int64_t after_rows, std::int64_t after_columns) {
    const NetworkBuffer &from = readable(source, false);
    require(kind >= 0 && kind <= 2 && divisor >= 0 && after_rows >= 0 && after_columns >= 0 &&
                after_rows < most_count && after_columns < most_count,
            "a pool is out of range");
    NetworkStep step = step_of(kind == 0   ? NetworkKind::largest
                               : kind == 1 ? NetworkKind::average
                                           : NetworkKind::mean,
                               source, taps);
    require(kind != 2 || step.geometry.out_height * step.geometry.out_width == 1,
            "a mean of the image is one number");
    step.counts_padding = counts_padding;
    step.divisor = divisor;
    step.after_rows = after_rows;
    step.after_columns = after_columns;
    add(std::move(step), from.channels, false);
  }

  void numbers(int source) {
    const NetworkBuffer &from = readable(source, false);
    NetworkStep step{};
    step.kind = NetworkKind::numbers;
    step.source = source;
    step.geometry.out_height = from.rows;
    step.geometry.out_width = from.columns;
    add(std::move(step), from.channels, false);
  }

  void flatten(int source, int target) {
    const NetworkBuffer &from = readable(source, false);
    require(target >= 0 && target < int(written_.size()), "a target is no buffer");
    NetworkBuffer &to = network_.buffers[target];
    require(!to.codes && to.plane() == 1 && to.channels == from.count(),
            "a flattened buffer has another shape");
    NetworkStep step{};
    step.kind = NetworkKind::flatten;
    step.source = source;
    step.target = target;
    write(target);
    last_read_[source] = place();
    network_.steps.push_back(std::move(step));
  }

  void finish(int target) {
    readable(target, false);
    require(target != network_.source, "a network without steps");
    network_.target = target;
    last_read_[target] = place();
    // Lowest places that no buffer has whose contents are still read.
    for (std::size_t i = 0; i < network_.buffers.size(); ++i) {
      require(written_[i] >= 0, "a buffer is never written");
      if (int(i) == network_.source || int(i) == target) continue;
      NetworkBuffer &made = network_.buffers[i];
      const std::int64_t bytes = (made.bytes() + 63) / 64 * 64;
      std::int64_t offset = 0;
      for (bool moved = true; moved;) {
        moved = false;
        for (std::size_t j = 0; j < i; ++j) {
          const NetworkBuffer &other = network_.buffers[j];
          if (int(j) == network_.source || int(j) == target) continue;
          const bool together = written_[j] <= std::max(last_read_[i], written_[i]) &&
                                written_[i] <= std::max(last_read_[j], written_[j]);
          const std::int64_t end = other.offset + (other.bytes() + 63) / 64 * 64;
          if (together && offset < end && other.offset < offset + bytes) {
            offset = end;
            moved = true;
          }
        }
      }
      made.offset = offset;
      network_.image_bytes = std::max(network_.image_bytes, offset + bytes);
    }
    finished_ = true;
  }

  bool run(nb::handle inputs, nb::handle outputs, std::int64_t images, int threads) const {
    require(finished_, "a network is not finished");
    const std::int64_t in_count = network_.buffers[network_.source].count();
    const std::int64_t out_count = network_.buffers[network_.target].count();
    require(images > 0 && images < most_count, "the number of images is out of range");
    const TensorTypes &types = tensor_types();
    const float *const from = elements<float>(inputs, types.float32, images * in_count);
    float *const to = elements<float>(outputs, types.float32, images * out_count);
    const nb::gil_scoped_release unlocked;
    std::atomic<bool> exhausted{false}, bad{false};
    for_each_block(images * block_size, threads,
                   [&](std::int64_t image, std::int64_t, std::int64_t) {
      try {
        if (!LATEWOOD_DISPATCH(run_network, network_, from + image * in_count,
                               to + image * out_count, 1))
          bad = true;
      } catch (const std::bad_alloc &) {
        exhausted = true;
      }
    });
    if (exhausted) throw std::bad_alloc();
    return !bad;
  }

  std::int64_t image_bytes() const { return network_.image_bytes; }

 private:
  int place() const { return int(network_.steps.size()) + 1; }
  void open() const { require(!finished_, "a network is finished"); }

  const NetworkBuffer &readable(int source, bool codes) {
    open();
    require(source >= 0 && source < int(written_.size()) && written_[source] >= 0,
            "a source is not written yet");
    require(network_.buffers[source].codes == codes, "a source is of another kind");
    return network_.buffers[source];
  }

  void write(int target) {
    require(written_[target] < 0, "a buffer is written twice");
    written_[target] = place();
  }

  // Taps: rows and columns of the output, the kernel, strides, padding before, dilation.
  NetworkStep step_of(NetworkKind kind, int source, const std::vector<std::int64_t> &taps) const {
    require(taps.size() == 10, "sizes are missing");
    for (std::size_t i = 0; i < taps.size(); ++i)
      require(taps[i] < most_count && taps[i] >= (i == 6 || i == 7 ? 0 : 1),
              "a size is out of range");
    const NetworkBuffer &from = network_.buffers[source];
    NetworkStep step{};
    step.kind = kind;
    step.source = source;
    step.geometry = {from.rows, from.columns, taps[0], taps[1], taps[2], taps[3],
                     taps[4],   taps[5],      taps[6], taps[7], taps[8], taps[9]};
    require(taps[0] * taps[1] < most_count && taps[2] * taps[3] < most_count &&
                (taps[0] - 1) * taps[4] + (taps[2] - 1) * taps[8] < most_count &&
                (taps[1] - 1) * taps[5] + (taps[3] - 1) * taps[9] < most_count,
            "a size is out of range");
    return step;
  }

  void add(NetworkStep step, std::int64_t outputs, bool sums) {
    const std::int64_t rows = step.geometry.out_height, columns = step.geometry.out_width;
    NetworkEpilogue &epilogue = next_;
    const auto fits = [&](int buffer, bool codes) {
      require(buffer >= 0 && buffer < int(written_.size()), "an epilogue's buffer is none");
      const NetworkBuffer &made = network_.buffers[buffer];
      require(made.codes == codes && made.channels == outputs && made.rows == rows &&
                  made.columns == columns,
              "an epilogue's buffer has another shape");
    };
    require(!(epilogue.low > epilogue.high), "bounds are in the wrong order");
    if (!factor_.is_none()) {
      epilogue.factor = floats(factor_, outputs);
      epilogue.addend = floats(addend_, outputs);
    }
    if (epilogue.residual >= 0) {
      readable(epilogue.residual, false);
      fits(epilogue.residual, false);
      last_read_[epilogue.residual] = place();
    }
    require(epilogue.target >= 0 || !epilogue.encoders.empty(), "a step writes nothing");
    if (epilogue.target >= 0) {
      fits(epilogue.target, false);
      write(epilogue.target);
    }
    for (const NetworkEncoder &encoder : epilogue.encoders) {
      fits(encoder.target, true);
      require(sums || !encoder.counts_sums, "thresholds without sums");
      write(encoder.target);
    }
    last_read_[step.source] = place();
    step.epilogue = std::move(epilogue);
    next_ = NetworkEpilogue{};
    network_.steps.push_back(std::move(step));
  }

  Network network_;
  NetworkEpilogue next_;
  nb::object factor_ = nb::none(), addend_ = nb::none();
  std::vector<int> written_, last_read_;
  bool finished_ = false;
};

}  // namespace

void bind_integer_network(nb::module_ &module) {
  nb::class_<NetworkBuilder>(module, "IntegerNetwork")
      .def(nb::init<>())
      .def("buffer", &NetworkBuilder::buffer, nb::arg("channels"), nb::arg("rows"),
           nb::arg("columns"), nb::arg("bits").none())
      .def("begin", &NetworkBuilder::begin, nb::arg("source"))
      .def("epilogue", &NetworkBuilder::epilogue, nb::arg("factor").none(),
           nb::arg("addend").none(), nb::arg("residual"), nb::arg("target"), nb::arg("low"),
           nb::arg("high"))
      .def("encoder", &NetworkBuilder::encoder, nb::arg("target"), nb::arg("alpha"),
           nb::arg("offset"), nb::arg("thresholds").none(), nb::arg("signs").none(),
           nb::arg("levels"), nb::arg("one_cut"), nb::arg("three_cuts"))
      .def("packed", &NetworkBuilder::packed, nb::arg("source"), nb::arg("codes"),
           nb::arg("mask").none(), nb::arg("weight_bits"), nb::arg("input_bits"),
           nb::arg("never_negative"), nb::arg("outputs"), nb::arg("taps"), nb::arg("scale"),
           nb::arg("bias"), nb::arg("product").none(), nb::keep_alive<1, 12>())
      .def("floating", &NetworkBuilder::floating, nb::arg("source"), nb::arg("weight"),
           nb::arg("bias").none(), nb::arg("outputs"), nb::arg("groups"), nb::arg("taps"))
      .def("pool", &NetworkBuilder::pool, nb::arg("source"), nb::arg("kind"), nb::arg("taps"),
           nb::arg("counts_padding"), nb::arg("divisor"), nb::arg("after_rows"),
           nb::arg("after_columns"))
      .def("numbers", &NetworkBuilder::numbers, nb::arg("source"))
      .def("flatten", &NetworkBuilder::flatten, nb::arg("source"), nb::arg("target"))
      .def("finish", &NetworkBuilder::finish, nb::arg("target"))
      .def("run", &NetworkBuilder::run, nb::arg("inputs"), nb::arg("outputs"), nb::arg("images"),
           nb::arg("threads"))
      .def_prop_ro("image_bytes", &NetworkBuilder::image_bytes);
}
