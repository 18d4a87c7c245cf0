"""Small ONNX files that hold one layer in many widths.

Weights are made by the runtime when it loads the file (one number, repeated), so that a file of a
hundred layers has a few kilobytes. All branches run one after the other in every run, so that what
disturbs the device meets all widths alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prune2deploy.latency.staircase.specs import LayerSpec

Point = tuple[int, int]
"""Channels in and out."""

_VALUE = 0.01  # no zeros and no denormals: some kernels are faster or slower with those
_OPSET = 17


def weight_shape(spec: LayerSpec, point: Point) -> list[int]:
    """Shape of the layer's weight at these widths."""
    inside, outside = point
    if spec.kind == "linear":
        return [inside, outside]
    if spec.kind == "depthwise":
        return [outside, 1, *spec.kernel]
    if spec.kind == "grouped":
        return [outside, spec.group_width, *spec.kernel]
    if spec.kind == "layout":
        return [2 * outside, inside, *[1] * len(spec.size)]
    return [outside, inside, *spec.kernel]


def weight_bytes(spec: LayerSpec, point: Point) -> int:
    """Size of the layer's weight."""
    size = 4
    for length in weight_shape(spec, point):
        size *= length
    return size


def write_layers(path: Path, spec: LayerSpec, points: Sequence[Point]) -> dict[str, Point]:
    """Write one file with a branch for each point.

    Returns:
        {name of the branch's weight, as the runtime's profile tells it: point}.
    """
    from onnx import TensorProto, helper

    nodes: list[Any] = []
    inputs, outputs, named = [], [], {}
    for inside in sorted({point[0] for point in points}):
        image = [spec.rows, inside, *spec.size] if spec.size else [spec.rows, inside]
        inputs.append(helper.make_tensor_value_info(f"x{inside}", TensorProto.FLOAT, image))
    for number, point in enumerate(points):
        name = f"layer{number}"
        named[name] = point
        source = f"x{point[0]}"
        if spec.kind == "layout":  # of what a layer wrote, so that it is in the runtime's layout
            before = [point[0], point[0], *[1] * len(spec.size)]
            nodes += _weight(f"before{number}", before)
            given = [source, f"before{number}.weight"]
            source = f"before{number}.out"
            nodes.append(helper.make_node("Conv", given, [source], name=f"before{number}"))
        nodes += _weight(name, weight_shape(spec, point))
        nodes.append(_layer(spec, point, name, source))
        nodes.append(helper.make_node("Relu", [f"{name}.sum"], [f"{name}.out"]))
        # One number leaves each branch: copying whole images out would be timed as well.
        nodes.append(helper.make_node("ReduceMax", [f"{name}.out"], [f"{name}.max"], keepdims=0))
        outputs.append(helper.make_tensor_value_info(f"{name}.max", TensorProto.FLOAT, []))
    _save(path, nodes, inputs, outputs)
    return named


def write_chain(path: Path, length: int, width: int, size: Sequence[int]) -> None:
    """Write a file of so many equal convolutions, one after the other, that take hardly any time.

    size: of the image.
    """
    from onnx import TensorProto, helper

    nodes: list[Any] = []
    source = "x"
    for number in range(length):
        name = f"layer{number}"
        nodes += _weight(name, [width, width, *[1] * len(size)])
        given = [source, f"{name}.weight"]
        source = f"{name}.sum"
        nodes.append(helper.make_node("Conv", given, [source], name=name))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, width, *size])
        for name in ("x", source)
    ]
    _save(path, nodes, ends[:1], ends[1:])


def _save(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any]) -> None:
    import onnx
    from onnx import helper

    graph = helper.make_graph(nodes, "layers", inputs, outputs)
    opset = [helper.make_opsetid("", _OPSET)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)


def _weight(name: str, shape: Sequence[int]) -> list[Any]:
    """The nodes that make a weight."""
    from onnx import TensorProto, helper

    dims = helper.make_tensor(f"{name}.shape", TensorProto.INT64, [len(shape)], shape)
    value = helper.make_tensor(f"{name}.value", TensorProto.FLOAT, [1], [_VALUE])
    return [
        helper.make_node("Constant", [], [f"{name}.dims"], value=dims),
        helper.make_node("ConstantOfShape", [f"{name}.dims"], [f"{name}.weight"], value=value),
    ]


def _layer(spec: LayerSpec, point: Point, name: str, source: str) -> Any:
    from onnx import helper

    given = [source, f"{name}.weight"]
    if spec.kind == "linear":
        return helper.make_node("MatMul", given, [f"{name}.sum"], name=name)
    if spec.kind == "layout":
        return helper.make_node("Conv", given, [f"{name}.sum"], name=name)
    groups = 1
    if spec.kind == "depthwise":
        groups = point[1]
    elif spec.kind == "grouped":
        groups = point[0] // spec.group_width
    return helper.make_node(
        "Conv",
        given,
        [f"{name}.sum"],
        name=name,
        group=groups,
        strides=list(spec.strides),
        pads=list(spec.pads),
        dilations=list(spec.dilations),
    )
