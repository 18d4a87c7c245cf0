"""What decides how long a layer takes, but for its widths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["conv", "depthwise", "grouped", "linear", "layout"]
"""A layout is no layer: the change of an image's layout in front of a layer that is narrower than
a step, and so does not read what the layer before it writes."""


@dataclass(frozen=True)
class LayerSpec:
    """A convolution or linear layer without its widths.

    size: height and width of the image that goes in; () for a linear layer. rows: of a linear
    layer, how many vectors go in at once; otherwise the batch. group_width: channels that a filter
    of a grouped convolution reads; 0 for the other kinds.
    """

    kind: Kind
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    size: tuple[int, ...] = ()
    rows: int = 1
    group_width: int = 0
    dtype: str = "float32"

    @property
    def tied(self) -> bool:
        """Whether its width in decides its width out, so that its times lie on one line."""
        return self.kind in ("depthwise", "grouped", "layout")

    @property
    def layout(self) -> LayerSpec:
        """The change of layout of the image that goes in."""
        return LayerSpec("layout", size=self.size, rows=self.rows, dtype=self.dtype)

    @property
    def key(self) -> str:
        """A short text that is the same for equal layers, for the table's file."""
        if self.kind == "linear":
            return f"linear rows{self.rows} {self.dtype}"
        kind = [self.kind, _times(self.kernel)] if self.kernel else [self.kind]
        parts = [*kind, f"on {_times(self.size)}"]
        if any(one != 1 for one in self.strides):
            parts.append(f"stride {_times(self.strides)}")
        if any(self.pads):
            parts.append(f"pad {_listed(self.pads)}")
        if any(one != 1 for one in self.dilations):
            parts.append(f"dilation {_times(self.dilations)}")
        if self.group_width:
            parts.append(f"groups of {self.group_width}")
        if self.rows != 1:
            parts.append(f"batch {self.rows}")
        return " ".join([*parts, self.dtype])


def _times(numbers: Sequence[int]) -> str:
    return "x".join(map(str, numbers))


def _listed(numbers: Sequence[int]) -> str:
    return _times(numbers) if len(set(numbers)) > 1 else str(numbers[0])


def spec_of(node: Any, image: Sequence[int], weight: Sequence[int], dtype: str) -> LayerSpec | None:
    """Return what an ONNX node computes, None where it is no layer of these kinds.

    Args:
        node: an onnx.NodeProto. image, weight: shapes of its two inputs, all known.
    """
    import onnx

    given = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    if node.op_type == "Conv":
        spatial = len(weight) - 2
        groups = int(given.get("group", 1))
        kind: Kind = "conv"
        if groups > 1:
            kind = "depthwise" if weight[1] == 1 and weight[0] == groups else "grouped"
        if given.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
            return None
        return LayerSpec(
            kind=kind,
            kernel=tuple(weight[2:]),
            strides=tuple(given.get("strides", [1] * spatial)),
            pads=tuple(given.get("pads", [0] * 2 * spatial)),
            dilations=tuple(given.get("dilations", [1] * spatial)),
            size=tuple(image[2:]),
            rows=image[0],
            group_width=weight[1] if kind == "grouped" else 0,
            dtype=dtype,
        )
    if node.op_type in ("Gemm", "MatMul") and len(weight) == 2:
        rows = 1
        for one in image[:-1]:
            rows *= one
        return LayerSpec(kind="linear", rows=rows, dtype=dtype)
    return None
