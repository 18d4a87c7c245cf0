"""Tracing: kinds of inputs and outputs, what is left alone, and what goes wrong."""

from __future__ import annotations

import logging
from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from networks import Net, assert_groups, randomize_norms
from torch import Tensor, nn

from prune2deploy.channels import rules, trace
from prune2deploy.errors import ModelError


def image() -> Tensor:
    return torch.randn(2, 3, 8, 8)


def plain(**options: Any) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, **options), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)
    )


@dataclass
class Scores:
    scores: Tensor
    inner: list[Tensor]


Pair = namedtuple("Pair", "a b")


@pytest.mark.parametrize(
    "pack",
    [
        lambda a, b: (a, b),
        lambda a, b: {"a": a, "rest": [b]},
        lambda a, b: Pair(a, {"b": b}),
        lambda a, b: Scores(a, [b]),
        lambda a, b: [Scores(a, [b]), "text", None],
    ],
    ids=["tuple", "dict", "namedtuple", "dataclass", "nested"],
)
def test_every_tensor_that_the_model_returns_keeps_its_channels(pack: Any) -> None:
    def forward(net: nn.Module, x: Tensor) -> Any:
        x = net.free(x)
        return pack(net.a(x), net.b(x))

    model = Net(forward, free=nn.Conv2d(3, 8, 1), a=nn.Conv2d(8, 5, 1), b=nn.Conv2d(8, 6, 1))
    graph = trace(model, image())
    assert [g.name for g in graph.groups] == ["free"]
    assert {(f.name, f.size, f.reason) for f in graph.frozen} == {
        ("a", 5, "reaches the model's output"),
        ("b", 6, "reaches the model's output"),
    }


def test_an_answer_without_tensors_is_refused() -> None:
    model = Net(lambda net, x: str(net.a(x).shape), a=nn.Conv2d(3, 8, 1))
    with pytest.raises(ModelError, match=r"returns str and no tensor.*Return a tensor"):
        trace(model, image())


@pytest.mark.parametrize(
    "inputs",
    [
        (torch.randn(2, 3, 8, 8), torch.randn(2, 5, 8, 8)),
        {"left": torch.randn(2, 3, 8, 8), "right": torch.randn(2, 5, 8, 8)},
    ],
    ids=["positional", "named"],
)
def test_several_inputs_come_as_a_tuple_or_by_name(inputs: Any) -> None:
    def forward(net: nn.Module, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        x = net.left(left) + net.right(right)
        return net.head(x), net.head(x.relu())

    model = Net(forward, left=nn.Conv2d(3, 8, 1), right=nn.Conv2d(5, 8, 1), head=nn.Conv2d(8, 4, 1))
    graph = assert_groups(model, inputs, {"left": 8})
    assert graph.cost.macs(graph.full) == 64 * (24 + 40 + 2 * 32)


def test_integer_inputs_go_through_an_embedding() -> None:
    model = Net(
        lambda net, words: net.head(net.conv(net.table(words).transpose(1, 2)).amax(2)),
        table=nn.Embedding(20, 6),
        conv=nn.Conv1d(6, 8, 3),
        head=nn.Linear(8, 4),
    )
    graph = assert_groups(model, torch.randint(20, (2, 10)), {"table": 6, "conv": 8})
    assert graph.unknown_ops == {}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_float_types_are_traced_as_they_are(dtype: torch.dtype) -> None:
    graph = trace(randomize_norms(plain()).to(dtype), image().to(dtype))
    assert [(g.name, g.size) for g in graph.groups] == [("0", 8)]


@pytest.mark.parametrize("where", ["around trace", "in forward"])
def test_inference_mode_changes_nothing(where: str) -> None:
    model = nn.Sequential(plain(), nn.Flatten(), nn.Linear(144, 5))
    usual = trace(randomize_norms(model), image())
    if where == "in forward":
        model = Net(torch.inference_mode()(lambda net, x: net.inner(x)), inner=model)
        graph = trace(model, image())
        assert [g.size for g in graph.groups] == [8, 4]
    else:
        with torch.inference_mode():
            graph = trace(model, image())
        assert [(g.name, g.size) for g in graph.groups] == [("0.0", 8), ("0.3", 4)]
        assert [g.taps[0].site for g in graph.groups] == [g.taps[0].site for g in usual.groups]
    assert graph.unknown_ops == {}
    assert graph.cost.macs(graph.full) == usual.cost.macs(usual.full)


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(plain(), nn.Dropout(), nn.Conv2d(4, 4, 1))
    model.register_parameter("unused", nn.Parameter(torch.randn(3)))  # makes it run in train mode
    model.train()
    model[0][1].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    x = image()
    random = torch.random.get_rng_state()
    trace(model, x)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[k], before[k]) for k in before)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(p.grad is None for p in model.parameters())


