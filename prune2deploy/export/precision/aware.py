"""Quantization-aware training: the network computes with the rounding of its int8 file.

Fake quantizers of torch (values are rounded and come back as floats; the gradient passes
straight through, and stops where a value is clipped) stand where the int8 file has its pairs of
QuantizeLinear and DequantizeLinear: at the input of each layer, at its output where that is
quantized directly, and on its weights, with the scales of the file. torch.ao.quantization, which
would do this too, is deprecated and follows its own rules for where they stand.

Not seen in training: that a sum's other operand is rounded as well where nothing but the sum
reads it, and int32 biases.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from prune2deploy.errors import ExportError
from prune2deploy.export.precision.graphs import load_graph, require_layers

log = logging.getLogger(__name__)

_WEIGHT_LIMIT = 127
"""int8 weights are symmetric, so -128 is not used."""

_OUTPUT_AXIS: dict[type[nn.Module], int] = {
    nn.ConvTranspose1d: 1,
    nn.ConvTranspose2d: 1,
    nn.ConvTranspose3d: 1,
}
"""Where a weight has its output channels, if not first."""


@dataclass(frozen=True)
class _Grid:
    """The values of a quantized tensor: scale * (n - zero) for n from low to high."""

    scale: float
    zero: int
    low: int
    high: int

    def round(self, x: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(
            x.float(), self.scale, self.zero, self.low, self.high
        )


class _RoundedWeight(nn.Module):
    """A weight with one scale per output channel, as large as its values need."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight as int8 has it."""
        others = [dim for dim in range(weight.dim()) if dim != self.axis]
        largest = weight.detach().abs().amax(dim=others).clamp_min(1e-12)
        zeros = torch.zeros(len(largest), dtype=torch.int32, device=weight.device)
        return torch.fake_quantize_per_channel_affine(
            weight, largest / _WEIGHT_LIMIT, zeros, self.axis, -_WEIGHT_LIMIT, _WEIGHT_LIMIT
        )


class Rounding:
    """The fake quantizers of one model, as long as they are in it."""

    def __init__(self, model: nn.Module, layers: list[str], handles: list[Any]) -> None:
        self.layers = layers
        self._model = model
        self._handles = handles

    def remove(self) -> None:
        """Leave the model with the weights that were trained, unrounded."""
        for handle in self._handles:
            handle.remove()
        for name in self.layers:
            layer = self._model.get_submodule(name)
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)


def round_like(model: nn.Module, source: Path, quantized: Path) -> Rounding:
    """Let a model compute as the int8 file made from it does.

    Args:
        model: with folded batch norms, as `source` was exported from it; it is changed until
            `Rounding.remove`. Batch norms that could not be folded keep their statistics.
        source: its fp32 file. quantized: the int8 file that was made from that.

    Raises:
        ExportError: a file cannot be read, or no int8 layer is a module of the model.
    """
    names = {layer.node: layer.name for layer in require_layers(load_graph(source), source)}
    places = _places(load_graph(quantized), names)
    modules = dict(model.named_modules())
    layers, handles = [], []
    for name, (inside, outside) in places.items():
        module = modules.get(name)
        if module is None or not isinstance(getattr(module, "weight", None), nn.Parameter):
            continue
        layers.append(name)
        axis = _OUTPUT_AXIS.get(type(module), 0)
        # unsafe: the sizes stay, and checking would run the rounding once more.
        parametrize.register_parametrization(module, "weight", _RoundedWeight(axis), unsafe=True)
        handles.append(module.register_forward_pre_hook(_before(inside)))
        if outside is not None:
            handles.append(module.register_forward_hook(_after(outside)))
    unseen = [name for name in places if name not in layers]
    if not layers:
        raise ExportError(
            f"None of the {len(places)} int8 layers of {quantized.name} is a module of the model, "
            "so training cannot see their rounding. Remove export.int8.finetune."
        )
    if unseen:
        log.warning("Training does not see the rounding of: %s", ", ".join(unseen))
    for module in modules.values():
        if isinstance(module, _BatchNorm):
            handles.append(module.register_forward_pre_hook(_frozen))
    return Rounding(model, layers, handles)


def _before(grid: _Grid) -> Callable[[nn.Module, tuple[Any, ...]], Any]:
    def rounded(module: nn.Module, inputs: tuple[Any, ...]) -> Any:
        return grid.round(inputs[0]), *inputs[1:]

    return rounded


def _after(grid: _Grid) -> Callable[[nn.Module, tuple[Any, ...], Any], Any]:
    def rounded(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        return grid.round(output)

    return rounded


def _frozen(module: nn.Module, inputs: Any) -> None:
    module.training = False


def _places(
    proto: onnx.ModelProto, names: Mapping[str, str]
) -> dict[str, tuple[_Grid, _Grid | None]]:
    """Per layer in int8 the grid of its input, and that of its output if it has one directly."""
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    makers = {name: node for node in proto.graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in proto.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found: dict[str, tuple[_Grid, _Grid | None]] = {}
    for node in proto.graph.node:
        maker = makers.get(node.input[0]) if node.input else None
        weight = makers.get(node.input[1]) if len(node.input) > 1 else None
        if node.name not in names or maker is None or maker.op_type != "DequantizeLinear":
            continue
        if weight is None or weight.op_type not in ("DequantizeLinear", "Transpose"):
            continue  # only its input is quantized, by what comes before
        after = [one for one in readers.get(node.output[0], []) if one.op_type == "QuantizeLinear"]
        outside = _grid(after[0], constants) if after else None
        found[names[node.name]] = (_grid(maker, constants), outside)
    return found


def _grid(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> _Grid:
    scale = float(numpy_helper.to_array(constants[node.input[1]]))
    zero = numpy_helper.to_array(constants[node.input[2]])
    limits = np.iinfo(zero.dtype)
    return _Grid(scale, int(zero), int(limits.min), int(limits.max))
