// One pass over memory in each direction, where autograd's separate operators take three and six.
#include "masked_weight.hpp"

namespace latewood {
namespace LATEWOOD_ISA {

// exp(x) for x in [-87, 89] to 2 ulp, by the Cephes polynomial: branch-free arithmetic, because the
// library's exp keeps a loop from being vectorised. NaN stays NaN; above 88.73 the result is +inf.
static inline float exponential(float x) {
  const float log2_e = 1.44269504088896341f;
  const float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits.
  const float round = 12582912.0f;
  const float shifted = x * log2_e + round;
  const float n = shifted - round;
  const float r = (x - n * ln2_high) - n * ln2_low;
  float y = 1.9875691500e-4f;
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * (r * r) + r + 1.0f;
  // 2^n as two factors, since 2^128 has no float of its own. The bits of `shifted` are those of
  // `round` plus n; subtracting in integers keeps the loop free of conversions.
  std::int32_t bits, round_bits;
  __builtin_memcpy(&bits, &shifted, sizeof bits);
  __builtin_memcpy(&round_bits, &round, sizeof round_bits);
  const std::int32_t power = bits - round_bits, half = power >> 1;
  const std::int32_t first_bits = (half + 127) << 23, second_bits = (power - half + 127) << 23;
  float first, second;
  __builtin_memcpy(&first, &first_bits, sizeof first);
  __builtin_memcpy(&second, &second_bits, sizeof second);
  return y * first * second;
}

// 1 + exp(-z), the reciprocal of sigmoid(z); the bounds are where sigmoid is 1 and 0 in float32.
static inline float reciprocal_sigmoid(float z) {
  float x = -z;
  x = x > 89.0f ? 89.0f : x;
  x = x < -87.0f ? -87.0f : x;
  return 1.0f + exponential(x);
}

// scale / (1 + exp(-z)) rather than scale * sigmoid(z): with scale = 1 + exp(-initial logit) the
// mask is then exactly 1 where masking starts, so attaching it changes no bit of the network.
void masked_weight_forward(const float *__restrict weight, const float *__restrict logits,
                           float temperature, float scale, float *__restrict masked,
                           std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i)
    masked[i] = weight[i] * (scale / reciprocal_sigmoid(temperature * logits[i]));
}

void masked_weight_backward(const float *__restrict gradient, const float *__restrict weight,
                            const float *__restrict logits, float temperature, float scale,
                            float *__restrict weight_gradient, float *__restrict logits_gradient,
                            std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    const float d = reciprocal_sigmoid(temperature * logits[i]);
    const float p = 1.0f / d;
    weight_gradient[i] = gradient[i] * (scale / d);
    logits_gradient[i] = gradient[i] * weight[i] * (scale * temperature * p * (1.0f - p));
  }
}

// Sums 32 interleaved lanes in float over stretches of 1024 and the stretches in double: a fixed
// order that vectors can follow, with an error that does not grow with n.
double mask_sum_forward(const float *__restrict logits, float temperature, float scale,
                        std::int64_t n) {
  constexpr int lane_count = 32, stretch = 1024;
  double total = 0;
  for (std::int64_t begin = 0; begin < n; begin += stretch) {
    const std::int64_t end = n - begin < stretch ? n : begin + stretch;
    float lanes[lane_count] = {};
    std::int64_t i = begin;
    for (; i + lane_count <= end; i += lane_count)
      for (int k = 0; k < lane_count; ++k)
        lanes[k] += scale / reciprocal_sigmoid(temperature * logits[i + k]);
    for (int k = 0; i < end; ++i, ++k)
      lanes[k] += scale / reciprocal_sigmoid(temperature * logits[i]);
    for (int k = 0; k < lane_count; ++k) total += lanes[k];
  }
  return total;
}

void mask_sum_backward(float gradient, const float *__restrict logits, float temperature,
                       float scale, float *__restrict logits_gradient, std::int64_t n) {
  const float factor = gradient * scale * temperature;
  for (std::int64_t i = 0; i < n; ++i) {
    const float p = 1.0f / reciprocal_sigmoid(temperature * logits[i]);
    logits_gradient[i] = factor * p * (1.0f - p);
  }
}

}  // namespace LATEWOOD_ISA
}  // namespace latewood
