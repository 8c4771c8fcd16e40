#include "cpu.hpp"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <system_error>
#include <thread>
#include <vector>

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

// Threads live for one call: nothing spins between calls and nothing breaks when Python forks. A
// start costs tens of microseconds, a block several hundred.
void for_each_block(std::int64_t n, int threads,
                    const std::function<void(std::int64_t, std::int64_t, std::int64_t)> &work) {
  const std::int64_t blocks = block_count(n);
  std::atomic<std::int64_t> next{0};
  const auto take = [&] {
    for (std::int64_t block; (block = next.fetch_add(1)) < blocks;)
      work(block, block * block_size, std::min(n, (block + 1) * block_size));
  };
  std::vector<std::thread> helpers;
  const std::int64_t wanted = std::min<std::int64_t>(threads, blocks) - 1;
  try {
    for (std::int64_t i = 0; i < wanted; ++i) helpers.emplace_back(take);
  } catch (const std::system_error &) {
    // The system gives no more threads: those that started, and this one, do the work.
  }
  take();
  for (std::thread &helper : helpers) helper.join();
}

}  // namespace latewood
