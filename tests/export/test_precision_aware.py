"""Quantization-aware training sees what the int8 file computes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from precision_networks import SHAPE, Residual, random_images, save_network
from saturation import SATURATES
from torch import Tensor, nn

from prune2deploy.errors import ExportError
from prune2deploy.export import fold_batchnorm
from prune2deploy.export.parity import OnnxModel
from prune2deploy.export.precision import to_int8
from prune2deploy.export.precision.aware import round_like


class Branches(nn.Module):
    """Two branches that are joined, one of them grouped, and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 8, 3, padding=1)
        self.right = nn.Conv2d(3, 6, 1)
        self.grouped = nn.Conv2d(14, 14, 3, padding=1, groups=2, bias=False)
        self.norm = nn.BatchNorm2d(14)
        self.up = nn.ConvTranspose2d(14, 6, 2, stride=2)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.left(x).relu(), self.right(x).relu()], 1)
        x = self.up(self.norm(self.grouped(x)).relu())
        return self.head(x.mean((2, 3)))


def made(network: type[nn.Module], folder: Path, runtime: Any) -> tuple[nn.Module, Path, Path]:
    torch.manual_seed(3)
    model = network().eval()
    source = save_network(model, folder / "fp32.onnx")
    target = folder / "int8.onnx"
    to_int8(source, target, batches=random_images(32), runtime=runtime)
    return fold_batchnorm(model, torch.randn(4, *SHAPE)), source, target


def outputs(path: Path, images: Tensor) -> Tensor:
    if SATURATES:  # then the runtime does not compute what the file says
        reference = ReferenceEvaluator(str(path))
        name = reference.input_names[0]
        given = [{name: chunk.numpy()} for chunk in images.split(4)]
        return torch.cat([torch.from_numpy(reference.run(None, one)[0]) for one in given])
    with OnnxModel(path) as model:
        return torch.cat([next(iter(model.predict(chunk).values())) for chunk in images.split(4)])


@pytest.mark.parametrize("runtime", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize("network", [Residual, Branches])
def test_it_computes_like_the_int8_file(
    network: type[nn.Module], runtime: Any, tmp_path: Path
) -> None:
    model, source, target = made(network, tmp_path, runtime)
    images = torch.from_numpy(np.concatenate(random_images(64, seed=1)))
    with torch.no_grad():
        exact = model(images)
        rounding = round_like(model, source, target)
        found = model(images)
    wanted = outputs(target, images)
    # What is left is a small part of what int8 changes.
    change = (wanted - exact).square().mean().sqrt()
    left = (found - wanted).square().mean().sqrt()
    assert change > 0
    assert left < 0.5 * change
    agreement = (found.argmax(1) == wanted.argmax(1)).float().mean()
    assert agreement >= (exact.argmax(1) == wanted.argmax(1)).float().mean()
    rounding.remove()


def test_removing_it_leaves_the_weights_and_nothing_else(tmp_path: Path) -> None:
    model, source, target = made(Residual, tmp_path, "onnxruntime")
    before = copy.deepcopy(model.state_dict())
    images = torch.randn(4, *SHAPE)
    plain = model(images)
    rounding = round_like(model, source, target)
    assert sorted(rounding.layers) == ["depthwise", "head", "pointwise", "stem"]
    rounded = model(images)
    rounding.remove()
    assert set(model.state_dict()) == set(before)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(model(images), plain)
    assert not torch.equal(rounded, plain)


def test_every_weight_gets_a_gradient(tmp_path: Path) -> None:
    model, source, target = made(Residual, tmp_path, "onnxruntime")
    round_like(model, source, target)
    model(torch.randn(8, *SHAPE)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_batch_norms_that_stay_keep_their_statistics(tmp_path: Path) -> None:
    class Before(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)
            self.conv = nn.Conv2d(3, 5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.norm(x).relu()).mean((2, 3))

    model, source, target = made(Before, tmp_path, "onnxruntime")
    norm = model.get_submodule("norm")
    assert isinstance(norm, nn.BatchNorm2d)
    before = [t.clone() for t in norm.buffers()]
    round_like(model, source, target)
    model.train()
    model(5 + torch.randn(8, *SHAPE))
    assert all(torch.equal(a, b) for a, b in zip(before, norm.buffers(), strict=True))


def test_training_regains_what_rounding_took(tmp_path: Path) -> None:
    """One channel's weights dwarf the others in a depthwise layer read by coarse activations."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 5, 1),
        nn.Flatten(),
        nn.Linear(720, 5),
    ).eval()
    with torch.no_grad():
        # The first activation is a thousand times the others, whose range it takes.
        model[0].weight[0] *= 3000
        model[0].bias[0] *= 3000
        model[2].weight[:, 0] /= 30000
    images = torch.from_numpy(np.concatenate(random_images(256)))
    with torch.no_grad():
        model[4].bias -= model(images).mean(0)  # no class is always the largest
        labels = model(images).argmax(1)
    source = save_network(model, tmp_path / "fp32.onnx")
    to_int8(source, tmp_path / "int8.onnx", batches=[images[:64].numpy()])

    def right(path: Path) -> float:
        return float((outputs(path, images).argmax(1) == labels).float().mean())

    before = right(tmp_path / "int8.onnx")
    assert before < 0.9
    rounding = round_like(model, source, tmp_path / "int8.onnx")
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    rounding.remove()
    trained = save_network(model, tmp_path / "trained.onnx")
    to_int8(trained, tmp_path / "trained.int8.onnx", batches=[images[:64].numpy()])
    assert right(tmp_path / "trained.int8.onnx") > before + 0.05


def test_a_model_of_other_layers_is_refused(tmp_path: Path) -> None:
    _, source, target = made(Residual, tmp_path, "onnxruntime")
    with pytest.raises(ExportError, match="None of the 4 int8 layers"):
        round_like(nn.Sequential(nn.Conv2d(3, 8, 3)), source, target)
