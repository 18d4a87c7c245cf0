"""What one does with a model after the cut: store it, load it, train, cut again, compile, copy."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
import torchvision
from networks import Net, assert_cut_is_exact, random_kept, randomize_norms, run
from torch import Tensor, nn

from prune2deploy.channels import Graph, cut, load_pruned, save_pruned, trace


def residual() -> nn.Module:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(net.norm1(net.stem(x)))
        x = F.relu(x + net.norm2(net.inner(x)))
        return net.head(F.adaptive_avg_pool2d(x, 1).flatten(1))

    return Net(
        forward,
        stem=nn.Conv2d(3, 12, 3, padding=1),
        norm1=nn.BatchNorm2d(12),
        inner=nn.Conv2d(12, 12, 3, padding=1),
        norm2=nn.BatchNorm2d(12),
        head=nn.Linear(12, 4),
    )


def squeezing() -> nn.Module:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        x = F.silu(net.norm(net.depth(net.stem(x))))
        gate = net.expand(F.relu(net.squeeze(F.adaptive_avg_pool2d(x, 1))))
        return net.head((x * torch.sigmoid(gate)).mean((2, 3)))

    return Net(
        forward,
        stem=nn.Conv2d(3, 12, 1),
        depth=nn.Conv2d(12, 12, 3, padding=1, groups=12),
        norm=nn.BatchNorm2d(12),
        squeeze=nn.Conv2d(12, 4, 1),
        expand=nn.Conv2d(4, 12, 1),
        head=nn.Linear(12, 4),
    )


def grouped() -> nn.Module:
    layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=4)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(16 * 16, 4))


class Attending(nn.Module):
    """A small vision transformer with a table of positions and PyTorch's own attention."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 2, stride=2)
        self.positions = nn.Parameter(torch.randn(1, 16, 12))
        self.norm = nn.LayerNorm(12)
        self.attend = nn.MultiheadAttention(12, 3, batch_first=True)
        self.up = nn.Linear(12, 20)
        self.down = nn.Linear(20, 12)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        y = self.norm(x)
        x = x + self.attend(y, y, y, need_weights=False)[0]
        x = x + self.down(F.gelu(self.up(x)))
        answer: Tensor = self.head(x.mean(1))
        return answer


MODELS = [residual, squeezing, grouped, Attending]


@pytest.fixture(params=MODELS, ids=lambda build: build.__name__)
def graph(request: pytest.FixtureRequest) -> Graph:
    torch.manual_seed(0)
    return trace(randomize_norms(request.param()), torch.randn(2, 3, 8, 8))


@pytest.fixture
def small(graph: Graph) -> nn.Module:
    """Cut at random, so that every group loses something."""
    plan = graph.plan(random_kept(graph.groups))
    normalised = isinstance(graph.model, Attending)
    return assert_cut_is_exact(graph.model, graph.inputs, graph, plan, normalised).eval()


def images() -> Tensor:
    return torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(7))


def train_step(model: nn.Module) -> float:
    """One step on fixed images with made-up classes; returns the loss before it."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loss = F.cross_entropy(model(images()), torch.arange(8) % 4)
    optimizer.zero_grad()
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    optimizer.step()
    return loss.item()


def test_it_goes_to_disk_and_back_without_pickle_and_trains_on(
    graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = graph.plan(random_kept(graph.groups))
    small = cut(graph.model, plan)

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("pickle was used")

    for module, name in ((torch, "save"), (torch, "load"), (torch.serialization, "load")):
        monkeypatch.setattr(module, name, refused)
    weights, cuts = tmp_path / "small.safetensors", tmp_path / "plan.json"
    save_pruned(small, plan, weights, cuts)
    again = load_pruned(copy.deepcopy(graph.model), weights, cuts)
    assert torch.equal(run(again, images()), run(small, images()))
    first = train_step(again)
    assert train_step(again) < first


def test_it_can_be_cut_again_and_both_cuts_are_one_plan(graph: Graph) -> None:
    first = graph.plan(random_kept(graph.groups, seed=1))
    once = cut(graph.model, first)
    second_graph = trace(once, graph.inputs)
    if not second_graph.groups:
        pytest.fail("nothing is left to cut a second time: the first cut was too deep to test")
    second = second_graph.plan(random_kept(second_graph.groups, seed=2))
    normalised = isinstance(graph.model, Attending)
    twice = assert_cut_is_exact(once, graph.inputs, second_graph, second, normalised)
    together = cut(graph.model, first.then(second))
    assert torch.equal(run(together, images()), run(twice, images()))


def test_a_copy_is_equal_and_stands_alone(small: nn.Module) -> None:
    twin = copy.deepcopy(small)
    before = run(small, images())
    assert torch.equal(run(twin, images()), before)
    train_step(twin)
    assert not torch.equal(run(twin, images()), before)
    assert torch.equal(run(small, images()), before)


def test_its_state_goes_into_another_cut_of_the_same_plan(graph: Graph) -> None:
    plan = graph.plan(random_kept(graph.groups))
    one, other = cut(graph.model, plan), cut(graph.model, plan)
    train_step(one)
    assert not torch.equal(run(one, images()), run(other, images()))
    assert other.load_state_dict(one.state_dict()).missing_keys == []
    assert torch.equal(run(one, images()), run(other, images()))


@pytest.mark.filterwarnings("ignore")  # of the compiler's own imports
def test_it_compiles_to_the_same_numbers(small: nn.Module) -> None:
    compiled = torch.compile(small, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images()), small(images()))


def test_it_can_be_exported_as_a_program(small: nn.Module) -> None:
    program = torch.export.export(small, (images(),))
    torch.testing.assert_close(program.module()(images()), run(small, images()))


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    if not dist.is_available():
        pytest.skip("this PyTorch has no torch.distributed")
    store = f"file://{tmp_path / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_it_trains_under_data_parallelism_like_alone(small: nn.Module) -> None:
    alone, wrapped = copy.deepcopy(small), copy.deepcopy(small)
    train_step(alone)
    train_step(nn.parallel.DistributedDataParallel(wrapped))
    for mine, theirs in zip(alone.parameters(), wrapped.parameters(), strict=True):
        torch.testing.assert_close(theirs, mine)


def test_a_real_network_does_all_of_this(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = randomize_norms(torchvision.models.resnet18(num_classes=4))
    example = torch.randn(1, 3, 64, 64)
    graph = trace(model, example)
    plan = graph.plan(random_kept(graph.groups))
    small = assert_cut_is_exact(model, example, graph, plan)
    save_pruned(small, plan, tmp_path / "w.safetensors", tmp_path / "p.json")
    torch.manual_seed(1)
    fresh = torchvision.models.resnet18(num_classes=4)
    again = load_pruned(fresh, tmp_path / "w.safetensors", tmp_path / "p.json")
    assert torch.equal(run(again, example), run(small, example))
    optimizer = torch.optim.SGD(again.train().parameters(), lr=0.01)
    F.cross_entropy(again(torch.randn(4, 3, 64, 64)), torch.arange(4)).backward()
    optimizer.step()
    next_graph = trace(again, example)
    next_plan = next_graph.plan(random_kept(next_graph.groups))
    assert_cut_is_exact(again, example, next_graph, next_plan)
