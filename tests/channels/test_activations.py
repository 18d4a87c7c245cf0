"""What read_activations shows at a tap is what the layer there reads."""

from __future__ import annotations

import pytest
import torch
from networks import randomize_norms
from torch import Tensor, nn

from prune2deploy.channels import trace
from prune2deploy.channels.activations import read_activations
from prune2deploy.models.cifar_resnet import resnet20


def inputs_of_layers(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What each convolution and linear layer reads, by forward hooks."""
    seen: dict[str, Tensor] = {}
    handles = [
        module.register_forward_pre_hook(
            lambda _, args, name=name: seen.__setitem__(name, args[0].clone())
        )
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    model.eval()
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("batch", [1, 3])
def test_a_tap_shows_the_input_of_its_layer(batch: int) -> None:
    model = randomize_norms(resnet20())
    graph = trace(model, torch.randn(1, 3, 32, 32))
    names = [n for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    x = torch.randn(batch, 3, 32, 32)
    expected = inputs_of_layers(model, x)
    shown: dict[int, Tensor] = {}
    sites = {tap.site for group in graph.groups for tap in group.taps}
    model.train()
    read_activations(model, x, sites, lambda site, t: shown.__setitem__(site, t.clone()))
    assert shown.keys() == sites
    assert len(sites) > 15
    for site in sites:
        # Layers run in the order of their names in this network.
        torch.testing.assert_close(shown[site], expected[names[site]])
    assert model.training, "the mode is restored"


def test_a_taps_index_finds_the_channels_of_the_group() -> None:
    # Channel c of the first layer is the constant c + 1, so its places are known.
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 6), nn.ReLU(), nn.Linear(6, 2)
    )
    nn.init.zeros_(model[0].weight)
    model[0].bias = nn.Parameter(torch.arange(1.0, 5.0))
    graph = trace(model, torch.randn(2, 3, 3, 3))
    (tap,) = graph.groups[0].taps
    found: list[Tensor] = []
    read_activations(model, torch.randn(2, 3, 3, 3), [tap.site], lambda _, t: found.append(t))
    values = found[0][:, torch.from_numpy(tap.index)]
    assert values.shape == (2, 4, 9)
    for c in range(4):
        assert (values[:, c] == c + 1).all()


def test_inference_mode_shows_the_same() -> None:
    model = randomize_norms(resnet20())
    x = torch.randn(2, 3, 32, 32)
    usual: list[Tensor] = []
    other: list[Tensor] = []
    read_activations(model, x, range(22), lambda _, t: usual.append(t.clone()))
    with torch.inference_mode():
        read_activations(model, x, range(22), lambda _, t: other.append(t.clone()))
    assert len(usual) == len(other) == 20
    assert all(torch.equal(a, b) for a, b in zip(usual, other, strict=True))
