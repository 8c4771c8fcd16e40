// Which instruction set the kernels use on this machine, decided once when the module loads, and
// the one way in which kernels share work between threads.
#pragma once

#include <cstdint>
#include <functional>

namespace latewood {

enum class InstructionSet { baseline, avx2, avx512 };

InstructionSet instruction_set();
const char *instruction_set_name();

// Elements in one unit of work: long enough to pay for a thread, and fixed, so that results do not
// depend on how many threads there are.
constexpr std::int64_t block_size = std::int64_t{1} << 18;

inline std::int64_t block_count(std::int64_t n) { return (n + block_size - 1) / block_size; }

// Calls work(block, begin, end) for every block of [0, n), on at most `threads` threads (this one
// included). Returns when all is done. `work` must not throw.
void for_each_block(std::int64_t n, int threads,
                    const std::function<void(std::int64_t, std::int64_t, std::int64_t)> &work);

}  // namespace latewood

// Calls NAME from the namespace compiled for this machine. Each namespace holds the same kernels.
#if defined(LATEWOOD_X86)
#define LATEWOOD_DISPATCH(NAME, ...)                                          \
  (::latewood::instruction_set() == ::latewood::InstructionSet::avx512        \
       ? ::latewood::isa_avx512::NAME(__VA_ARGS__)                            \
   : ::latewood::instruction_set() == ::latewood::InstructionSet::avx2        \
       ? ::latewood::isa_avx2::NAME(__VA_ARGS__)                              \
       : ::latewood::isa_baseline::NAME(__VA_ARGS__))
#define LATEWOOD_FOR_EACH_ISA(DECLARATIONS)                                   \
  namespace latewood { namespace isa_baseline { DECLARATIONS }                \
  namespace isa_avx2 { DECLARATIONS } namespace isa_avx512 { DECLARATIONS } }
#else
#define LATEWOOD_DISPATCH(NAME, ...) ::latewood::isa_baseline::NAME(__VA_ARGS__)
#define LATEWOOD_FOR_EACH_ISA(DECLARATIONS)                                   \
  namespace latewood { namespace isa_baseline { DECLARATIONS } }
#endif
