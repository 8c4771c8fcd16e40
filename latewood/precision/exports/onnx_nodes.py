"""Nodes and tensors of an ONNX graph, with names that nothing else in it has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

__all__ = ["OnnxNodes"]


class OnnxNodes:
    """Nodes in the order in which they compute, and the tensors that they read.

    Args:
        prefix: of all names.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.nodes: list[NodeProto] = []
        self.tensors: list[TensorProto] = []
        self._names = 0

    def add(self, operation: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Adds an operation with one output, and returns the name of that."""
        from onnx import helper

        output = self._name(operation)
        node = helper.make_node(operation, list(inputs), [output], name=output, domain=domain)
        # Sorted by the library: the same network gives the same file.
        node.attribute.extend(
            helper.make_attribute(name, value) for name, value in sorted(attributes.items())
        )
        self.nodes.append(node)
        return output

    def tensor(self, values: Any, dtype: Any = np.float32) -> str:
        """Adds a tensor, and returns its name."""
        from onnx import numpy_helper

        name = self._name("tensor")
        array = np.asarray(values, dtype=dtype)
        self.tensors.append(numpy_helper.from_array(array, name))
        return name

    def integers(self, values: NDArray[np.int64], bits: int) -> str:
        """Adds signed integers of 4, 8 or 16 bits, and returns the name of the tensor."""
        from onnx import TensorProto, helper

        if bits > 4:
            return self.tensor(values, np.dtype(f"int{bits}"))
        name = self._name("tensor")
        codes = (values.reshape(-1) & 15).astype(np.uint8)
        codes = np.append(codes, np.zeros(len(codes) % 2, np.uint8))
        packed = (codes[::2] | codes[1::2] << 4).tobytes()
        self.tensors.append(
            helper.make_tensor(name, TensorProto.INT4, values.shape, packed, raw=True)
        )
        return name

    def rename(self, old: str, new: str) -> None:
        """Gives an output another name."""
        for node in self.nodes:
            for names in (node.input, node.output):
                for place, name in enumerate(names):
                    if name == old:
                        names[place] = new

    def _name(self, what: str) -> str:
        self._names += 1
        return f"{self.prefix}.{what}_{self._names}"
