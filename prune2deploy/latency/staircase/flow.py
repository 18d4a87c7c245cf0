"""Widths of the tensors of a file, as forms of the channels that are kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from prune2deploy.latency.staircase.specs import LayerSpec, spec_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Form = NDArray[np.float64]

Length = Callable[[str, int], "Form | None"]
"""(parameter, dimension) -> its length as a linear form of the kept channels of each group."""

WEIGHTY = ("Conv", "Gemm", "MatMul")

_KEEP_LAYOUT = (
    "Relu",
    "Clip",
    "Sigmoid",
    "Tanh",
    "HardSigmoid",
    "Add",
    "Mul",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "Concat",
)


class Passed(NamedTuple):
    """What is known of a node when it has been passed.

    inside, outside: widths in and out. spec: what layer it is. layout: the change of layout that
    may have to go before it, of convolutions whose input a convolution wrote.
    """

    inside: Form
    outside: Form
    spec: LayerSpec | None = None
    layout: LayerSpec | None = None


class Flow:
    """Follows the widths of tensors through a file, as forms of the kept channels."""

    def __init__(self, proto: Any, length: Length, groups: int) -> None:
        self._length = length
        self._groups = groups
        self._constants = {one.name: tuple(one.dims) for one in proto.graph.initializer}
        self._shapes: dict[str, tuple[int, ...]] = dict(self._constants)
        infos = (*proto.graph.input, *proto.graph.value_info, *proto.graph.output)
        for one in infos:
            dims = one.type.tensor_type.shape.dim
            self._shapes[one.name] = tuple(dim.dim_value for dim in dims)
        self._forms: dict[str, Form] = {}
        self._own_layout: set[str] = set()  # tensors that the runtime may keep in its own layout

    def through(self, node: Any, layer: str) -> Passed:
        """Pass the next node. layer: its name, as parameters have it."""
        data = [name for name in node.input if name and name not in self._constants]
        source = data[0] if data else ""
        inside = self._form(source)
        spec = layout = None
        own = self._own_layout.issuperset(data) and bool(data) and node.op_type in _KEEP_LAYOUT
        if node.op_type in WEIGHTY and len(data) == 1:
            outside, spec = self._weighty(node, source, layer)
            if spec is not None and spec.kind == "depthwise":
                inside = outside
            if spec is not None and spec.size:
                layout = spec.layout if source in self._own_layout else None
                own = spec.kind == "conv"
        else:
            outside = self._plain(node, data)
        for name in node.output:
            if name:
                self._forms[name] = outside
                if own:
                    self._own_layout.add(name)
        return Passed(inside, outside, spec, layout)

    def _weighty(self, node: Any, source: str, layer: str) -> tuple[Form, LayerSpec | None]:
        weight = node.input[1] if node.input[0] == source else node.input[0]
        shape = self._shapes.get(weight, ())
        image = self._shapes.get(source, ())
        whole = self._channels(node.output[0])
        # torch has the outputs of a layer first; a file may have a linear layer's the other way.
        found = self._length(f"{layer}.weight", 0)
        outside = self._fixed(whole) if found is None else found
        known = bool(shape) and bool(image) and 0 not in image
        return outside, spec_of(node, image, shape, "float32") if known else None

    def _plain(self, node: Any, data: Sequence[str]) -> Form:
        whole = self._channels(node.output[0])
        if node.op_type == "Concat" and data:
            parts = [self._form(name) for name in data]
            if sum(self._channels(name) for name in data) == whole:
                total: Form = sum(parts[1:], parts[0])
                return total
        for name in data:
            if self._channels(name) == whole:
                return self._form(name)
        for name in data:  # flattened, or a part of it: in proportion
            if self._channels(name):
                scaled: Form = self._form(name) * (whole / self._channels(name))
                return scaled
        return self._fixed(whole)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor; () where it is not known."""
        return self._shapes.get(name, ())

    def area(self, name: str) -> float:
        """Numbers of a tensor for each of its channels."""
        shape = self._shapes.get(name, ())
        return math.prod(shape) / max(self._channels(name), 1)

    def _channels(self, name: str) -> int:
        shape = self._shapes.get(name, ())
        if len(shape) < 2:
            return 1
        return shape[-1] if len(shape) == 3 else shape[1]

    def _form(self, name: str) -> Form:
        return self._forms[name] if name in self._forms else self._fixed(self._channels(name))

    def _fixed(self, width: int) -> Form:
        import numpy as np

        form = np.zeros(1 + self._groups)
        form[0] = width
        return form
