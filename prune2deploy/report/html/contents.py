"""What the folder of a run holds that its report tells of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prune2deploy.report.metrics import Metrics

Samples = Mapping[str, Sequence[float]]
"""Of each model every time that was measured, in ms."""


@dataclass(frozen=True)
class LayerPair:
    """A layer before and after pruning; None where a network has none of that name.

    macs, params: of the ONNX files. params are the layer's own weights and biases.
    """

    name: str
    operator: str
    macs: tuple[int | None, int | None]
    params: tuple[int | None, int | None]


@dataclass(frozen=True)
class TimedLayer:
    """A layer's median time in ms under the profiler, before and after."""

    name: str
    operator: str
    ms: tuple[float | None, float | None]


@dataclass(frozen=True)
class SearchPoint:
    """A network that a search tried. cost: in the unit of the search."""

    accuracy: float
    cost: float
    told: str = ""


@dataclass(frozen=True)
class SearchFront:
    """What search.json says. axis: what the cost is, with its unit."""

    axis: str
    metric: str
    front: tuple[SearchPoint, ...]
    tried: tuple[SearchPoint, ...] = ()
    original: SearchPoint | None = None
    judged: str = ""


@dataclass(frozen=True)
class Input:
    """An input of the ONNX files."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class RunContents:
    """Everything that a report is made from.

    folder: the name of the run's folder, without what is above it. samples: by device.
    measured: when, by device, as ISO 8601. layers: None where the ONNX files are not there.
    layer_times: by device. absent: what is not in the folder, and what is missing here for it.
    """

    folder: str
    metrics: Metrics
    recipe: str | None = None
    samples: Mapping[str, Samples] = field(default_factory=dict)
    measured: Mapping[str, str] = field(default_factory=dict)
    layers: tuple[LayerPair, ...] | None = None
    layer_times: Mapping[str, tuple[TimedLayer, ...]] = field(default_factory=dict)
    search: SearchFront | None = None
    inputs: tuple[Input, ...] = ()
    absent: tuple[str, ...] = ()

    @property
    def judged(self) -> str:
        """Name that the network which the gates look at has among the latencies."""
        wanted = self.metrics.gated_precision
        return "pruned" if wanted == "fp32" else f"pruned {wanted}"

    @property
    def judged_metrics(self) -> Mapping[str, float]:
        """The figures on the test images of that network."""
        for one in self.metrics.precisions:
            if one.precision == self.metrics.gated_precision:
                return one.metrics
        return self.metrics.after.metrics

    @property
    def judged_bytes(self) -> int:
        """Size of its ONNX file."""
        for one in self.metrics.precisions:
            if one.precision == self.metrics.gated_precision:
                return one.onnx_bytes
        return self.metrics.after.onnx_bytes

    @property
    def test_images(self) -> int | None:
        """How many images the networks were judged on; None: the run does not say."""
        count = self.metrics.data.get("images", {}).get("test")
        return count if isinstance(count, int) and count > 0 else None


def named(figures: Sequence[Mapping[str, Any]], key: str, name: str) -> Mapping[str, Any] | None:
    """The one whose `key` is `name`, or None."""
    return next((one for one in figures if one.get(key) == name), None)
