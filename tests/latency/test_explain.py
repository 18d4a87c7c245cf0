"""Lost time, by cause: each cause shows when it is planted and only then, and all add up."""

from __future__ import annotations

import io
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from tiny_onnx import save
from torch import Tensor, nn

from prune2deploy.channels import cut, trace
from prune2deploy.errors import DeviceError
from prune2deploy.export import export_model_file
from prune2deploy.latency import ProfileOptions, profile_layers
from prune2deploy.latency.explain import Explanation, Measured, explain
from prune2deploy.latency.explain_actions import widths_action
from prune2deploy.latency.explain_format import format_explanation, waterfall
from prune2deploy.latency.explain_nodes import Widths, read_times
from prune2deploy.latency.layers import layers_from_answer
from prune2deploy.report.waterfall import waterfall_picture

CONV = {"kernel_shape": [1, 1]}
# Time of the made-up chip without any loss: ms per MAC, and for a pooling layer per channel.
MS_PER_MAC = 1e-5


def chain(path: Path, widths: list[int]) -> Path:
    """Convolutions of 1x1 on 8x8, a Relu behind each, and a pooling layer."""
    nodes, weights = [], []
    last = "x"
    for i in range(len(widths) - 1):
        shape = (widths[i + 1], widths[i], 1, 1)
        weights.append(numpy_helper.from_array(np.ones(shape, np.float32), f"l{i}.weight"))
        nodes.append(helper.make_node("Conv", [last, f"l{i}.weight"], [f"c{i}"], f"C{i}", **CONV))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"], f"R{i}"))
        last = f"r{i}"
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["y"], "P"))
    return save(path, nodes, [1, widths[0], 8, 8], weights, TensorProto.FLOAT)


Nodes = dict[str, tuple[str, float]]
"""Name of an executed node -> its operator and ms."""


def lossless(widths: list[int]) -> Nodes:
    times = {
        f"C{i}": ("Conv", widths[i] * widths[i + 1] * 64 * MS_PER_MAC)
        for i in range(len(widths) - 1)
    }
    return {**times, "P": ("GlobalAveragePool", 0.0)}


def facts(nodes: Nodes, outside: float, padded: dict[str, int]) -> dict[str, Any]:
    listed = []
    for index, (name, (op, ms)) in enumerate(nodes.items()):
        shape = [{"dtype": "float", "shape": [1, padded[name], 8, 8]}] if name in padded else None
        quartiles = dict.fromkeys(("q1", "median", "q3"), ms * 1000)
        tensors = {"inputs": None, "outputs": None, "output_shapes": shape}
        listed.append({"name": name, "op": op, "index": 100 + index, **tensors, **quartiles})
    run = (sum(ms for _, ms in nodes.values()) + outside) * 1000
    return {
        "nodes": listed,
        "runs": 50,
        "plain_run_us": {"median": run},
        # The profiler takes 0.1 ms outside the nodes.
        "profiled_run_us": {"median": run + 100},
        "outside_nodes_us": {"median": outside * 1000 + 100},
    }


class Planted:
    """Two files and their made-up profiles. `before`, `after`: as `lossless`, to be changed."""

    def __init__(self, folder: Path, before: list[int], after: list[int]) -> None:
        self.paths = {
            "original": chain(folder / "original.onnx", before),
            "pruned": chain(folder / "pruned.onnx", after),
        }
        self.before, self.after = lossless(before), lossless(after)
        self.outside = [0.0, 0.0]
        self.padded: dict[str, int] = {}

    def explained(
        self, measured: Measured | None = None, step: int | None = None, timed: bool = False
    ) -> Explanation:
        models = [
            facts(self.before, self.outside[0], {}),
            facts(self.after, self.outside[1], self.padded),
        ]
        setup = dict.fromkeys(("versions", "machine", "state"))
        answer = {"models": models, **setup}
        result = layers_from_answer("pi", self.paths, ProfileOptions(threads=1), answer)
        return explain(result, measured, step, timed=timed)


def shown(explanation: Explanation) -> dict[str, float]:
    """Causes that are there, in µs; checks that all of them add up."""
    whole = explanation.ideal_ms + sum(one.ms for one in explanation.causes)
    assert whole == pytest.approx(explanation.pruned_ms)
    for one in explanation.layers:
        parts = sum(getattr(one.loss, key) for key in one.loss.names())
        assert parts == pytest.approx(one.lost_ms)
    return {one.key: round(one.ms * 1000) for one in explanation.causes if abs(one.ms) > 1e-6}


