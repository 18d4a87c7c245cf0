"""JSON of the engine inspector in the dialect of each version."""

from __future__ import annotations

import json
from typing import Any


def inspector_text(
    version: tuple[int, ...], precision: str, detailed: bool = True, dynamic: bool = False
) -> str:
    """What the inspector of a version says about a convolution of this precision and a pool."""
    if not detailed:
        return json.dumps({"Layers": ["conv + act", "pool"], "Bindings": ["x", "y"]})
    word = {"fp32": "Float", "fp16": "Half", "int8": "Int8"}[precision]
    sentence = {
        "fp32": "Row major linear FP32",
        "fp16": "Channel major FP16 format where channel % 8 == 0",
        "int8": "Four wide channel vectorized row major Int8 format",
    }[precision]

    def tensor(name: str) -> dict[str, Any]:
        start = {"Name": name, "Location": "Device", "Dimensions": [1, 8, 16, 16]}
        if version >= (11,):
            return {**start, "Format": "Row major linear", "Datatype": word}
        if dynamic:
            return {**start, "Format/Datatype": "N/A due to dynamic shapes"}
        return {**start, "Format/Datatype": sentence if version < (10,) else word}

    def layer(name: str, kind: str, **more: Any) -> dict[str, Any]:
        tensors = {"Inputs": [tensor("a")], "Outputs": [tensor("b")]}
        return {"Name": name, "LayerType": kind, **tensors, **more}

    layers = [
        layer("Reformatting CopyNode for Input Tensor 0 to conv + act", "Reformat"),
        layer("conv + act", "CaskConvolution", ParameterType="Convolution", HasSparseWeights=0),
        layer("pool", "CaskPooling" if version >= (10,) else "TiledPooling"),
    ]
    if version >= (11,):
        return json.dumps({"Layers": layers, "I/O Tensors": [{"Name": "x"}, {"Name": "y"}]})
    return json.dumps({"Layers": layers, "Bindings": ["x", "y"]})
