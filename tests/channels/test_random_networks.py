"""Networks nobody thought of: whatever is traced can be cut, exactly and at the stated cost."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import (
    assert_cut_is_exact,
    counted_macs,
    counts,
    random_kept,
    randomize_norms,
    run,
)
from torch import Tensor, nn

from prune2deploy.channels import cut, trace

KINDS = (
    "conv",
    "norm",
    "relu",
    "sigmoid",
    "pool",
    "depthwise",
    "grouped",
    "add",
    "multiply",
    "cat",
    "shuffle",
    "gate",
    "transposed",
    "pad",
)
Step = tuple[str, int, int]
"""A kind, a width and a number that says which earlier map is the second operand."""


class Random(nn.Module):
    """Runs steps one after the other; every map so far can be read again."""

    def __init__(self, steps: list[Step], head: str) -> None:
        super().__init__()
        self.steps = steps
        self.head_kind = head
        self.layers = nn.ModuleDict()
        self.widths = [3]
        for number, (kind, width, pick) in enumerate(steps):
            self.widths.append(self._build(str(number), kind, width, pick % (number + 1)))
        entries = self.widths[-1] * (36 if head == "flatten" else 1)
        self.layers["hidden"] = nn.Linear(entries, 7)
        self.layers["head"] = nn.Linear(7, 4)

    def _build(self, number: str, kind: str, width: int, pick: int) -> int:
        """Add the step's layers; return the width of its result."""
        now, other = self.widths[-1], self.widths[pick]
        if kind == "norm":
            self.layers[number] = nn.BatchNorm2d(now)
        elif kind == "conv":
            self.layers[number] = nn.Conv2d(now, width, 3, padding=1)
            return width
        elif kind == "transposed":
            self.layers[number] = nn.ConvTranspose2d(now, width, 3, padding=1)
            return width
        elif kind == "depthwise":
            self.layers[number] = nn.Conv2d(now, now, 3, padding=1, groups=now, bias=False)
        elif kind == "grouped":
            groups = next(g for g in (4, 3, 2, 1) if now % g == 0)
            self.layers[number] = nn.Conv2d(now, groups * width, 1, groups=groups)
            return groups * width
        elif kind in ("add", "multiply"):
            if other != now:
                self.layers[number] = nn.Conv2d(other, now, 1)
        elif kind == "cat":
            return now + other
        elif kind == "gate":
            self.layers[number] = nn.Sequential(nn.Conv2d(now, width, 1), nn.ReLU())
            self.layers[f"{number}b"] = nn.Conv2d(width, now, 1)
        elif kind == "pad":
            return now + 2
        return now

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for number, (kind, _, pick) in enumerate(self.steps):
            maps.append(self._step(str(number), kind, maps[-1], maps[pick % (number + 1)]))
        x = maps[-1].flatten(1) if self.head_kind == "flatten" else maps[-1].mean((2, 3))
        result: Tensor = self.layers["head"](torch.tanh(self.layers["hidden"](x)))
        return result

    def _step(self, number: str, kind: str, x: Tensor, other: Tensor) -> Tensor:
        layer = self.layers[number] if number in self.layers else nn.Identity()
        if kind == "relu":
            return F.relu(x)
        if kind == "sigmoid":
            return torch.sigmoid(x)
        if kind == "pool":
            return F.max_pool2d(x, 3, stride=1, padding=1)
        if kind == "add":
            return x + layer(other)
        if kind == "multiply":
            return x * torch.tanh(layer(other))
        if kind == "cat":
            return torch.cat([x, other], 1)
        if kind == "gate":
            squeezed = layer(F.adaptive_avg_pool2d(x, 1))
            return x * torch.sigmoid(self.layers[f"{number}b"](squeezed))
        if kind == "shuffle":
            n, c, h, w = x.shape
            # Decided when the network was built: a cut must not change what forward does.
            parts = 2 if self.widths[int(number)] % 2 == 0 else 1
            return x.view(n, parts, c // parts, h, w).transpose(1, 2).reshape(n, c, h, w)
        if kind == "pad":
            return F.pad(x, (0, 0, 0, 0, 1, 1))
        result: Tensor = layer(x)
        return result


STEPS = st.lists(
    st.tuples(st.sampled_from(KINDS), st.integers(2, 6), st.integers(0, 9)), min_size=2, max_size=10
)


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(steps=STEPS, head=st.sampled_from(["flatten", "mean"]), seed=st.integers(0, 999))
def test_any_plan_for_any_network_is_exact(steps: list[Step], head: str, seed: int) -> None:
    torch.manual_seed(seed)
    model = randomize_norms(Random(steps, head), seed)
    image = torch.randn(2, 3, 6, 6)
    graph = trace(model, image)
    assert graph.unknown_ops == {}
    assert 2 * graph.cost.macs(graph.full) == counted_macs(model, image)
    for extra in range(2):
        kept = random_kept(graph.groups, seed + extra)
        small = assert_cut_is_exact(model, image, graph, graph.plan(kept))
        assert 2 * graph.cost.macs(counts(kept)) == counted_macs(small, image)


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(steps=STEPS, head=st.sampled_from(["flatten", "mean"]), seed=st.integers(0, 999))
def test_a_cut_network_can_be_cut_again(steps: list[Step], head: str, seed: int) -> None:
    torch.manual_seed(seed)
    model = randomize_norms(Random(steps, head), seed)
    image = torch.randn(2, 3, 6, 6)
    graph = trace(model, image)
    first = graph.plan(random_kept(graph.groups, seed))
    once = assert_cut_is_exact(model, image, graph, first)
    again = trace(once, image)
    second = again.plan(random_kept(again.groups, seed + 1))
    assert_cut_is_exact(once, image, again, second)
    composed = cut(model, first.then(second))
    twice = cut(once, second)
    assert torch.equal(run(composed, image), run(twice, image))
