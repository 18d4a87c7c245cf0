from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from precision_models import (
    Residual,
    exported,
    images,
    network,
)

from prune2deploy.errors import ExportError
from prune2deploy.export.precision import (
    compare,
    precision_of,
    sensitivity,
    to_int8_within,
)
from prune2deploy.export.precision.kinds import layer_names, read
from prune2deploy.export.precision.sensitivity import _fewest


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(network(), tmp_path_factory.mktemp("fp32") / "model.onnx")


@pytest.fixture(scope="module")
def layers(source: Path) -> list[str]:
    return layer_names(read(source))


def with_a_bad_layer() -> Residual:
    """Weights of the fourth layer that no int8 holds: one is 1e4 and reads a channel of zeros."""
    model = network()
    with torch.no_grad():
        model.first.weight[0], model.first.bias[0] = 0.0, -1.0
        model.third.weight[0], model.third.bias[0] = 0.0, -1.0
        model.fourth.weight[:, 0] = 1e4
    return model


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(with_a_bad_layer(), tmp_path_factory.mktemp("bad") / "model.onnx", batch=8)


def agreement_with(path: Path) -> Callable[[Path], float]:
    def judge(file: Path) -> float:
        return -compare(path, file, images(16, seed=1)).max_rel_diff

    return judge


@pytest.mark.parametrize("runtime", ["onnxruntime", "tensorrt"])
def test_a_planted_bad_layer_is_the_worst_and_alone_is_given_back(
    runtime: str, bad: Path, layers: list[str], tmp_path: Path
) -> None:
    costs = sensitivity(bad, images(16), runtime=runtime)
    assert sorted(cost.name for cost in costs) == sorted(layers)
    assert (costs[0].name, costs[0].operator) == (layers[3], "Conv")
    assert costs[0].relative_error > 10 * costs[1].relative_error > 0
    path = tmp_path / "q.onnx"
    within = to_int8_within(
        bad, path, judge=agreement_with(bad), floor=-0.1, batches=images(16), runtime=runtime
    )
    assert within.result.kept == (layers[3],)
    assert [count for count, _ in within.judged] == [0, 1]
    assert within.judged[0][1] < -0.1 <= within.score == agreement_with(bad)(path)
    assert precision_of(path) == {"fp32": 1, "fp16": 0, "int8": 4}


def test_everything_in_int8_where_that_is_good_enough(source: Path, tmp_path: Path) -> None:
    within = to_int8_within(
        source, tmp_path / "q.onnx", judge=lambda _: 0.9, floor=0.9, batches=images(8)
    )
    assert (within.result.kept, within.costs) == ((), ())
    assert within.judged == ((0, 0.9),)


def test_a_floor_out_of_reach_is_reported_and_nothing_written(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "q.onnx"
    with pytest.raises(
        ExportError, match=r"itself, all in fp32, has 0\.5, below the floor of 0\.9"
    ):
        to_int8_within(source, path, judge=lambda _: 0.5, floor=0.9, batches=images(8))

    def only_fp32(file: Path) -> float:
        return 0.0 if precision_of(file)["int8"] else 1.0

    with pytest.raises(
        ExportError, match=r"No int8 version .* with a single layer in int8 it is 0"
    ):
        to_int8_within(source, path, judge=only_fp32, floor=0.9, batches=images(8))
    with pytest.raises(ExportError, match="itself, all in fp32, has nan"):
        to_int8_within(source, path, judge=lambda _: float("nan"), floor=0.9, batches=images(8))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("most", [1, 2, 3, 7, 20, 100])
def test_few_files_are_judged(most: int) -> None:
    for wanted in (*range(1, most + 1), None):
        asked: list[int] = []

        def reaches(count: int, wanted: int | None = wanted, asked: list[int] = asked) -> bool:
            asked.append(count)
            return wanted is not None and count >= wanted

        assert _fewest(reaches, most) == (wanted or -1)
        assert len(asked) == len(set(asked)) <= 2 * most.bit_length()
        assert all(1 <= count <= most for count in asked)
    assert _fewest(lambda _: True, 0) == -1
