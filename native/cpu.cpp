#include "cpu.hpp"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <dlfcn.h>
#include <pthread.h>
#endif

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

// Runs work(data) on this thread and on `threads - 1` others, and returns when all are done.
using Team = void (*)(void (*work)(void *), void *data, unsigned threads, unsigned flags);

// The threads of torch's own OpenMP. They are awake: after an operator they spin for milliseconds,
// on the very cores that threads of ours would have to share with them. Null where torch brings
// another runtime, and in a forked process, where its threads no longer exist.
static Team torch_team() {
#if defined(__linux__)
  static std::atomic<Team> team{nullptr};
  static const bool found = [] {
    team = reinterpret_cast<Team>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    return pthread_atfork(nullptr, nullptr, [] { team = nullptr; }) == 0;
  }();
  return found ? team.load() : nullptr;
#else
  return nullptr;
#endif
}

// Threads that live for one call: a start costs tens of microseconds, a block several hundred.
static void own_team(void (*work)(void *), void *data, std::int64_t threads) {
  std::vector<std::thread> helpers;
  try {
    for (std::int64_t i = 1; i < threads; ++i) helpers.emplace_back(work, data);
  } catch (const std::system_error &) {
    // The system gives no more threads: those that started, and this one, do the work.
  }
  work(data);
  for (std::thread &helper : helpers) helper.join();
}

void for_each_block(std::int64_t n, int threads,
                    const std::function<void(std::int64_t, std::int64_t, std::int64_t)> &work) {
  const std::int64_t blocks = block_count(n);
  std::atomic<std::int64_t> next{0};
  auto take = [&] {
    for (std::int64_t block; (block = next.fetch_add(1)) < blocks;)
      work(block, block * block_size, std::min(n, (block + 1) * block_size));
  };
  const auto call = [](void *data) { (*static_cast<decltype(take) *>(data))(); };
  const std::int64_t wanted = std::min<std::int64_t>(threads, blocks);
  if (wanted <= 1) take();
  else if (const Team team = torch_team()) team(call, &take, unsigned(wanted), 0);
  else own_team(call, &take, wanted);
}

}  // namespace latewood
