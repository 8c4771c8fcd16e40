"""Packed networks in the forms that other programs run."""

from __future__ import annotations

from latewood.precision.exports.c_export import CHeader, export_c
from latewood.precision.exports.onnx_export import ONNX_FORMS, OnnxFile, export_onnx
from latewood.precision.exports.onnx_layers import OnnxForm

__all__ = ["ONNX_FORMS", "CHeader", "OnnxFile", "OnnxForm", "export_c", "export_onnx"]