def text_of(explanation: Explanation) -> str:
    console = Console(width=240, record=True, file=io.StringIO())
    for part in format_explanation(explanation):
        console.print(part, markup=False)
    return console.export_text()


@pytest.fixture
def halved(tmp_path: Path) -> Planted:
    """Every layer has half of its MACs, on widths that are multiples of 16."""
    return Planted(tmp_path, [64, 64, 64, 64], [64, 32, 64, 32])


def test_where_the_promise_is_kept_nothing_is_lost(halved: Planted) -> None:
    explanation = halved.explained(step=16)
    assert shown(explanation) == {}
    assert explanation.sentence == (
        "MACs promised 2.00 times, 2.00 were measured: nothing is lost."
    )
    assert explanation.actions == ()
    assert all(one.action == "" for one in explanation.layers)


def test_macs_cut_where_they_are_cheap(halved: Planted) -> None:
    costly = halved.before["C0"][1] * 3
    halved.before["C0"] = ("Conv", costly)
    halved.after["C0"] = ("Conv", costly / 2)
    assert shown(halved.explained()) == {}  # all layers were halved, costly ones as well
    uneven = Planted(halved.paths["pruned"].parent, [64, 64, 64], [64, 64, 32])
    uneven.before["C0"] = uneven.after["C0"] = ("Conv", costly)
    explanation = uneven.explained()
    # A quarter of the MACs is gone, and with C0 three times as costly an eighth of the time.
    assert shown(explanation) == {"uneven": round((costly * 4 / 3) * 1000 / 8)}
    assert "latency_ms" in explanation.actions[0]
    [action] = uneven.explained(timed=True).actions
    assert action.startswith("The budget of time chose so")
    assert explanation.layers[0].name == "l0"


def test_widths_off_the_step_take_as_long_as_the_next_step(tmp_path: Path) -> None:
    planted = Planted(tmp_path, [64, 64, 64], [64, 40, 64])
    full = 64 * 48 * 64 * MS_PER_MAC
    planted.after |= {"C0": ("Conv", full), "C1": ("Conv", full)}
    explanation = planted.explained(step=16)
    lost = round(2 * 64 * 8 * 64 * MS_PER_MAC * 1000)
    assert shown(explanation) == {"widths": lost}
    assert [one.action for one in explanation.layers[:2]] == [
        "make 40 channels 48 or 32",
        "make 40 channels in 48 or 32",
    ]
    assert explanation.actions == ("Prune again with round_to: 16 in prune.",)
    [action] = planted.explained(step=16, timed=True).actions
    assert action.startswith("The budget of time took widths off the step of 16")
    assert "most is lost to: widths off the step" in explanation.sentence
    # On the step nothing is lost to widths, and without a step nobody knows.
    assert "widths" not in shown(planted.explained(step=8))
    unknown = planted.explained()
    assert "widths" not in shown(unknown)
    assert "No step of widths is known" in " ".join(unknown.notes)


def test_the_step_is_found_by_what_the_runtime_padded(tmp_path: Path) -> None:
    planted = Planted(tmp_path, [64, 64, 64], [64, 40, 64])
    full = 64 * 48 * 64 * MS_PER_MAC
    planted.after |= {"C0": ("Conv", full), "C1": ("Conv", full)}
    planted.padded = {"C0": 48, "C1": 64}
    explanation = planted.explained()
    assert explanation.step == 16
    assert list(shown(explanation)) == ["widths"]
    planted.padded = {"C0": 40, "C1": 64}
    assert planted.explained().step is None


def test_widths_explain_no_more_than_there_is(tmp_path: Path) -> None:
    planted = Planted(tmp_path, [64, 64, 64], [64, 40, 64])
    assert shown(planted.explained(step=16)) == {}  # off the step, yet nothing was lost


def test_layers_that_macs_do_not_decide(halved: Planted) -> None:
    halved.before["P"] = halved.after["P"] = ("GlobalAveragePool", 2.0)
    explanation = halved.explained(step=16)
    assert shown(explanation) == {"not_macs": 1000}
    worst = explanation.layers[0]
    assert (worst.operator, worst.macs_share, worst.time_share) == ("GlobalAveragePool", None, 1.0)
    assert worst.action == "memory-bound: cut its input"


