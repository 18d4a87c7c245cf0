"""The engine's tables from findings made up here, and the reference that judges both tools."""

from __future__ import annotations

import copy
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

SOURCES = Path(__file__).parents[2] / "benchmarks"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SOURCES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    return load("engine_table")


@pytest.fixture(scope="module")
def references() -> ModuleType:
    return load("engine_reference")


def found(seconds: list[float], **changed: Any) -> dict[str, Any]:
    """What a process finds out when all is right."""
    timings = [{"seconds": s, "cpu_seconds": s, "peak_mib": 500.0, "steps": {}} for s in seconds]
    right = dict.fromkeys(("prunes", "runs", "trains", "exact"), True)
    costs = {"macs": [400, 100], "params": [100, 31], "cuttable_channels": 4000}
    return {**right, **costs, "norms": 0, "timings": timings, **changed}


ERROR = {"type": "RuntimeError", "message": "no gradient\nfor fc"}
TIMEOUT = {"type": "Timeout", "message": "not finished after 150 s, in the step 'set up'"}
MODELS = [
    # Fastest of ours 2 s, of the peer 6 s.
    {"model": "torchvision:good", "ours": found([3, 2], equal=True), "peer": found([6, 7])},
    {
        "model": "torchvision:slower",
        "ours": found([4], equal=True),
        "peer": found([1], cuttable_channels=4001, trains=False, trains_error=ERROR),
    },
    {"model": "torchvision:late", "ours": found([1]), "peer": {"error": TIMEOUT, "timings": []}},
]


def document(models: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "versions": {"torch-pruning": "9.9"},
        "setting": "L1",
        "threads": 1,
        "models": models,
    }


def text(tables: ModuleType, models: list[dict[str, Any]]) -> list[list[str]]:
    """The words of each row of the comparison."""
    console = Console(width=120)
    with console.capture() as capture:
        console.print(tables.comparison_table(document(models)))
    return [line.split() for line in capture.get().splitlines()]


def test_rows_show_the_fastest_repeats_and_their_ratio(tables: ModuleType) -> None:
    rows = text(tables, MODELS)
    shares = ["500", "−75", "%", "−69", "%", "4000"]
    assert ["good", "ours", "yes", "yes", "yes", "yes", "2.00", "2.00", *shares] in rows
    assert ["peer", "yes", "yes", "yes", "yes", "6.00", "6.00", *shares, "3.0×"] in rows


def test_an_unfinished_tool_is_a_row_and_no_ratio(tables: ModuleType) -> None:
    assert ["peer", "no", *["–"] * 9] in text(tables, MODELS)
    assert tables.ratio(MODELS[2]) is None


def test_totals_name_what_is_wrong_slower_and_wider(tables: ModuleType) -> None:
    lines = tables.total_lines(document(MODELS))
    assert "Torch-Pruning: 1 of 3 models right (1 no step, 1 fails)." in lines
    # 2 + 4 against 6 + 1 seconds.
    start = "The 2 models that both finish: ours 6.0 s, peer 7.0 s, ratio of the sums 1.2;"
    assert any(line.startswith(start) for line in lines)
    assert "Ours is slower on: slower (0.25×)." in lines
    assert "The peer has more channels on: slower (4001 against 4000; it is no step)." in lines
    assert "slower, peer: no step. RuntimeError: no gradient" in lines


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({}, "right"),
        ({"equal": True}, "right"),
        ({"equal": False}, "not exact"),
        ({"exact": False, "exact_difference": 0.1}, "not exact"),
        ({"exact": False, "exact_but_for_scale": True}, "scale"),
        ({"exact": None}, "unknown"),
        ({"exact": None, "equal": True}, "right"),
        ({"trains": None}, "unknown"),
        ({"runs": False, "exact": False}, "no run"),
        ({"prunes": False}, "prunes nothing"),
        ({"timings": []}, "fails"),
    ],
)
def test_one_wrong_answer_is_enough(
    tables: ModuleType, changed: dict[str, Any], verdict: str
) -> None:
    assert tables.verdict(found([1.0], **changed)) == verdict


def test_the_exponent_is_that_of_the_power_law(tables: ModuleType) -> None:
    points = [("a", 10, 10, 2.0), ("b", 20, 20, 4.0), ("c", 40, 40, 8.0)]  # 4 times: 2 times
    assert tables.fitted_exponent(points) == pytest.approx(0.5)
    assert tables.fitted_exponent(points[:1]) is None


def network() -> nn.Sequential:
    """With a norm behind the first layer and none behind the second."""
    torch.manual_seed(0)
    first, second, last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 2, 1)
    model = nn.Sequential(first, nn.GroupNorm(2, 8), nn.ReLU(), second, nn.ReLU(), last)
    nn.init.normal_(model[1].weight)
    nn.init.normal_(model[1].bias)
    return model.double().eval()


def cut_by_hand(model: nn.Sequential, keep: list[int], columns: list[int]) -> nn.Sequential:
    """Keep these rows of the first layer and of the norm, and these columns of the second."""
    small = copy.deepcopy(model)
    for layer in (small[0], small[1]):
        layer.weight = nn.Parameter(layer.weight[keep])
        layer.bias = nn.Parameter(layer.bias[keep])
    small[1].num_channels = len(keep)
    small[3].weight = nn.Parameter(small[3].weight[:, columns][1:5])
    small[3].bias = nn.Parameter(small[3].bias[1:5])
    small[5].weight = nn.Parameter(small[5].weight[:, 1:5])
    return small


def gap(references: ModuleType, model: nn.Sequential, small: nn.Sequential) -> float:
    images: Tensor = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        got = small(images)
        want = references.make_reference(model, small).model(images)
    return float((got - want).abs().max())


def test_a_right_cut_agrees_with_the_reference(references: ModuleType) -> None:
    keep = [0, 3, 4, 6]
    assert gap(references, network(), cut_by_hand(network(), keep, keep)) < 1e-12


def test_columns_of_other_channels_disagree(references: ModuleType) -> None:
    small = cut_by_hand(network(), [0, 3, 4, 6], [0, 2, 4, 6])
    assert gap(references, network(), small) > 1e-3


def test_changed_values_have_no_reference(references: ModuleType) -> None:
    small = cut_by_hand(network(), [0, 4], [0, 4])
    with torch.no_grad():
        small[3].weight[0, 0] += 1e-6
    with pytest.raises(references.NotComparable, match=r"3.weight: .*no choice"):
        references.make_reference(network(), small)


def test_kept_places_are_found_in_both_dimensions(references: ModuleType) -> None:
    whole = torch.arange(60.0).view(5, 12)
    places = references.kept_places(whole, whole[[1, 4]][:, [0, 5, 7]])
    assert [p.tolist() for p in places] == [[1, 4], [0, 5, 7]]


def test_equal_values_of_a_vector_become_distinct(references: ModuleType) -> None:
    layer = nn.BatchNorm1d(64)
    references.make_distinct(layer)
    for tensor in layer.state_dict().values():
        if not tensor.is_floating_point():
            continue
        assert len(tensor.unique()) == 64
        assert float((tensor - tensor.mean()).abs().max()) < 0.02
