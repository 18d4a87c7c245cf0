"""The shadow of a network: linear, and its gradient is the importance that NISP propagates back.

Weights become |W|, biases 0, a batch norm becomes |gamma| / sqrt(variance + eps), activations
become the identity, a maximum the average, and a product of two maps (squeeze-and-excitation) a
sum, so that both get the whole score. The gradient of the shadow's output at a map is the score
of the map's neurons; residual additions, concatenations and strides come by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from prune2deploy.channels.forward import Inputs, call_model, mode_kept, output_tensors
from prune2deploy.errors import MethodError

# fmt: off
_IDENTITIES = frozenset(
    {
        "relu", "relu_", "relu6", "hardtanh", "hardtanh_", "leaky_relu", "leaky_relu_", "elu",
        "elu_", "selu", "celu", "gelu", "silu", "silu_", "mish", "hardswish", "hardswish_",
        "hardsigmoid", "hardsigmoid_", "sigmoid", "sigmoid_", "tanh", "tanh_", "softplus",
        "prelu", "clamp", "clamp_", "dropout", "dropout2d", "dropout3d", "feature_dropout",
        "softmax", "log_softmax", "logsigmoid", "exp", "sqrt", "rsqrt", "pow", "abs",
    }
)
# fmt: on
_CONVOLUTIONS = frozenset(
    {"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
)
_POOLS: Mapping[str, Callable[..., Tensor]] = {
    "max_pool1d": F.avg_pool1d,
    "max_pool2d": F.avg_pool2d,
    "max_pool3d": F.avg_pool3d,
    "adaptive_max_pool1d": F.adaptive_avg_pool1d,
    "adaptive_max_pool2d": F.adaptive_avg_pool2d,
    "adaptive_max_pool3d": F.adaptive_avg_pool3d,
}
_ATTENTION = frozenset(
    {
        "matmul",
        "__matmul__",
        "bmm",
        "scaled_dot_product_attention",
        "multi_head_attention_forward",
    }
)
_PRODUCTS = frozenset({"mul", "mul_", "__mul__", "__rmul__", "__imul__", "multiply"})


class _Shadow(TorchFunctionMode):
    """Runs a model as its shadow; adds up the gradient of what each weight makes.

    last: name of the weight that reads the final responses; scores do not pass it.
    responses: what it read.
    sums: by the name of a weight, one score per output channel, once backward has run.
    """

    def __init__(self, model: nn.Module, last: str | None = None) -> None:
        super().__init__()
        self._names = {id(p): name for name, p in model.named_parameters()}
        self._last = last
        self.responses: list[Tensor] = []
        self.sums: dict[str, Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name in _IDENTITIES:
            return args[0] if args else kwargs["input"]
        if name in _CONVOLUTIONS or name == "linear":
            x, weight, _, *rest = _filled(args, kwargs, ("input", "weight", "bias"))
            named = {k: v for k, v in kwargs.items() if k not in ("input", "weight", "bias")}
            if self._last is not None and self._names.get(id(weight)) == self._last:
                self.responses.append(x.movedim(-1 if name == "linear" else 1, -1))
                x = x.detach()
            out = func(x.double(), weight.detach().abs().double(), None, *rest, **named)
            return self._watched(weight, out, -1 if name == "linear" else 1)
        if name == "batch_norm":
            return self._normalised(*_filled(args, kwargs, _NORM_ARGUMENTS))
        if name in ("layer_norm", "group_norm", "instance_norm", "rms_norm"):
            return self._scaled(name, args, kwargs)
        if name in _POOLS:
            return _averaged(name, args, kwargs)
        if name in _PRODUCTS and all(isinstance(a, Tensor) for a in args[:2]):
            a, b = args[:2]
            if a.requires_grad and b.requires_grad:
                return a + b
        if name in _ATTENTION and all(a.requires_grad for a in args[:2] if isinstance(a, Tensor)):
            raise MethodError(
                "nisp propagates scores through layers with weights, and this network multiplies "
                "two feature maps, as attention does. Choose another method, for example taylor."
            )
        return func(*args, **kwargs)

    def _watched(self, weight: Tensor | None, out: Tensor, dim: int) -> Tensor:
        name = self._names.get(id(weight))
        if name is not None and out.requires_grad:

            def add(gradient: Tensor) -> None:
                found = gradient.movedim(dim, 0).flatten(1).sum(dim=1)
                self.sums[name] = self.sums.get(name, torch.zeros_like(found)) + found

            out.register_hook(add)
        return out

    def _normalised(self, x: Tensor, mean: Any, variance: Any, weight: Any, *rest: Any) -> Tensor:
        eps = rest[3] if len(rest) > 3 else 1e-5
        shape = (1, -1, *[1] * (x.dim() - 2))
        out = x.double()
        if variance is not None:
            out = out / (variance.double() + eps).sqrt().view(shape)
        if weight is not None:
            out = out * weight.detach().abs().double().view(shape)
        return self._watched(weight, out, 1)

    def _scaled(self, name: str, args: tuple[Any, ...], kwargs: Any) -> Tensor:
        """Norms of the activations themselves: their statistics count as constant."""
        x = args[0] if args else kwargs["input"]
        place = {"layer_norm": 2, "rms_norm": 2, "group_norm": 2, "instance_norm": 3}[name]
        weight = args[place] if len(args) > place else kwargs.get("weight")
        if weight is None:
            plain: Tensor = x.double()
            return plain
        along = (
            weight if name in ("layer_norm", "rms_norm") else weight.view(-1, *[1] * (x.dim() - 2))
        )
        out = x.double() * along.detach().abs().double()
        return self._watched(weight, out, -1 if name in ("layer_norm", "rms_norm") else 1)


_NORM_ARGUMENTS = (
    "input",
    "running_mean",
    "running_var",
    "weight",
    "bias",
    "training",
    "momentum",
    "eps",
)


def _filled(args: tuple[Any, ...], kwargs: Mapping[str, Any], names: tuple[str, ...]) -> list[Any]:
    """Arguments by position, the named ones put in their places, None where there is none."""
    found = list(args)
    for name in names[len(found) :]:
        found.append(kwargs.get(name, 1e-5 if name == "eps" else None))
    return found


def _averaged(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    average = _POOLS[name]
    if name.startswith("adaptive"):
        size: Any = args[1] if len(args) > 1 else kwargs["output_size"]
        result: Tensor = average(args[0], size)
        return result
    names = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode")
    x, kernel, stride, padding, _, ceil_mode = _filled(args, kwargs, names)[:6]
    return average(x, kernel, stride, padding or 0, bool(ceil_mode))


def propagate(
    model: nn.Module, inputs: Inputs, start: tuple[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Return the score of every output channel of every layer and norm.

    Args:
        model: not modified; run in eval mode.
        inputs: of any values; only their shapes matter.
        start: name of the last layer's weight, and a score for each channel that it reads;
            None: every output has a score of 1.

    Returns:
        By the name of a layer's weight or a norm's scale: shape (output channels,), float64,
        >= 0, summed over positions.

    Raises:
        MethodError: the network multiplies two feature maps, a score is not finite, or with
            `start` not all outputs come from the last layer.
    """

    def prepared(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return torch.ones_like(value, dtype=torch.float64).requires_grad_()
        return value

    shadow = _Shadow(model, None if start is None else start[0])
    with torch.enable_grad(), mode_kept(model, training=False), shadow:
        outputs = output_tensors(call_model(model, tree_map(prepared, inputs)))
    total = [x.sum() for x in outputs if x.requires_grad]
    if start is not None:
        if total or len(shadow.responses) != 1:
            raise MethodError(
                f"nisp with ranking inf_fs needs one last layer that all outputs come from, and "
                f"'{start[0]}' is none. Write ranking: classifier."
            )
        total = [(x * start[1].to(x)).sum() for x in shadow.responses if x.requires_grad]
    if total:
        torch.autograd.backward(torch.stack([x.double() for x in total]).sum())
    for name, sums in shadow.sums.items():
        if not sums.isfinite().all():
            raise MethodError(
                f"nisp: the scores of '{name}' are NaN or inf. Check the checkpoint; if it is "
                "clean, the network is too deep for scores that grow with every layer, and "
                "another method such as taylor should be used."
            )
    return shadow.sums
