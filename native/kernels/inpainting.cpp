// Objective, gradient in closed form, flips and smoothing of one image, all in buffers that stay in
// the cache. Compiled without fused multiply-adds: every instruction set gives the same masks.
#include "inpainting.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace latewood {
namespace LATEWOOD_ISA {
namespace {

constexpr double epsilon = 1e-8;
// Below this a difference of two sums is rounding dust.
constexpr float dust = 1e-6f;

// Lanes added in a fixed order: the same sum on every instruction set.
double sum(const float *values, int n) {
  constexpr int width = 16;
  double lanes[width] = {};
  int x = 0;
  for (; x + width <= n; x += width)
    for (int l = 0; l < width; ++l) lanes[l] += double(values[x + l]);
  for (; x < n; ++x) lanes[x % width] += double(values[x]);
  double total = 0;
  for (int l = 0; l < width; ++l) total += lanes[l];
  return total;
}

// out[x] = taps[0] middle[x] + sum_k taps[k] (before_k[x] + after_k[x])
template <int Reach, typename Before, typename After>
inline void combine(const float *taps, int reach, const float *middle, const Before &before,
                    const After &after, float *__restrict out, int n) {
  if constexpr (Reach > 0) {
    const float *low[Reach + 1], *high[Reach + 1];
    float weight[Reach + 1];
    weight[0] = taps[0];
    for (int k = 1; k <= Reach; ++k) {
      low[k] = before(k);
      high[k] = after(k);
      weight[k] = taps[k];
    }
#pragma GCC ivdep
    for (int x = 0; x < n; ++x) {
      float total = weight[0] * middle[x];
#pragma GCC unroll 16
      for (int k = 1; k <= Reach; ++k) total += weight[k] * (low[k][x] + high[k][x]);
      out[x] = total;
    }
  } else {
    for (int x = 0; x < n; ++x) out[x] = taps[0] * middle[x];
    for (int k = 1; k <= reach; ++k) {
      const float *low = before(k), *high = after(k);
      const float weight = taps[k];
#pragma GCC ivdep
      for (int x = 0; x < n; ++x) out[x] += weight * (low[x] + high[x]);
    }
  }
}

class Search {
 public:
  Search(const InpaintingImage &image, const InpaintingSettings &settings)
      : image_(image), settings_(settings), channels_(image.channels), height_(image.height),
        width_(image.width), plane_(std::size_t(image.height) * image.width),
        words_((plane_ + 63) / 64), once_(plane_), zero_(width_), padded_(width_ + 2 * settings.reach),
        whole_((channels_ + 1) * plane_), visible_((channels_ + 1) * plane_),
        smooth_((channels_ + 1) * plane_), slope_(plane_), mask_(plane_),
        bordered_(std::size_t(height_ + 2) * (width_ + 2), 2),
        flipped_(std::size_t(height_ + 2) * (width_ + 2), 0), state_(words_ * 64, 0),
        rows_(8 * std::size_t(width_)), totals_(channels_ + 1), inner_(channels_ + 1),
        fields_(channels_ + 1) {
    for (std::size_t i = 0; i < plane_; ++i) visible_[channels_ * plane_ + i] = 1;
    std::copy(image.pixels, image.pixels + channels_ * plane_, visible_.begin());
    for (int c = 0; c <= channels_; ++c) {
      totals_[c] = sum_plane(&visible_[c * plane_]);
      smooth(&visible_[c * plane_], &whole_[c * plane_]);
    }
    for (std::size_t i = 0; i < channels_ * plane_; ++i)
      squares_ += double(image.pixels[i]) * image.pixels[i];
  }

  void run(const InpaintingOutcome &outcome) {
    std::int64_t steps = 0, period = 0;
    bool degenerate = !enter(image_.start);
    if (!degenerate) remember();
    while (!degenerate && !period) {
      evaluate();
      if (steps == settings_.iterations) break;
      ++steps;
      move();
      if (foreground_ == 0 || foreground_ == plane_) {
        degenerate = true;
      } else {
        const std::int64_t before = find();
        if (before >= 0) period = steps - before;
        else remember();
      }
    }
    std::size_t end = std::size_t(steps);
    if (degenerate) {
      end = std::max_element(values_.begin(), values_.end()) - values_.begin();
    } else if (period) {
      const std::int64_t first = steps - period;
      end = std::size_t(first + (settings_.iterations - first) % period);
    }
    *outcome.steps = steps;
    *outcome.period = period;
    *outcome.degenerate = degenerate;
    if (values_.empty()) {
      std::copy(image_.start, image_.start + plane_, outcome.mask);
      *outcome.inpainting = *outcome.diversity = 0;
      return;
    }
    const std::uint64_t *bits = &states_[end * words_];
    for (std::size_t i = 0; i < plane_; ++i) outcome.mask[i] = bits[i / 64] >> (i % 64) & 1;
    *outcome.inpainting = inpainting_[end];
    *outcome.diversity = diversity_[end];
  }

