#include "cpu.hpp"

#include <cstdlib>
#include <cstring>

namespace latewood {

static InstructionSet detect() {
#if defined(LATEWOOD_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  // Tests force a lower set to cover every compiled form on one machine.
  const char *limit = std::getenv("LATEWOOD_INSTRUCTION_SET");
  const bool at_most_baseline = limit && std::strcmp(limit, "baseline") == 0;
  const bool at_most_avx2 = limit && std::strcmp(limit, "avx2") == 0;
  if (avx512 && !at_most_avx2 && !at_most_baseline) return InstructionSet::avx512;
  if (avx2 && !at_most_baseline) return InstructionSet::avx2;
#endif
  return InstructionSet::baseline;
}

InstructionSet instruction_set() {
  static const InstructionSet chosen = detect();
  return chosen;
}

const char *instruction_set_name() {
  switch (instruction_set()) {
    case InstructionSet::avx512: return "avx512";
    case InstructionSet::avx2: return "avx2";
    default: return "baseline";
  }
}

}  // namespace latewood
