"""What the report knows of each layer, counted by hand."""

from __future__ import annotations

import pytest
import torch
from networks import Net
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from prune2deploy.channels import trace
from prune2deploy.report.network import TIED, Layer, Network


def residual() -> Net:
    """stem and second add up; first lies between them; head makes the output."""
    return Net(
        lambda n, x: n.head((n.stem(x) + n.second(n.norm(n.first(n.stem(x))).relu())).mean((2, 3))),
        stem=nn.Conv2d(3, 8, 3, padding=1),
        first=nn.Conv2d(8, 6, 3, padding=1),
        norm=nn.BatchNorm2d(6),
        second=nn.Conv2d(6, 8, 1),
        head=nn.Linear(8, 4),
    )


def layers_of(model: nn.Module, inputs: torch.Tensor) -> dict[str, Layer]:
    return {layer.name: layer for layer in Network(trace(model, inputs)).layers}


def test_layers_come_in_the_order_in_which_they_run() -> None:
    found = layers_of(residual(), torch.randn(1, 3, 8, 8))
    assert list(found) == ["stem", "first", "second", "head"]


def test_what_an_addition_couples_is_one_group() -> None:
    found = layers_of(residual(), torch.randn(1, 3, 8, 8))
    stem, first = found["stem"].groups, found["first"].groups
    assert found["second"].groups == stem
    assert found["head"].groups == []
    assert len(stem) == len(first) == 1
    assert stem != first
    assert found["first"].reads == set(stem)
    assert found["second"].reads == set(first)
    assert found["head"].reads == set(stem)


def test_a_layer_has_its_widths_its_norm_and_its_reason() -> None:
    found = layers_of(residual(), torch.randn(1, 3, 8, 8))
    widths = {name: (layer.inputs, layer.outputs) for name, layer in found.items()}
    assert widths == {"stem": (3, 8), "first": (8, 6), "second": (6, 8), "head": (8, 4)}
    assert found["first"].beside == ["norm"]
    assert found["head"].reasons == ["reaches the model's output"]
    assert found["head"].parts == {None: 4}
    # `stem` is called twice.
    assert [layer.calls for layer in found.values()] == [2, 1, 1, 1]


def test_shares_are_those_counted_by_hand() -> None:
    network = Network(trace(residual(), torch.randn(1, 3, 8, 8)))
    assert network.channels() == (8 + 6 + 8, 8 + 6 + 8 + 4)
    # stem 224, first 438, norm 12, second 56; head 36 stays.
    assert network.params_share() == pytest.approx(730 / 766)
    # On 8 × 8 pixels: stem twice 216, first 432, second 48; head 32 once.
    cut = 64 * (2 * 216 + 432 + 48)
    assert network.macs_share() == pytest.approx(cut / (cut + 32))


@pytest.mark.parametrize(
    ("module", "inputs", "outputs", "kind"),
    [
        (nn.Conv2d(8, 12, (3, 5), stride=2, groups=2), 8, 12, "3×5 /2 groups=2"),
        (nn.Conv2d(8, 8, 3, groups=8), 8, 8, "depthwise 3×3"),
        (nn.ConvTranspose2d(8, 12, 2, groups=4), 8, 12, "transposed 2×2 groups=4"),
    ],
)
def test_widths_and_kind_of_convolutions(
    module: nn.Module, inputs: int, outputs: int, kind: str
) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), module, nn.Conv2d(outputs, 4, 1))
    layer = layers_of(net, torch.randn(1, 3, 9, 9))["1"]
    assert (layer.inputs, layer.outputs, layer.kind) == (inputs, outputs, kind)


def test_matrix_products_know_their_outputs_in_either_layout() -> None:
    net = Net(
        lambda n, x: n.last(F.linear(x @ n.given.tanh(), n.turned.weight).relu() @ n.direct),
        given=torch.randn(5, 7),
        turned=nn.Linear(7, 9, bias=False),
        direct=nn.Parameter(torch.randn(9, 6)),
        last=nn.Linear(6, 2),
    )
    found = layers_of(net, torch.randn(3, 5))
    assert (found["turned"].inputs, found["turned"].outputs) == (7, 9)
    assert (found["direct"].inputs, found["direct"].outputs) == (9, 6)
    assert (found["last"].inputs, found["last"].outputs) == (6, 2)


def test_a_computed_weight_belongs_to_its_module() -> None:
    net = nn.Sequential(weight_norm(nn.Linear(5, 8)), nn.ReLU(), nn.Linear(8, 3))
    found = layers_of(net, torch.randn(2, 5))
    assert list(found) == ["0", "2"]
    assert found["0"].groups == [0]


def test_a_head_that_runs_in_train_mode_only_stands_behind_what_it_reads() -> None:
    net = Net(
        lambda n, x: (n.out(n.b(n.a(x))), n.aux(n.a(x))) if n.training else n.out(n.b(n.a(x))),
        a=nn.Linear(4, 6),
        b=nn.Linear(6, 7),
        out=nn.Linear(7, 2),
        aux=nn.Linear(6, 3),
    )
    network = Network(trace(net, torch.randn(2, 4)))
    assert [layer.name for layer in network.layers] == ["a", "aux", "b", "out"]
    aux = network.layers[1]
    assert (aux.calls, aux.inputs, aux.outputs) == (0, 6, 3)
    assert aux.reasons == ["reaches the model's output"]


def test_a_layer_tied_to_a_frozen_one_says_so() -> None:
    net = Net(
        lambda n, x: n.a(x) + n.b(x),
        a=nn.Linear(4, 6),
        b=nn.Linear(4, 6),
    )
    found = layers_of(net, torch.randn(2, 4))
    assert found["a"].reasons == ["reaches the model's output"]
    assert found["b"].reasons == [TIED]


def test_frozen_channels_name_the_layer_that_makes_them() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.Linear(5, 2))
    network = Network(trace(net, torch.randn(2, 4), exclude=["0"]))
    first, second, _ = network.layers
    assert first.reasons == ["excluded (0.weight)"]
    assert (second.reads, second.reads_frozen) == (set(), {"0"})


def test_tables_of_whole_numbers_shift_nothing() -> None:
    net = Net(
        lambda n, x: n.b(n.a(x)[:, n.table].relu()),
        table=torch.tensor([2, 0, 1, 3, 5, 4]),
        a=nn.Linear(4, 6),
        b=nn.Linear(6, 2),
    )
    network = Network(trace(net, torch.randn(2, 4), exclude=["a"]))
    assert network.layers[1].reads_frozen <= {"a"}
    assert [layer.name for layer in network.layers] == ["a", "b"]


def test_a_scale_of_a_block_goes_with_the_blocks_last_layer() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gamma = nn.Parameter(torch.ones(6))
            self.up = nn.Linear(6, 9)
            self.down = nn.Linear(9, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.gamma * self.down(self.up(x).relu())

    net = nn.Sequential(nn.Linear(4, 6), Block(), nn.Linear(6, 2))
    found = layers_of(net, torch.randn(2, 4))
    assert {name: layer.beside for name, layer in found.items()} == {
        "0": [],
        "1.up": [],
        "1.down": ["1.gamma"],
        "2": [],
    }