 private:
  double sum_plane(const float *values) const {
    double total = 0;
    for (int y = 0; y < height_; ++y) total += sum(values + std::size_t(y) * width_, width_);
    return total;
  }

  // One repetition: the rows around each row are combined, then the pixels of the result.
  template <int Reach>
  void repeat(const float *in, float *out) {
    const int reach = settings_.reach;
    const float *taps = settings_.taps;
    float *middle = &padded_[reach];
    for (int y = 0; y < height_; ++y) {
      const auto row = [&](int other) {
        return other < 0 || other >= height_ ? zero_.data() : in + std::size_t(other) * width_;
      };
      combine<Reach>(taps, reach, row(y), [&](int k) { return row(y - k); },
                     [&](int k) { return row(y + k); }, middle, width_);
      combine<Reach>(taps, reach, middle, [&](int k) { return middle - k; },
                     [&](int k) { return middle + k; }, out + std::size_t(y) * width_, width_);
    }
  }

  void repeat(const float *in, float *out) {
    switch (settings_.reach) {
      case 3: return repeat<3>(in, out);
      case 5: return repeat<5>(in, out);
      default: return repeat<0>(in, out);
    }
  }

  // Writes into `once_` and `out` in turn so that the last repetition ends in `out`.
  void smooth(const float *in, float *out) {
    for (int left = settings_.repetitions; left > 0; --left) {
      float *to = left % 2 ? out : once_.data();
      repeat(in, to);
      in = to;
    }
  }

  // Takes over a mask; false if one of its regions is empty.
  bool enter(const std::uint8_t *mask) {
    for (int y = 0; y < height_; ++y)
      std::copy(mask + std::size_t(y) * width_, mask + std::size_t(y + 1) * width_,
                &bordered_[std::size_t(y + 1) * (width_ + 2) + 1]);
    take_over();
    return foreground_ != 0 && foreground_ != plane_;
  }

  // From `bordered_` to the mask as floats, its size and its bits.
  void take_over() {
    std::size_t count = 0;
    for (int y = 0; y < height_; ++y) {
      const std::uint8_t *from = &bordered_[std::size_t(y + 1) * (width_ + 2) + 1];
      float *to = &mask_[std::size_t(y) * width_];
      std::uint8_t *bytes = &state_[std::size_t(y) * width_];
      int in_row = 0;
      for (int x = 0; x < width_; ++x) {
        to[x] = from[x];
        bytes[x] = from[x];
        in_row += from[x];
      }
      count += in_row;
    }
    foreground_ = count;
  }

  void pack(std::uint64_t *bits) const {
    for (std::size_t word = 0; word < words_; ++word) {
      std::uint64_t packed = 0;
      for (int byte = 0; byte < 8; ++byte) {
        std::uint64_t eight;
        std::memcpy(&eight, &state_[word * 64 + byte * 8], 8);
        // Gathers the lowest bits of eight bytes, the first byte's lowest.
        packed |= ((eight * 0x0102040810204080ull) >> 56) << (8 * byte);
      }
      bits[word] = packed;
    }
  }

  void remember() {
    states_.resize(states_.size() + words_);
    pack(&states_[states_.size() - words_]);
  }

  // Index of the state that equals the present one, or -1.
  std::int64_t find() {
    std::vector<std::uint64_t> &present = present_;
    present.resize(words_);
    pack(present.data());
    for (std::size_t i = states_.size() / words_; i-- > 0;)
      if (std::equal(present.begin(), present.end(), states_.begin() + i * words_))
        return std::int64_t(i);
    return -1;
  }

