// What a caller has to keep to.
#pragma once

#include <stdexcept>

namespace latewood {

inline void require(bool condition, const char *message) {
  if (!condition) throw std::invalid_argument(message);
}

}  // namespace latewood
