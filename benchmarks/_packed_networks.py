"""A whole ResNet-20 of packed layers and the same network in torch and onnxruntime."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latewood.models import resnet20
from latewood.precision import PackedModel, pack, quantize
from latewood.precision.formats import leave_input_format, leave_weight_format

__all__ = ["network_candidates", "packed_resnet"]


def packed_resnet(widths: Callable[[int], Tensor]) -> PackedModel:
    """A ResNet-20 of random weights whose hidden layers are packed; stem and head stay float.

    Args:
        widths: bits of so many input channels, uint8.
    """
    network = resnet20().eval()
    layers = [x for x in network.modules() if isinstance(x, nn.Conv2d | nn.Linear)]
    for layer in layers[1:-1]:
        bits = widths(layer.weight.shape[1])
        width = bits.reshape(1, -1, 1, 1)
        with torch.no_grad():
            scale = layer.weight.abs().flatten(1).amax(1).reshape(-1, 1, 1, 1) / 1.875
            layer.weight.copy_(scale * quantize(layer.weight / scale, width))
        leave_weight_format(layer, width, scale)
        leave_input_format(layer, bits, torch.tensor(0.5), torch.tensor(False))
    with torch.inference_mode(False):
        return pack(network, torch.randn(2, 3, 32, 32))


def network_candidates(
    packed: dict[str, PackedModel], images: int
) -> dict[str, Callable[[], object]]:
    """Calls that take float images and give float outputs, torch's eager form first.

    Args:
        packed: networks by name.
        images: in a call.
    """
    inputs = torch.randn(images, 3, 32, 32)
    plain = resnet20().eval()
    last = resnet20().eval().to(memory_format=torch.channels_last)
    inputs_last = inputs.contiguous(memory_format=torch.channels_last)
    candidates: dict[str, Callable[[], object]] = {
        "torch float32": lambda: plain(inputs),
        "torch float32, channels last": lambda: last(inputs_last),
    }
    compiled = torch.compile(resnet20().eval())
    try:
        compiled(inputs)
        candidates["torch float32, compiled"] = lambda: compiled(inputs)
    except Exception as error:  # no compiler, say
        print(f"torch.compile: {str(error).splitlines()[0]}")
    candidates |= _runtime_networks(plain, inputs)
    for name, model in packed.items():
        model.run(inputs)
        print(f"packed, {name}: {model.execution}")
        candidates[f"packed, {name}"] = _call(model, inputs)
    return candidates


def _call(model: PackedModel, inputs: Tensor) -> Callable[[], object]:
    return lambda: model.run(inputs)


def _runtime_networks(network: nn.Module, inputs: Tensor) -> dict[str, Callable[[], object]]:
    """onnxruntime in float32 and with static 8-bit integers, where it is installed."""
    try:
        import onnxruntime
        from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError:
        return {}

    class Calibration(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter([{"x": inputs.numpy()} for _ in range(4)])

        def get_next(self) -> Any:
            return next(self.batches, None)

    def session(path: Path) -> Callable[[], object]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        made = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        given = {"x": inputs.numpy()}
        return lambda: made.run(None, given)

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain, ready, small = (Path(folder) / f"{name}.onnx" for name in ("plain", "ready", "int8"))
        with torch.inference_mode(False):
            torch.onnx.export(
                network, (inputs.clone(),), str(plain), input_names=["x"], verbose=False
            )
        quant_pre_process(str(plain), str(ready))
        quantize_static(
            str(ready),
            str(small),
            Calibration(),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
        )
        return {
            "onnxruntime float32": session(plain),
            "onnxruntime static int8": session(small),
        }