class WithAuxiliary(nn.Module):
    """Two answers in train mode, one in eval mode."""

    def __init__(self, dropout: nn.Module | None = None) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.dropout = dropout or nn.Identity()
        self.aux = nn.Linear(8, 5)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        x = self.dropout(self.stem(x)).mean((2, 3))
        return (self.head(x), self.aux(x)) if self.training else self.head(x)


@pytest.mark.parametrize(
    "dropout", [None, nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout()], ids=str
)
def test_what_runs_in_train_mode_only_is_traced_too(dropout: nn.Module | None) -> None:
    graph = trace(WithAuxiliary(dropout), torch.randn(1, 3, 8, 8))
    assert [(g.name, g.size) for g in graph.groups] == [("stem", 8)]
    assert ("aux.weight", 1) in {(s.tensor, s.dim) for s in graph.groups[0].slots}
    assert {f.name for f in graph.frozen} == {"aux", "head"}
    assert graph.cost.macs(graph.full) == 64 * 24 + 32  # of the eval mode


def test_a_model_that_cannot_run_in_train_mode_is_still_traced(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class NeedsTargets(WithAuxiliary):
        def forward(self, x: Tensor, targets: Tensor | None = None) -> Any:
            if self.training and targets is None:
                raise ValueError("targets are missing")
            return super().forward(x)

    with caplog.at_level(logging.WARNING):
        graph = trace(NeedsTargets(), image())
    assert [g.name for g in graph.groups] == ["stem"]
    assert "targets are missing" in caplog.text


def test_parameters_that_nothing_uses_stay() -> None:
    model = plain()
    model.register_parameter("unused", nn.Parameter(torch.randn(3)))
    graph = trace(model, image())
    assert [g.name for g in graph.groups] == ["0"]


@pytest.mark.parametrize(
    "error", [AssertionError("only squares"), NotImplementedError("later"), KeyError("x")]
)
def test_a_failing_forward_says_so_whatever_it_raises(error: Exception) -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        raise error

    with pytest.raises(ModelError, match=r"\(2, 3, 8, 8\).*" + type(error).__name__):
        trace(Net(forward, a=nn.Conv2d(3, 8, 1)), image())


def test_a_wrong_shape_is_named() -> None:
    with pytest.raises(ModelError, match=r"\(2, 1, 8, 8\).*expected input.*model.input"):
        trace(plain(), torch.randn(2, 1, 8, 8))


def test_a_bug_in_a_rule_is_not_blamed_on_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(tracer: object, call: object) -> None:
        raise IndexError("our own")

    monkeypatch.setitem(rules.RULES, "aten.convolution", broken)
    with pytest.raises(IndexError, match="our own"):
        trace(plain(), image())


def test_inputs_without_a_batch_are_refused_when_they_are_needed() -> None:
    model = Net(lambda net, n: net.a(torch.ones(2, 3, 8, 8)) * n, a=nn.Conv2d(3, 8, 1))
    graph = trace(model, [3])
    with pytest.raises(ModelError, match="no tensor with a batch dimension"):
        _ = graph.cost


@pytest.mark.parametrize(
    ("exclude", "groups"),
    [
        ([], ["first", "block.0", "block.2"]),
        (["block"], []),  # what it reads stays too, or its columns would go
        (["block.?"], []),
        (["first.weight"], ["block.0", "block.2"]),
        (["block.0.bias", "*irst"], ["block.2"]),
        (["block.2"], ["first"]),
        (["head"], ["first", "block.0"]),
    ],
)
def test_excluded_layers_are_not_touched(exclude: list[str], groups: list[str]) -> None:
    model = Net(
        lambda net, x: net.head(net.block(net.first(x))),
        first=nn.Conv2d(3, 8, 1),
        block=nn.Sequential(nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 7, 1)),
        head=nn.Conv2d(7, 4, 1),
    )
    graph = trace(model, image(), exclude=exclude)
    assert [g.name for g in graph.groups] == groups
    excluded = {f.name for f in graph.frozen if f.reason.startswith("excluded")}
    assert excluded == {"first", "block.0", "block.2"} - set(groups)


def test_an_exclusion_that_matches_nothing_is_refused() -> None:
    with pytest.raises(ModelError, match="'layer9' matches no parameter or module"):
        trace(plain(), image(), exclude=["layer9"])
    model = nn.Sequential()
    model.add_module("classifier", nn.Conv2d(3, 4, 1))
    with pytest.raises(ModelError, match="Did you mean 'classifier'"):
        trace(model, image(), exclude=["clasifier"])
