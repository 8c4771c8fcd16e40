#include "tensors.hpp"

#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>

#include <map>
#include <string>
#include <utility>

namespace nb = nanobind;

namespace latewood {

namespace {

// A handle is the address of an at::Tensor, which is one pointer to what `_cdata` of Python names.
using Handle = void **;
template <typename T>
using Getter = std::int32_t (*)(Handle, T *);
using Constant = std::int32_t (*)();

struct Torch {
  PyTypeObject *tensor = nullptr, *parameter = nullptr;
  PyObject *address = nullptr;  // the name of the attribute
  Getter<void *> data_ptr;
  Getter<std::int64_t> dim, numel, storage_offset, storage_size;
  Getter<const std::int64_t *> sizes, strides;
  Getter<std::int32_t> dtype, device_type, device_index, layout;
  std::int32_t cpu, strided;
  TensorTypes types;
};

Torch torch;

// Whether elements fill a stretch of memory without gaps, in any order of the dimensions.
bool dense(const TensorView &view) {
  std::int64_t expected = 1;
  bool contiguous = true;
  for (std::int64_t d = view.dim; d-- > 0; expected *= view.sizes[d])
    contiguous = contiguous && (view.sizes[d] == 1 || view.strides[d] == expected);
  if (contiguous || view.numel < 2) return true;
  // From the smallest stride outwards, each has to be the number of elements inside it.
  expected = 1;
  for (std::int64_t placed = 0; placed < view.numel; placed = expected) {
    std::int64_t next = expected;
    for (std::int64_t d = 0; d < view.dim; ++d)
      if (view.sizes[d] > 1 && view.strides[d] == expected) next = expected * view.sizes[d];
    if (next == expected) return expected == view.numel;
    expected = next;
  }
  return expected == view.numel;
}

std::int64_t bytes_of(std::int32_t dtype) {
  const TensorTypes &types = torch.types;
  if (dtype == types.float32) return 4;
  if (dtype == types.float64 || dtype == types.int64) return 8;
  if (dtype == types.bfloat16 || dtype == types.float16) return 2;
  if (dtype == types.int32) return 4;
  return dtype == types.boolean || dtype == types.uint8 ? 1 : 0;
}

void attach(nb::type_object tensor, nb::type_object parameter,
            const std::map<std::string, std::uintptr_t> &functions) {
  const auto look_up = [&](const char *name, auto *function) {
    const auto entry = functions.find(name);
    require(entry != functions.end() && entry->second, name);
    *function = reinterpret_cast<std::remove_pointer_t<decltype(function)>>(entry->second);
  };
  const auto constant = [&](const char *name) {
    Constant function;
    look_up(name, &function);
    return function();
  };
  look_up("get_data_ptr", &torch.data_ptr);
  look_up("get_dim", &torch.dim);
  look_up("get_numel", &torch.numel);
  look_up("get_storage_offset", &torch.storage_offset);
  look_up("get_storage_size", &torch.storage_size);
  look_up("get_sizes", &torch.sizes);
  look_up("get_strides", &torch.strides);
  look_up("get_dtype", &torch.dtype);
  look_up("get_device_type", &torch.device_type);
  look_up("get_device_index", &torch.device_index);
  look_up("get_layout", &torch.layout);
  torch.cpu = constant("device_type_cpu");
  torch.strided = constant("layout_strided");
  torch.types = {constant("dtype_float32"), constant("dtype_float64"), constant("dtype_bfloat16"),
                 constant("dtype_float16"), constant("dtype_int64"),   constant("dtype_int32"),
                 constant("dtype_uint8"),   constant("dtype_bool")};
  torch.parameter = reinterpret_cast<PyTypeObject *>(parameter.ptr());
  torch.address = PyUnicode_InternFromString("_cdata");
  torch.tensor = reinterpret_cast<PyTypeObject *>(tensor.ptr());
}

// Whether all are float32 tensors of one shape and one dense layout.
bool alike(nb::args tensors) {
  TensorView first, other;
  if (tensors.size() == 0 || !view_tensor(tensors[0], &first)) return false;
  if (first.dtype != torch.types.float32) return false;
  for (std::size_t k = 1; k < tensors.size(); ++k)
    if (!view_tensor(tensors[k], &other) || other.dtype != first.dtype ||
        !same_shape(first, other) || !same_layout(first, other))
      return false;
  return true;
}

// Whether this is memory that a kernel can work on, of a type that some kernel knows.
bool readable(nb::handle tensor) {
  TensorView view;
  return view_tensor(tensor, &view);
}

}  // namespace

const TensorTypes &tensor_types() { return torch.types; }

bool on_cpu(const TensorView &view) { return view.device_type == torch.cpu; }

bool view_tensor(nb::handle object, TensorView *view) {
  return view_memory(object, view) && on_cpu(*view);
}

bool view_memory(nb::handle object, TensorView *view) {
  const PyTypeObject *type = Py_TYPE(object.ptr());
  if (!torch.tensor || (type != torch.tensor && type != torch.parameter)) return false;
  const nb::object address = nb::steal(PyObject_GetAttr(object.ptr(), torch.address));
  void *tensor = address ? PyLong_AsVoidPtr(address.ptr()) : nullptr;
  if (!tensor) {
    PyErr_Clear();
    return false;
  }
  // In this order: what has no strides or no storage is found out before it is asked for them.
  std::int32_t layout;
  if (torch.layout(&tensor, &layout) || layout != torch.strided) return false;
  if (torch.device_type(&tensor, &view->device_type) ||
      torch.device_index(&tensor, &view->device_index))
    return false;
  if (torch.dtype(&tensor, &view->dtype)) return false;
  const std::int64_t element = bytes_of(view->dtype);
  if (!element) return false;
  std::int64_t offset, held;
  if (torch.dim(&tensor, &view->dim) || torch.numel(&tensor, &view->numel) ||
      torch.sizes(&tensor, &view->sizes) || torch.strides(&tensor, &view->strides) ||
      torch.storage_offset(&tensor, &offset) || torch.storage_size(&tensor, &held) || !dense(*view))
    return false;
  if (view->numel == 0) {
    view->data = nullptr;
    return true;
  }
  if (offset < 0 || (offset + view->numel) * element > held) return false;
  // Only part of a larger storage, of complex numbers, can wait for its sign.
  if (view->numel * element != held) {
    const nb::object negative = nb::steal(PyObject_CallMethod(object.ptr(), "is_neg", nullptr));
    if (!negative || PyObject_IsTrue(negative.ptr()) != 0) {
      PyErr_Clear();
      return false;
    }
  }
  return !torch.data_ptr(&tensor, &view->data) && view->data;
}

bool same_shape(const TensorView &a, const TensorView &b) {
  if (a.dim != b.dim || a.numel != b.numel) return false;
  for (std::int64_t d = 0; d < a.dim; ++d)
    if (a.sizes[d] != b.sizes[d]) return false;
  return true;
}

bool same_layout(const TensorView &a, const TensorView &b) {
  if (a.numel < 2) return true;
  for (std::int64_t d = 0; d < a.dim; ++d)
    if (a.sizes[d] > 1 && a.strides[d] != b.strides[d]) return false;
  return true;
}

void bind_tensors(nb::module_ &module) {
  module.def("attach", &attach);
  module.def("alike", &alike);
  module.def("readable", &readable);
}

}  // namespace latewood
