"""What holds for every method in the table."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import run
from scoring import batches, build_mixed, make, scores_of, train
from torch import nn

from prune2deploy import methods
from prune2deploy.channels import Graph, Group, cut, trace
from prune2deploy.errors import MethodError
from prune2deploy.methods import METHODS, Context
from prune2deploy.methods.base import Step

EVERY = sorted(METHODS)
# Those that zero single weights are in test_weights.py.
NAMES = [name for name in EVERY if METHODS[name].granularity == "channel"]


def test_every_method_file_is_in_the_table() -> None:
    files = {p.stem for p in Path(str(methods.__file__)).parent.glob("*.py")}
    assert files - {"__init__", "base"} == set(METHODS)
    assert len(METHODS) >= 34


@pytest.mark.parametrize("name", EVERY)
def test_a_method_says_what_it_is_and_where_it_comes_from(name: str) -> None:
    kind = METHODS[name]
    assert kind.name == name
    assert kind.summary
    assert "http" in kind.source
    for field in kind.options.model_fields.values():
        assert field.description, "options are shown to people"


@pytest.mark.parametrize("name", NAMES)
def test_scores_have_one_finite_number_per_channel(name: str, mixed: Graph) -> None:
    scores = scores_of(name, mixed)
    assert len(scores) == len(mixed.groups)
    for group, score in zip(mixed.groups, scores, strict=True):
        assert score is not None
        assert score.shape == (group.size,)
        assert score.is_floating_point()
        assert score.isfinite().all()
        assert len(set(score.tolist())) > 1, "scores tell channels apart"


@pytest.mark.parametrize("name", NAMES)
def test_scoring_has_no_side_effect(name: str, mixed: Graph) -> None:
    model = mixed.model
    model.train()
    model.get_submodule("norm1").eval()
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    scores_of(name, mixed)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("name", NAMES)
def test_the_same_model_gives_the_same_scores(name: str) -> None:
    image = torch.randn(2, 3, 8, 8)
    first = scores_of(name, trace(build_mixed(), image))
    torch.manual_seed(99)
    second = scores_of(name, trace(build_mixed(), image))
    for a, b in zip(first, second, strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)


def permuted(model: nn.Module, group: Group, order: np.ndarray) -> nn.Module:
    """The same function with one group's channels in another order."""
    other = copy.deepcopy(model)
    tensors = {**dict(other.named_parameters()), **dict(other.named_buffers())}
    with torch.no_grad():
        for slot in group.slots:
            tensor = tensors[slot.tensor]
            to = torch.from_numpy(slot.index.reshape(-1))
            source = torch.from_numpy(slot.index[order].reshape(-1))
            tensor.index_copy_(slot.dim, to, tensor.index_select(slot.dim, source))
    return other


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("name", [n for n in NAMES if not METHODS[n].by_place])
def test_permuting_channels_permutes_their_scores(name: str, number: int, mixed: Graph) -> None:
    group = mixed.groups[number]
    order = np.random.default_rng(number).permutation(group.size)
    assert (order != np.arange(group.size)).any()
    model = permuted(mixed.model, group, order)
    x = batches(2, 2)[0]
    torch.testing.assert_close(model.eval()(x), mixed.model.eval()(x))
    before, after = scores_of(name, mixed), scores_of(name, trace(model, x))
    for n, (a, b) in enumerate(zip(before, after, strict=True)):
        assert a is not None
        assert b is not None
        expected = a[torch.from_numpy(order)] if n == number else a
        torch.testing.assert_close(b, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", [n for n in NAMES if not METHODS[n].needs_data])
def test_scores_of_other_float_types_are_close(name: str, dtype: torch.dtype) -> None:
    usual = scores_of(name, trace(build_mixed(), torch.randn(2, 3, 8, 8)))
    other = scores_of(name, trace(build_mixed().to(dtype), torch.randn(2, 3, 8, 8, dtype=dtype)))
    for a, b in zip(usual, other, strict=True):
        assert a is not None
        assert b is not None
        # bfloat16 weights, but not bfloat16 sums: rounded sums tie.
        assert b.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(b.float(), a.float(), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_training_with_the_hooks_stays_finite(name: str, mixed: Graph) -> None:
    method = make(name)
    model = mixed.model.train()
    method.attach(mixed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for number, images in enumerate(batches(12, 4), 1):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images), torch.arange(len(images)) % 4)
        extra = method.extra_loss()
        if extra is not None:
            assert extra.dim() == 0
            assert extra > 0
            loss = loss + extra
        loss.backward()
        method.after_backward()
        optimizer.step()
        method.after_step(Step(0.01, number, 3, ends_epoch=number == 3))
    assert all(p.isfinite().all() for p in model.parameters())
    hooks = ("extra_loss", "after_backward", "after_step")
    learns = any(getattr(type(method), h) is not getattr(methods.Method, h) for h in hooks)
    assert learns == (METHODS[name].needs_training or METHODS[name].may_train)


HOOKED = [n for n in NAMES if METHODS[n].attach is not methods.Method.attach]


@pytest.mark.parametrize("name", HOOKED)
def test_attaching_and_detaching_leave_the_function_as_it_was(name: str, mixed: Graph) -> None:
    kind, model = METHODS[name], mixed.model
    images = batches(4, 4)[0]
    plain = sorted(model.state_dict())
    before = run(model, images)
    method = make(name)
    method.attach(mixed)
    attached = run(model, images)
    train(method, mixed, steps=3, lr=0.01)
    trained = run(model, images)
    method.detach()
    left = run(model, images)
    for one, other, changes in (
        (before, attached, kind.attach_changes),
        (trained, left, kind.detach_changes),
    ):
        same = float((one - other).abs().max()) <= 1e-5 * float(one.abs().max())
        assert same != changes
    assert sorted(model.state_dict()) == plain
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    small = cut(model, mixed.plan([range(g.size // 2) for g in mixed.groups]))
    again = copy.deepcopy(small)
    again.load_state_dict(small.state_dict())
    torch.testing.assert_close(run(again, images), run(small, images))


def test_a_graph_without_groups_has_no_scores() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 4))
    graph = trace(model, torch.randn(2, 3, 2, 2))
    assert graph.groups == ()
    images = torch.randn(2, 3, 2, 2)
    for name in NAMES:
        context = Context(graph, lambda *_: [images], lambda m, *_: [m.eval()(images).sum()])
        assert make(name).score(context) == []


@pytest.mark.parametrize("name", ["ccprune", "gbn", "network_slimming", "scp", "vcnnp"])
def test_methods_that_need_a_norm_say_so(name: str) -> None:
    graph = trace(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)), torch.randn(2, 3, 8, 8))
    with pytest.raises(MethodError, match=f"{name} can judge none of the 1 groups.*batch norm"):
        scores_of(name, graph)


# These look at scales only; a score of NaN is refused by the planner.
SCALES_ONLY = ("network_slimming", "polarization", "rsnli", "scop", "scp", "sss", "vcnnp")


@pytest.mark.parametrize("name", [n for n in NAMES if n not in SCALES_ONLY])
def test_weights_that_are_not_finite_are_refused(name: str, mixed: Graph) -> None:
    with torch.no_grad():
        mixed.model.get_parameter("stem.weight")[2, 0, 0, 0] = float("nan")
    with pytest.raises(MethodError, match=r"NaN or inf\. Check the checkpoint"):
        scores_of(name, mixed)
