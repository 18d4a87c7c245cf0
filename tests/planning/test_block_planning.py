"""Whole residual blocks go, so that a budget is met."""

from __future__ import annotations

import pytest
import torch
from networks import randomize_norms, run
from torch import Tensor, nn

from prune2deploy import cut, plan, trace
from prune2deploy.channels import Graph
from prune2deploy.channels.blocks import find_blocks, zeroed_blocks
from prune2deploy.errors import BudgetError, MethodError
from prune2deploy.methods import METHODS
from prune2deploy.methods.base import Step
from prune2deploy.models.cifar_resnet import resnet20
from prune2deploy.models.cifar_vgg import vgg16_bn


def images() -> Tensor:
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def graph() -> Graph:
    torch.manual_seed(0)
    return trace(randomize_norms(resnet20(), 0), images())


@pytest.mark.parametrize("name", ["sss", "ssl"])
def test_the_blocks_with_the_lowest_scores_go(graph: Graph, name: str) -> None:
    model = graph.model
    with torch.no_grad():
        for block in ("layer2.1", "layer3.2"):
            for parameter in model.get_submodule(block).parameters():
                parameter.mul_(1e-3)
    found = plan(graph, name, budget={"macs": 0.79}, structure="block")
    assert set(found.blocks) == {"layer2.1", "layer3.2"}
    small = cut(model, found)
    gone = [b for b in find_blocks(model, images()) if b.name in found.blocks]
    torch.testing.assert_close(run(small, images()), zeroed_blocks(model, images(), gone))
    after = trace(small, images())
    share = after.cost.macs(after.full) / graph.cost.macs(graph.full)
    assert share <= 0.79 * 1.02
    assert f"{share:.1%} of the macs are left" in found.notes[0]


def trained(method_name: str, graph: Graph, steps: int, **options: object) -> None:
    kind = METHODS[method_name]
    method = kind(kind.options(structure="block", **options))
    method.attach(graph)
    own = {id(p) for p in method.own_parameters()}
    rest = [p for p in graph.model.parameters() if id(p) not in own]
    optimizer = torch.optim.SGD(rest, lr=0.05)
    graph.model.train()
    for number in range(1, steps + 1):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(graph.model(images()), torch.arange(4))
        extra = method.extra_loss()
        (loss if extra is None else loss + extra).backward()
        optimizer.step()
        method.after_step(Step(0.05, number, steps, ends_epoch=number == steps))
    graph.model.eval()
    before = run(graph.model, images())
    method.detach()
    torch.testing.assert_close(run(graph.model, images()), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "penalty", "options"),
    [("sss", 2.0, {}), ("ssl", 5.0, {"proximal": True}), ("ssl", 0.05, {"proximal": False})],
)
def test_training_brings_blocks_to_zero(
    graph: Graph, name: str, penalty: float, options: dict[str, bool]
) -> None:
    # By so strong a penalty that nothing but zero is left; without one they stay.
    blocks = find_blocks(graph.model, images())
    lasts = [graph.model.get_parameter(f"{b.last}.weight") for b in blocks]
    convs = [graph.model.get_parameter(f"{b.name}.conv1.weight") for b in blocks]
    start = [c.detach().norm() for c in convs]
    trained(name, graph, 30, penalty=penalty, **options)
    if name == "sss":
        assert all(not weight.any() for weight in lasts)
    elif options["proximal"]:
        assert all(not weight.any() for weight in convs)
    else:
        assert all(c.norm() < 0.8 * s for c, s in zip(convs, start, strict=True))


def test_factors_of_blocks_stay_where_nothing_pulls(graph: Graph) -> None:
    trained("sss", graph, 2, penalty=0.0)
    blocks = find_blocks(graph.model, images())
    assert all(graph.model.get_parameter(f"{b.last}.weight").any() for b in blocks)


def test_what_blocks_cannot_reach_is_said(graph: Graph) -> None:
    with pytest.raises(BudgetError, match=r"without all 7 blocks that can go 18\.6% are left"):
        plan(graph, "sss", budget={"macs": 0.1}, structure="block")
    with pytest.raises(BudgetError, match="Use macs or params"):
        plan(graph, "sss", budget={"channels": 0.5}, structure="block")
    plain = trace(vgg16_bn().eval(), torch.randn(1, 3, 32, 32))
    with pytest.raises(MethodError, match="no residual block"):
        plan(plain, "ssl", budget={"macs": 0.5}, structure="block")
    for name in ("sss", "ssl"):
        with pytest.raises(MethodError, match="no residual block"):
            METHODS[name](METHODS[name].options(structure="block")).attach(plain)
    with torch.no_grad():
        graph.model.get_parameter("layer1.1.bn2.weight")[0] = float("nan")
    with pytest.raises(MethodError, match="NaN or inf"):
        plan(graph, "sss", budget={"macs": 0.75}, structure="block")
