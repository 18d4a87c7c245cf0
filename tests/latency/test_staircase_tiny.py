"""The small files: they run, and hold what they were asked to hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from prune2deploy.latency.staircase.specs import LayerSpec, spec_of
from prune2deploy.latency.staircase.tiny import Point, weight_bytes, weight_shape, write_layers

CONV = LayerSpec("conv", (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), (8, 8))
DEPTHWISE = LayerSpec("depthwise", (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), (8, 8))
GROUPED = LayerSpec("grouped", (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), (8, 8), group_width=4)
LINEAR = LayerSpec("linear", rows=6)
BATCH = LayerSpec("conv", (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), (4, 6), rows=3)

CASES: list[tuple[LayerSpec, list[Point]]] = [
    (CONV, [(3, 8), (3, 5), (16, 8), (1, 1)]),
    (DEPTHWISE, [(8, 8), (13, 13), (1, 1)]),
    (GROUPED, [(8, 8), (16, 32), (4, 4)]),
    (LINEAR, [(16, 10), (7, 3), (16, 1)]),
    (BATCH, [(4, 8), (5, 8)]),
]
LAYOUT = CONV.layout


@pytest.mark.parametrize(("spec", "points"), CASES, ids=lambda one: getattr(one, "key", None))
def test_a_file_runs_and_every_branch_gives_its_number(
    tmp_path: Path, spec: LayerSpec, points: list[Point]
) -> None:
    path = tmp_path / "layers.onnx"
    named = write_layers(path, spec, points)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs = {i.name: np.ones(i.shape, np.float32) for i in session.get_inputs()}
    # One input for each width that goes in, however many branches read it.
    assert len(inputs) == len({point[0] for point in points})
    outputs = dict(
        zip((o.name for o in session.get_outputs()), session.run(None, inputs), strict=True)
    )
    assert list(named.values()) == points
    for name, (inside, _) in named.items():
        # All ones times 0.01: the largest is at a place where the whole kernel lies in the image.
        read = {"depthwise": 1, "grouped": spec.group_width}.get(spec.kind, inside)
        assert outputs[f"{name}.max"] == pytest.approx(
            0.01 * read * np.prod(spec.kernel or (1,)), rel=1e-5
        )


@pytest.mark.parametrize(("spec", "points"), CASES, ids=lambda one: getattr(one, "key", None))
def test_the_layers_of_a_file_are_of_the_kind_that_was_asked_for(
    tmp_path: Path, spec: LayerSpec, points: list[Point]
) -> None:
    path = tmp_path / "layers.onnx"
    named = write_layers(path, spec, points)
    graph = onnx.load(path).graph
    images = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in graph.input}
    layers = {node.name: node for node in graph.node if node.op_type in ("Conv", "MatMul")}
    assert layers.keys() == named.keys()
    for name, point in named.items():
        image = images[layers[name].input[0]]
        shape = weight_shape(spec, point)
        found = spec_of(layers[name], image, shape, "float32")
        # One group of a grouped convolution is a plain one to whoever reads the file.
        alone = spec.kind == "grouped" and point[0] == spec.group_width
        single = spec.kind == "depthwise" and point[0] == 1
        if not alone and not single:
            assert found == spec
        assert weight_bytes(spec, point) == 4 * np.prod(shape)


def test_a_file_is_small_whatever_its_layers_hold(tmp_path: Path) -> None:
    path = tmp_path / "layers.onnx"
    points = [(512, width) for width in range(16, 513, 16)]
    write_layers(path, CONV, points)
    assert sum(weight_bytes(CONV, point) for point in points) > 100_000_000
    assert path.stat().st_size < 50_000


@pytest.mark.parametrize("width", [1, 4, 8, 16])
def test_a_change_of_layout_is_between_two_convolutions(tmp_path: Path, width: int) -> None:
    path = tmp_path / "layers.onnx"
    assert write_layers(path, LAYOUT, [(width, width)]) == {"layer0": (width, width)}
    onnx.checker.check_model(onnx.load(path), full_check=True)
    before, layer = (n for n in onnx.load(path).graph.node if n.op_type == "Conv")
    assert (before.name, layer.name) == ("before0", "layer0")
    assert layer.input[0] == before.output[0]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert given.shape == [1, width, 8, 8]
    (found,) = session.run(None, {given.name: np.ones(given.shape, np.float32)})
    assert found == pytest.approx(0.01 * 0.01 * width * width, rel=1e-5)
