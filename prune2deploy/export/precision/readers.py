"""Which runtime an int8 file was written for, read from the file."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, numpy_helper

from prune2deploy.errors import ExportError


def made_for_onnx_runtime(path: Path) -> bool:
    """Whether a file quantizes activations as ONNX Runtime wants it: TensorRT parses none of it.

    That is uint8 values, or zero points that are not 0 (runtime "onnxruntime" of `to_int8`).

    Raises:
        ExportError: it is not an ONNX file.
    """
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception as err:  # protobuf's decoding errors have no common class but Exception.
        raise ExportError(f"{path} is not a valid ONNX model: {err}") from err
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or len(node.input) < 3:
            continue
        zero = constants.get(node.input[2])
        if zero is None:
            continue
        if zero.data_type == TensorProto.UINT8 or numpy_helper.to_array(zero).any():
            return True
    return False