  // The objective of the mask, and its gradient up to the diversity's part in `slope_`.
  void evaluate() {
    for (int c = 0; c < channels_; ++c) {
      const float *pixels = image_.pixels + c * plane_;
      float *__restrict shown = &visible_[c * plane_];
#pragma GCC ivdep
      for (std::size_t i = 0; i < plane_; ++i) shown[i] = pixels[i] * mask_[i];
      inner_[c] = sum_plane(shown);
      smooth(shown, &smooth_[c * plane_]);
    }
    inner_[channels_] = double(foreground_);
    smooth(mask_.data(), &smooth_[channels_ * plane_]);

    const double size = double(foreground_), rest = double(plane_) - size;
    double inner_error = 0, outer_error = 0;
    std::fill(fields_.begin(), fields_.end(), 0.0);
    for (int y = 0; y < height_; ++y) residuals(y, size, rest, inner_error, outer_error);

    double value = squares_;
    for (int c = 0; c < channels_; ++c) {
      const double outer = totals_[c] - inner_[c];
      value -= inner_[c] * inner_[c] / size + outer * outer / rest;
    }
    const double errors = inner_error / size + outer_error / rest;
    inpainting_.push_back(errors);
    diversity_.push_back(std::max(0.0, value));
    values_.push_back(errors - settings_.diversity * diversity_.back());
    constant_ = outer_error / (rest * rest) - inner_error / (size * size);
  }

  // One row of the residuals: what the adjoint filter needs into `visible_`, and the gradient's
  // part that it does not reach into `slope_`.
  void residuals(int y, double size, double rest, double &inner_error, double &outer_error) {
    const int n = width_, channels = channels_;
    const std::size_t at = std::size_t(y) * width_;
    float *__restrict inner_share = &rows_[0], *__restrict outer_share = inner_share + n;
    float *__restrict inner_miss = outer_share + n, *__restrict outer_miss = inner_miss + n;
    float *__restrict weight = outer_miss + n, *__restrict kept = weight + n;
    const float *mask = &mask_[at];
    const float *shown = &smooth_[channels * plane_ + at], *all = &whole_[channels * plane_ + at];
    const float inner_mean = float(epsilon * size), outer_mean = float(epsilon * rest);
    const float inner_scale = float(1 / (channels * size)), outer_scale = float(1 / (channels * rest));
    float *__restrict push = &visible_[channels * plane_ + at];
#pragma GCC ivdep
    for (int x = 0; x < n; ++x) {
      const float hidden = all[x] - shown[x];
      kept[x] = hidden >= dust ? 1.0f : 0.0f;
      inner_share[x] = 1.0f / (hidden * kept[x] + outer_mean);
      outer_share[x] = 1.0f / (shown[x] + inner_mean);
      weight[x] = mask[x] > 0 ? inner_share[x] * inner_scale : -outer_share[x] * outer_scale;
      inner_miss[x] = outer_miss[x] = push[x] = 0;
    }
    for (int c = 0; c < channels; ++c) {
      const float *pixels = image_.pixels + c * plane_ + at;
      const float *inside = &smooth_[c * plane_ + at], *both = &whole_[c * plane_ + at];
      const float inner_sum = float(epsilon * inner_[c]);
      const float outer_sum = float(epsilon * (totals_[c] - inner_[c]));
      float *__restrict field = &visible_[c * plane_ + at];
#pragma GCC ivdep
      for (int x = 0; x < n; ++x) {
        const float from_outside = ((both[x] - inside[x]) * kept[x] + outer_sum) * inner_share[x];
        const float from_inside = (inside[x] + inner_sum) * outer_share[x];
        const float inner = pixels[x] - from_outside, outer = pixels[x] - from_inside;
        inner_miss[x] += std::fabs(inner);
        outer_miss[x] += std::fabs(outer);
        const float guess = mask[x] > 0 ? from_outside : from_inside;
        const float missed = mask[x] > 0 ? inner : outer;
        const float sign = (missed > 0 ? 1.0f : 0.0f) - (missed < 0 ? 1.0f : 0.0f);
        field[x] = sign * weight[x];
        push[x] -= field[x] * guess;
      }
      fields_[c] += sum(field, n);
    }
    fields_[channels] += sum(push, n);
    float *__restrict slope = &slope_[at];
    const float inner_rate = float(1 / size), outer_rate = float(1 / rest);
    const float share = 1.0f / float(channels);
#pragma GCC ivdep
    for (int x = 0; x < n; ++x) {
      const float inner = inner_miss[x] * share, outer = outer_miss[x] * share;
      slope[x] = inner * inner_rate - outer * outer_rate;
      inner_miss[x] = mask[x] * inner;
      outer_miss[x] = (1.0f - mask[x]) * outer;
    }
    inner_error += sum(inner_miss, n);
    outer_error += sum(outer_miss, n);
  }

