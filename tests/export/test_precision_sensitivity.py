import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from precision_networks import random_images, save_network
from saturation import exact_int8
from torch import nn

from prune2deploy.errors import ExportError
from prune2deploy.export.precision import (
    calibrate,
    compare_files,
    precision_of,
    sensitivity,
    to_int8_within,
)
from prune2deploy.export.precision.sensitivity import _fewest

IMAGES = random_images(8, 8)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that int8 ruins in one layer, "4".

    Its input channel 0 is always zero, so the huge weights that read it change nothing
    in fp32; in int8 they make the steps so coarse that the other weights become zero.
    """
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )
    with torch.no_grad():
        for layer in model[:-1]:
            if isinstance(layer, nn.Conv2d):
                layer.weight *= 3
        model[2].weight[0] = 0
        model[2].bias[0] = -1
        model[4].weight[:, 0] = 1000.0
    return save_network(model, tmp_path_factory.mktemp("planted") / "model.onnx")


def closeness(source: Path) -> Callable[[Path], float]:
    """Judge a file by the distance of its outputs from the original's: 0 is best."""
    return lambda path: -compare_files(path, source, IMAGES).rms_rel_diff


@pytest.mark.parametrize("runtime", ["onnxruntime", "tensorrt"])
def test_the_planted_layer_is_the_costliest_by_far(runtime: str, planted: Path) -> None:
    costs = sensitivity(
        planted,
        IMAGES,
        calibration=calibrate(planted, IMAGES),
        runtime=runtime,  # type: ignore[arg-type]
    )
    assert {cost.layer for cost in costs} == {"0", "2", "4", "6", "10"}
    assert (costs[0].layer, costs[0].op) == ("4", "Conv")
    assert costs[0].rms_rel_diff > 5 * costs[1].rms_rel_diff
    assert costs == sorted(costs, key=lambda cost: -cost.rms_rel_diff)
    assert all(math.isfinite(cost.rms_rel_diff) and cost.rms_rel_diff > 0 for cost in costs)


@exact_int8
def test_just_the_planted_layer_is_given_back(planted: Path, tmp_path: Path) -> None:
    judged: list[float] = []

    def judge(path: Path) -> float:
        judged.append(closeness(planted)(path))
        return judged[-1]

    result = to_int8_within(
        planted, tmp_path / "q.onnx", judge=judge, floor=-0.06, batches=iter(IMAGES)
    )
    assert [cost.layer for cost in result.given_back] == result.quantized.kept == ["4"]
    assert result.evaluations == len(judged) == 2
    assert (result.full_quality, result.quality) == (judged[0], judged[1])
    assert result.quantized.path == tmp_path / "q.onnx"
    assert closeness(planted)(tmp_path / "q.onnx") == result.quality >= -0.06
    # ONNX Runtime itself must not quantise what the file leaves in fp32.
    counts = precision_of(tmp_path / "q.onnx")
    assert (counts["fp32"].layers, counts["int8"].layers) == (1, 4)


def test_nothing_is_given_back_where_int8_is_good_enough(planted: Path, tmp_path: Path) -> None:
    result = to_int8_within(
        planted, tmp_path / "q.onnx", judge=closeness(planted), floor=-10, batches=IMAGES
    )
    assert (result.given_back, result.evaluations) == ([], 1)
    assert result.quality == result.full_quality
    assert precision_of(tmp_path / "q.onnx")["int8"].layers == 5


@exact_int8
def test_a_layer_kept_by_choice_is_not_given_back_again(planted: Path, tmp_path: Path) -> None:
    result = to_int8_within(
        planted,
        tmp_path / "q.onnx",
        judge=closeness(planted),
        floor=-0.06,
        batches=IMAGES,
        keep=["4"],
    )
    assert (result.given_back, result.quantized.kept) == ([], ["4"])


def test_a_floor_that_int8_cannot_hold_is_said_plainly(planted: Path, tmp_path: Path) -> None:
    (tmp_path / "q.onnx").write_text("what was there before")
    with pytest.raises(
        ExportError,
        match=r"int8 cannot hold -1e-09: with all 5 layers .* with 4 layers back in fp32; "
        r"in fp32 it reaches -0. Costliest layers: 4 \(",
    ):
        to_int8_within(
            planted, tmp_path / "q.onnx", judge=closeness(planted), floor=-1e-9, batches=IMAGES
        )
    assert (tmp_path / "q.onnx").read_text() == "what was there before"


def test_a_floor_above_the_original_is_not_the_fault_of_int8(planted: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"fp32 file itself reaches 0\.5, below the floor of 0\.6"
    ):
        to_int8_within(
            planted, tmp_path / "q.onnx", judge=lambda path: 0.5, floor=0.6, batches=IMAGES
        )


@pytest.mark.parametrize("most", [1, 2, 3, 7, 20, 53])
def test_the_search_finds_the_smallest_count_in_few_steps(most: int) -> None:
    for needed in range(1, most + 2):
        asked: list[int] = []

        def holds(count: int, needed: int = needed, asked: list[int] = asked) -> bool:
            asked.append(count)
            return count >= needed

        assert _fewest(holds, most) == (needed if needed <= most else None)
        assert len(asked) <= 2 * math.log2(most) + 2
        assert len(set(asked)) == len(asked)
        assert all(1 <= count <= most for count in asked)
    assert _fewest(lambda count: True, 0) is None
