// Which instruction set the kernels use on this machine, decided once when the module loads.
#pragma once

namespace latewood {

enum class InstructionSet { baseline, avx2, avx512 };

InstructionSet instruction_set();
const char *instruction_set_name();

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