  // One iteration: the rest of the gradient, the flips on the outline, the smoothing.
  void move() {
    for (int c = 0; c <= channels_; ++c) smooth(&visible_[c * plane_], &smooth_[c * plane_]);
    const double size = double(foreground_), rest = double(plane_) - size;
    double offset = constant_ + epsilon * fields_[channels_];
    const float *push = &smooth_[channels_ * plane_];
#pragma GCC ivdep
    for (std::size_t i = 0; i < plane_; ++i) slope_[i] += push[i];
    for (int c = 0; c < channels_; ++c) {
      const double inner = inner_[c] / size, outer = (totals_[c] - inner_[c]) / rest;
      const float pull = float(epsilon * fields_[c] - settings_.diversity * 2 * (outer - inner));
      offset -= settings_.diversity * (inner * inner - outer * outer);
      const float *pixels = image_.pixels + c * plane_, *field = &smooth_[c * plane_];
#pragma GCC ivdep
      for (std::size_t i = 0; i < plane_; ++i) slope_[i] += pixels[i] * (field[i] + pull);
    }
    flip(float(offset));
    if (settings_.neighbours) settle();
    else
      for (int y = 0; y < height_; ++y)
        std::memcpy(&bordered_[std::size_t(y + 1) * (width_ + 2) + 1],
                    &flipped_[std::size_t(y + 1) * (width_ + 2) + 1], width_);
    take_over();
  }

  // The frame around `bordered_` differs from both classes, so pixels at it are on the outline.
  void flip(float offset) {
    const std::size_t stride = width_ + 2;
    for (int y = 0; y < height_; ++y) {
      const std::uint8_t *here = &bordered_[(y + 1) * stride + 1];
      const std::uint8_t *above = here - stride, *below = here + stride;
      const float *slope = &slope_[std::size_t(y) * width_];
      std::uint8_t *__restrict to = &flipped_[(y + 1) * stride + 1];
#pragma GCC ivdep
      for (int x = 0; x < width_; ++x) {
        const int edge = (here[x] != above[x]) | (here[x] != below[x]) | (here[x] != here[x - 1]) |
                         (here[x] != here[x + 1]);
        const float gradient = slope[x] + offset;
        const int moves = edge & (gradient != 0.0f);
        to[x] = std::uint8_t(moves ? gradient > 0.0f : here[x]);
      }
    }
  }

  void settle() {
    const std::size_t stride = width_ + 2;
    for (int y = 0; y < height_; ++y) {
      const std::uint8_t *here = &flipped_[(y + 1) * stride + 1];
      const std::uint8_t *above = here - stride, *below = here + stride;
      std::uint8_t *__restrict to = &bordered_[(y + 1) * stride + 1];
      const std::uint8_t wanted = std::uint8_t(settings_.neighbours);
#pragma GCC ivdep
      for (int x = 0; x < width_; ++x) {
        const std::uint8_t count = std::uint8_t(above[x - 1] + above[x] + above[x + 1] +
                                                here[x - 1] + here[x] + here[x + 1] +
                                                below[x - 1] + below[x] + below[x + 1]);
        to[x] = count >= wanted;
      }
    }
  }

  const InpaintingImage &image_;
  const InpaintingSettings &settings_;
  const int channels_, height_, width_;
  const std::size_t plane_, words_;
  std::vector<float> once_, zero_, padded_;  // of the filter
  std::vector<float> whole_, visible_, smooth_, slope_, mask_;
  std::vector<std::uint8_t> bordered_, flipped_, state_;
  std::vector<float> rows_;
  std::vector<double> totals_, inner_, fields_;
  std::vector<double> inpainting_, diversity_, values_;  // of all states so far
  std::vector<std::uint64_t> states_, present_;
  double squares_ = 0, constant_ = 0;
  std::size_t foreground_ = 0;
};

}  // namespace

void inpainting_ascend(const InpaintingImage &image, const InpaintingSettings &settings,
                       const InpaintingOutcome &outcome) {
  Search(image, settings).run(outcome);
}

}  // namespace LATEWOOD_ISA
}  // namespace latewood
