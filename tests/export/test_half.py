from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from onnx.reference import ReferenceEvaluator
from precision_models import (
    Residual,
    by_hand,
    exported,
    images,
    kinds_of_weights,
    network,
)

from prune2deploy.export.precision import (
    compare,
    precision_of,
    to_fp16,
    to_int8,
)
from prune2deploy.export.precision.kinds import layer_names, read


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(network(), tmp_path_factory.mktemp("fp32") / "model.onnx")


@pytest.fixture(scope="module")
def layers(source: Path) -> list[str]:
    return layer_names(read(source))


def test_fp16_is_close_and_its_weights_are_half(source: Path, tmp_path: Path) -> None:
    result = to_fp16(source, tmp_path / "half.onnx", batches=images(3, 2))
    assert (result.kept, result.images) == ({}, 6)  # The last batch of two was filled.
    assert precision_of(source) == {"fp32": 5, "fp16": 0, "int8": 0}
    assert precision_of(result.path) == {"fp32": 0, "fp16": 5, "int8": 0}
    assert set(kinds_of_weights(result.path).values()) == {"FLOAT16"}
    difference = compare(source, result.path, images(4, 3))
    assert 0 < difference.max_rel_diff < 2e-3
    assert (difference.equal_argmax, difference.samples) == (1.0, 7)


def test_what_is_around_the_layers_stays(source: Path, tmp_path: Path) -> None:
    before = onnx.load(source)
    to_fp16(source, tmp_path / "half.onnx")
    to_int8(source, tmp_path / "bytes.onnx", batches=images(4))
    for name in ("half.onnx", "bytes.onnx"):
        after = onnx.load(tmp_path / name)
        assert list(after.graph.input) == list(before.graph.input)
        assert list(after.graph.output) == list(before.graph.output)
        assert list(after.metadata_props) == list(before.metadata_props) != []
        assert after.producer_name == "prune2deploy"
        onnx.checker.check_model(after, full_check=True)


@pytest.mark.parametrize("position", range(5))
def test_a_layer_to_keep_stays_in_fp32(
    position: int, source: Path, layers: list[str], tmp_path: Path
) -> None:
    result = to_fp16(source, tmp_path / "half.onnx", keep=[layers[position]])
    assert result.kept == {layers[position]: "asked for"}
    assert precision_of(result.path) == {"fp32": 1, "fp16": 4, "int8": 0}
    kinds = kinds_of_weights(result.path)
    (node,) = (n for n in onnx.load(result.path).graph.node if n.name == layers[position])
    assert {kinds[name] for name in node.input[1:]} == {"FLOAT"}
    assert compare(source, result.path, images(4)).max_rel_diff < 2e-3


def overflowing() -> Residual:
    """Only between the second and third layer there are numbers of about 1e5."""
    model = network()
    factors = {"first": (100, 100), "second": (2e3, 2e5), "third": (5e-4, 100), "fourth": (0.01, 1)}
    with torch.no_grad():
        for name, (weight, bias) in factors.items():
            model.get_submodule(name).weight *= weight
            model.get_submodule(name).bias *= bias
    return model


def error_in_fp16(source: Path, half: Path) -> float:
    """Compute what the file says: ONNX Runtime on a CPU takes fp32 for much that is fp16."""
    (x,) = images(2, seed=1)
    expected, found = (
        ReferenceEvaluator(onnx.load(path)).run(None, {"input": x})[0] for path in (source, half)
    )
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_layers_that_overflow_are_found_and_kept_with_what_carries_their_numbers(
    layers: list[str], tmp_path: Path
) -> None:
    path = exported(overflowing(), tmp_path / "model.onnx")
    result = to_fp16(path, tmp_path / "half.onnx", batches=images(4))
    assert {name for name in result.kept if name in layers} == {layers[1], layers[2]}
    assert all("fp16 ends at 65504" in reason for reason in result.kept.values())
    assert precision_of(result.path) == {"fp32": 2, "fp16": 3, "int8": 0}
    assert error_in_fp16(path, result.path) < 5e-3
    unseen = to_fp16(path, tmp_path / "unseen.onnx")
    assert (unseen.kept, unseen.images) == ({}, 0)
    with np.errstate(all="ignore"):
        assert not error_in_fp16(path, unseen.path) < 0.1
    # The two layers alone are not enough: their numbers must not go through fp16 either.
    asked = to_fp16(path, tmp_path / "asked.onnx", keep=layers[1:3])
    with np.errstate(all="ignore"):
        assert not error_in_fp16(path, asked.path) < 0.1


def test_weights_that_a_kept_and_another_layer_share(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((4, 4), np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "a"),
        helper.make_node("MatMul", ["h", "w"], ["y"], "b"),
    ]
    path = by_hand(tmp_path / "m.onnx", nodes, {"w": weight})
    for keep in (["a"], ["b"]):
        result = to_fp16(path, tmp_path / "half.onnx", keep=keep)
        assert precision_of(result.path) == {"fp32": 1, "fp16": 1, "int8": 0}
        x = np.ones((1, 4), np.float32)
        assert compare(path, result.path, [x]).max_rel_diff < 2e-3
    everything = to_fp16(path, tmp_path / "full.onnx", keep=["a", "b"])
    assert precision_of(everything.path) == {"fp32": 2, "fp16": 0, "int8": 0}
    assert compare(path, everything.path, [np.ones((1, 4), np.float32)]).max_rel_diff == 0


def test_nodes_without_names_get_one_and_weights_out_of_reach_are_kept(tmp_path: Path) -> None:
    weights = {"w": np.eye(4, dtype=np.float32) * 1e5, "v": np.eye(4, dtype=np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["y"]),
    ]
    path = by_hand(tmp_path / "m.onnx", nodes, weights)
    result = to_fp16(path, tmp_path / "half.onnx")
    assert list(result.kept) == ["MatMul_1"]
    assert "'w' holds 1e+05" in result.kept["MatMul_1"]


def test_operators_without_fp16_are_named(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "product"),
        helper.make_node("CumSum", ["h", "axis"], ["y"], "sums"),
    ]
    weights = {"w": np.eye(4, dtype=np.float32), "axis": np.array(1)}
    result = to_fp16(by_hand(tmp_path / "m.onnx", nodes, weights), tmp_path / "half.onnx")
    assert result.kept == {"sums": "CumSum has no fp16"}
    assert precision_of(result.path)["fp16"] == 1
