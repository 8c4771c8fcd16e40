// Tensors of torch as the kernels see them. Nothing is taken on trust: every function that is handed
// tensors looks them up here, at that call, through the C interface that torch keeps stable.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>

#include "require.hpp"

namespace latewood {

// What a kernel reads or writes: memory, every element in a place of its own, without gaps, all of
// it inside the tensor's storage.
struct TensorView {
  void *data;
  std::int32_t dtype, device_type, device_index;
  std::int64_t dim, numel;
  const std::int64_t *sizes, *strides;
};

// The numbers by which torch knows the types that kernels work on.
struct TensorTypes {
  std::int32_t float32, float64, bfloat16, float16, int64, int32, uint8, boolean;
};
const TensorTypes &tensor_types();

// False for all that is no such memory on the CPU: other objects, subclasses, other devices, sparse
// or overlapping tensors, storages that were resized, values that still wait for their sign.
bool view_tensor(nanobind::handle object, TensorView *view);

// The same for memory on any device; `data` may be no address that this process can read.
bool view_memory(nanobind::handle object, TensorView *view);
bool on_cpu(const TensorView &view);
inline bool same_device(const TensorView &a, const TensorView &b) {
  return a.device_type == b.device_type && a.device_index == b.device_index;
}

bool same_shape(const TensorView &a, const TensorView &b);
// Of two tensors of the same shape: whether element k of the one lies where element k of the other
// does.
bool same_layout(const TensorView &a, const TensorView &b);

// The elements of a contiguous tensor of this type that has to have `n` of them.
template <typename T>
T *elements(nanobind::handle object, std::int32_t dtype, std::int64_t n) {
  TensorView view;
  require(view_tensor(object, &view), "not a tensor whose memory a kernel can work on");
  require(view.dtype == dtype && view.numel == n, "a tensor has another type or size");
  std::int64_t stride = 1;
  for (std::int64_t d = view.dim; d-- > 0; stride *= view.sizes[d])
    require(view.sizes[d] == 1 || n == 0 || view.strides[d] == stride, "a tensor has another layout");
  return static_cast<T *>(view.data);
}

void bind_tensors(nanobind::module_ &module);

}  // namespace latewood
