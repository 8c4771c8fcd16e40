// One pass over memory in each direction, where autograd's separate operators take three and six.
#include "masked_weight.hpp"

#include <cmath>

namespace latewood {
namespace LATEWOOD_ISA {

static inline float sigmoid(float z) { return 1.0f / (1.0f + std::exp(-z)); }

void masked_weight_forward(const float *__restrict weight, const float *__restrict logits,
                           float temperature, float scale, float *__restrict masked,
                           std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i)
    masked[i] = weight[i] * (scale * sigmoid(temperature * logits[i]));
}

void masked_weight_backward(const float *__restrict gradient, const float *__restrict weight,
                            const float *__restrict logits, float temperature, float scale,
                            float *__restrict weight_gradient, float *__restrict logits_gradient,
                            std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    const float p = sigmoid(temperature * logits[i]);
    weight_gradient[i] = gradient[i] * (scale * p);
    logits_gradient[i] = gradient[i] * weight[i] * (scale * temperature * p * (1.0f - p));
  }
}

}  // namespace LATEWOOD_ISA
}  // namespace latewood