def test_a_layer_far_from_the_best_time_per_mac_is_bound_by_memory(halved: Planted) -> None:
    slow = halved.before["C1"][1] * 10
    halved.before["C1"] = ("Conv", slow)
    halved.after["C1"] = ("Conv", slow * 0.9)
    explanation = halved.explained(step=16)
    assert shown(explanation) == {"memory": round(slow * 0.4 * 1000)}
    assert explanation.layers[0].action.startswith("memory-bound: cut its input")
    # The same loss of a layer that computes as fast as others is not explained so.
    fast = halved.before["C2"][1]
    halved.before["C1"], halved.after["C1"] = ("Conv", fast), ("Conv", fast * 0.9)
    other = halved.explained(step=16)
    assert list(shown(other)) == ["rest"]
    assert other.layers[0].action == "remove the block instead"
    assert "explained by nothing that was found" in other.sentence


def test_a_layer_of_a_few_microseconds_costs_its_start(tmp_path: Path) -> None:
    planted = Planted(tmp_path, [64, 64, 64], [64, 32, 64])
    planted.before["C1"] = planted.after["C1"] = ("Conv", 0.015)
    worst = planted.explained(step=16).layers[0]
    assert (worst.name, worst.action) == ("l1", "fixed cost: fewer layers, not narrower ones")


def test_nodes_that_the_runtime_added(halved: Planted) -> None:
    halved.before["ReorderOutput"] = ("ReorderOutput", 0.2)
    halved.after["ReorderOutput"] = ("ReorderOutput", 0.1)
    assert shown(halved.explained()) == {}
    halved.after["ReorderInput"] = ("ReorderInput", 1.0)
    explanation = halved.explained()
    assert shown(explanation) == {"added": 1000}
    assert "(ReorderInput)" in explanation.actions[0]
    assert "ReorderInput 0 → 1 ms" in text_of(explanation)


def test_operators_that_are_no_longer_fused(halved: Planted) -> None:
    halved.after["R1"] = ("Relu", 0.7)
    explanation = halved.explained()
    assert shown(explanation) == {"unfused": 700}
    assert explanation.layers[0].action.startswith("it was fused into another layer before")
    # Where it stood alone before, it is just a layer without MACs.
    halved.before["R1"] = ("Relu", 0.7)
    assert shown(halved.explained()) == {"not_macs": 350}


def test_fixed_cost_outside_the_nodes_without_the_profilers_own(halved: Planted) -> None:
    halved.outside = [0.5, 0.5]
    explanation = halved.explained()
    assert shown(explanation) == {"outside": 250}
    halved.outside = [0.5, 0.25]
    assert shown(halved.explained()) == {}


def test_a_disturbed_measurement_takes_what_the_profile_does_not_show(halved: Planted) -> None:
    original = sum(ms for _, ms in halved.before.values())
    clean = Measured(original, original / (original / 2 + 1))
    assert shown(halved.explained(clean)) == {"rest": 1000}
    assert "the profile's plain runs 2.00" in " ".join(halved.explained(clean).notes)
    tainted = Measured(original, clean.speedup, ("The clock fell by 20 %.",))
    explanation = halved.explained(tainted)
    assert shown(explanation) == {"disturbed": 1000}
    assert "The clock fell by 20 %." in text_of(explanation)
    assert "Measure again" in explanation.actions[0]


def test_all_causes_at_once_add_up(tmp_path: Path) -> None:
    planted = Planted(tmp_path, [64, 64, 64, 64], [64, 40, 64, 24])
    planted.after |= {
        "C0": ("Conv", 64 * 48 * 64 * MS_PER_MAC * 1.1),
        "R1": ("Relu", 0.3),
        "P": ("GlobalAveragePool", 0.2),
        "ReorderInput": ("ReorderInput", 0.4),
    }
    planted.outside = [0.1, 0.3]
    explanation = planted.explained(step=16)
    found = shown(explanation)
    assert {"widths", "unfused", "added", "not_macs", "outside", "rest"} <= set(found)
    bars = waterfall(explanation)
    assert bars[-2].end_ms == pytest.approx(explanation.pruned_ms)
    assert bars[1].end_ms == bars[2].end_ms == explanation.ideal_ms
    for one, other in pairwise(bars[3:-1]):
        assert one.end_ms == pytest.approx(other.start_ms)
    text = text_of(explanation)
    assert text.startswith(explanation.sentence)
    assert "make 40 channels 48 or 32" in text
    picture = waterfall_picture(explanation)
    assert picture.count("<rect") == len(bars) + 1
    assert explanation.sentence[:30] in picture
    document = json.loads(json.dumps(explanation.to_dict()))
    assert sum(one["ms"] for one in document["causes"]) == pytest.approx(explanation.lost_ms)


def test_a_removed_layer_leaves_no_loss_of_its_own(tmp_path: Path) -> None:
    planted = Planted(tmp_path, [64, 64, 64], [64, 64])
    assert shown(planted.explained()) == {}


