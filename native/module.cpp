// The Python module: each kernel file binds its own functions; this file only lists them.
#include <nanobind/nanobind.h>

#include "cpu.hpp"
#include "tensors.hpp"

namespace nb = nanobind;

void bind_faults(nb::module_ &module);
void bind_inpainting(nb::module_ &module);
void bind_integer_network(nb::module_ &module);
void bind_masked_weight(nb::module_ &module);
void bind_mixed_products(nb::module_ &module);
void bind_noise(nb::module_ &module);
void bind_optim(nb::module_ &module);
void bind_staged_step(nb::module_ &module);

NB_MODULE(_native, module) {
  module.doc() = "Native CPU kernels of Latewood; call them through latewood.kernels.";
  module.def("instruction_set", &latewood::instruction_set_name);
  latewood::bind_tensors(module);
  bind_faults(module);
  bind_inpainting(module);
  bind_integer_network(module);
  bind_masked_weight(module);
  bind_mixed_products(module);
  bind_noise(module);
  bind_optim(module);
  bind_staged_step(module);
}