def test_which_widths_are_worth_having() -> None:
    assert widths_action(Widths(32, 40, False), 16) == "make 40 channels 48 or 32"
    assert widths_action(Widths(40, 40, True), 16) == "make 40 channels 48 or 32"
    assert widths_action(Widths(32, 5, False), 16) == "make 5 channels 16"
    both = widths_action(Widths(20, 40, False), 16)
    assert both == "make 40 channels out 48 or 32, make 20 channels in 32 or 16"
    assert widths_action(Widths(12, 16, False), 16) == "make 12 channels in 16 or 8"
    assert widths_action(Widths(6, 16, False), 16) == "make 6 channels in 8"


def test_an_input_of_half_a_step_is_no_waste_and_an_output_is() -> None:
    # ONNX Runtime reads 8 channels as they are where its kernels compute 16 (design.md, 5).
    assert Widths(8, 16, False).useful(16) == 1
    assert Widths(4, 16, False).useful(16) == 0.5
    assert Widths(12, 16, False).useful(16) == 0.75
    assert Widths(16, 8, False).useful(16) == 0.5
    assert Widths(8, 8, True).useful(16) == 0.5
    assert widths_action(Widths(8, 24, False), 16) == "make 24 channels 32 or 16"
    # Below 8 there are no halves: nothing was measured there.
    assert Widths(2, 4, False).useful(4) == 0.5


def test_macs_of_grouped_convolutions_and_linear_layers(tmp_path: Path) -> None:
    def weight(name: str, *shape: int) -> Any:
        return numpy_helper.from_array(np.ones(shape, np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "d.weight"], ["a"], group=8, pads=[1] * 4),
        helper.make_node("Conv", ["a", "e.weight"], ["b"], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["b"], ["c"]),
        helper.make_node("Flatten", ["c"], ["f"]),
        helper.make_node("Gemm", ["f", "g.weight"], ["h"], transB=1),
        helper.make_node("MatMul", ["h", "m.weight"], ["y"]),
    ]
    weights = [
        weight("d.weight", 8, 1, 3, 3),
        weight("e.weight", 16, 8, 1, 1),
        weight("g.weight", 10, 16),
        weight("m.weight", 10, 3),
    ]
    path = save(tmp_path / "m.onnx", nodes, ["batch", 8, 6, 6], weights, TensorProto.FLOAT)
    times = read_times(path, [])
    assert times.macs == 8 * 36 * 9 + 16 * 9 * 8 + 160 + 30
    assert times.unknown == ()
    unknown = save(tmp_path / "u.onnx", nodes, [1, 8, "h", 6], weights, TensorProto.FLOAT)
    assert read_times(unknown, []).unknown == ("d", "e")


def test_a_file_without_macs_is_refused(tmp_path: Path) -> None:
    planted = Planted(tmp_path, [8, 8], [8, 8])
    relu = [helper.make_node("Relu", ["x"], ["y"])]
    save(planted.paths["pruned"], relu, [1, 8, 8, 8], [], TensorProto.FLOAT)
    with pytest.raises(DeviceError, match=r"No MACs can be counted in .*pruned.onnx.*fixed input"):
        planted.explained()


class Small(nn.Module):
    """Two convolutions and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.body = nn.Conv2d(16, 32, 3, padding=1)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.body(torch.relu(self.stem(x))))
        return self.head(x.mean((2, 3)))


def test_an_export_of_the_package_is_explained(
    tmp_path: Path, quick_options: ProfileOptions
) -> None:
    torch.manual_seed(0)
    model = Small().eval()
    graph = trace(model, torch.zeros(1, 3, 16, 16))
    small = cut(
        model, graph.plan([np.arange(20 if g.size == 32 else g.size) for g in graph.groups])
    )
    paths = {"original": tmp_path / "original.onnx", "pruned": tmp_path / "pruned.onnx"}
    for network, path in zip((model, small), paths.values(), strict=True):
        export_model_file(network, path, input_shape=(3, 16, 16))
    explanation = explain(profile_layers(paths, options=quick_options))
    macs = [256 * 9 * (3 * 16 + 16 * width) + 4 * width for width in (32, 20)]
    assert explanation.promised == pytest.approx(macs[0] / macs[1])
    shown(explanation)
    layers = {one.name: one for one in explanation.layers}
    assert layers["body"].macs_share == pytest.approx(20 / 32)
    assert layers["stem"].macs_share == 1
    assert "The run has no measurement on local" in explanation.notes[0]
