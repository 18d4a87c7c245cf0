"""What the tensors of an fp32 graph hold on real images, in memory that does not grow.

Each tensor keeps its extremes and a histogram of absolute values with a fixed number of
bins. The histogram ends at a power of two. A larger value doubles the end and adds up
neighbouring bins, which is exact, so that the order of the images changes nothing.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto
from torch import Tensor

from prune2deploy import progress
from prune2deploy.errors import ExportError
from prune2deploy.export.parity import OnnxModel

#: Images as the model takes them, float32 (n, channels, height, width), any n >= 1.
Images: TypeAlias = "npt.NDArray[np.float32] | Tensor"

BINS = 4096
# Intermediate tensors of one run that are alive at once.
_GROUP_BYTES = 2**28


@dataclass
class TensorStatistics:
    """The values of one tensor over all images."""

    lowest: float = math.inf
    highest: float = -math.inf
    end: float = 0.0
    """Where the histogram ends: a power of two, or 0 while only zeros were seen."""
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    """Absolute values in `BINS` bins of equal width between 0 and `end`."""

    def add(self, values: npt.NDArray[np.float32]) -> None:
        """Count these values, all of which are finite."""
        if not values.size:
            return
        self.lowest = min(self.lowest, float(values.min()))
        self.highest = max(self.highest, float(values.max()))
        largest = self.largest
        if largest > self.end:
            self._grow(2.0 ** math.ceil(math.log2(largest)))
        sizes = np.abs(values, dtype=np.float32).reshape(-1)
        if self.end:
            # Powers of two, so that no rounding moves a value to another bin.
            place = (sizes * np.float32(BINS / self.end)).astype(np.int64)
            self.counts += np.bincount(np.minimum(place, BINS - 1), minlength=BINS)
        else:
            self.counts[0] += sizes.size

    @property
    def largest(self) -> float:
        """The largest absolute value; 0 where nothing was seen."""
        return max(-self.lowest, self.highest, 0.0)

    def _grow(self, end: float) -> None:
        while 0 < self.end < end:
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([merged, np.zeros(BINS // 2, np.int64)])
            self.end *= 2
        self.end = end


@dataclass(frozen=True)
class Statistics:
    """The float tensors of a graph over calibration images."""

    tensors: dict[str, TensorStatistics]
    samples: int


def collect(proto: onnx.ModelProto, batches: Iterable[Images]) -> Statistics:
    """Run the graph on all images and return what its float tensors held.

    Args:
        proto: an fp32 model. Its inputs and all results of its nodes are looked at.
        batches: read once. Where the last images do not fill the file's batch, the last
            of them counts several times.

    Raises:
        ExportError: no images, images of another shape, or values that are not finite.
    """
    result: dict[str, TensorStatistics] = {}
    samples = 0
    source = proto.graph.input[0].name
    size = proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="prune2deploy-")))
        models = [stack.enter_context(OnnxModel(path)) for path in _probes(proto, folder)]
        shown = stack.enter_context(progress.task("Looking at activations", None))
        for batch in batches:
            images = torch.as_tensor(batch).float()
            _count(result, source, images)
            for chunk in _filled(images, size):
                for model in models:
                    for name, values in model.predict(chunk).items():
                        _count(result, name, values)
            samples += len(images)
            shown.advance(info=f"{samples} images")
    if not samples:
        raise ExportError("There are no images to calibrate on. Give at least one batch.")
    return Statistics(result, samples)


def _count(result: dict[str, TensorStatistics], name: str, values: Tensor) -> None:
    # One pass over large tensors: NaN and infinity both show in the extremes.
    if values.numel() and not all(map(math.isfinite, map(float, values.aminmax()))):
        raise ExportError(
            f"The fp32 model itself computes NaN or infinity in '{name}', so it cannot be "
            "calibrated. Check its weights and the normalisation of its input."
        )
    result.setdefault(name, TensorStatistics()).add(values.numpy())


def _filled(images: Tensor, size: int) -> Iterator[Tensor]:
    """Yield whole batches. predict() would cut them, which tensors inside may not allow."""
    for chunk in images.split(size):
        missing = size - len(chunk)
        yield torch.cat([chunk, chunk[-1:].expand(missing, -1, -1, -1)]) if missing else chunk


def _probes(proto: onnx.ModelProto, folder: Path) -> list[Path]:
    """Write copies of the model that return its inner tensors, a limited size of them each."""
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    infos = {info.name: info for info in (*inferred.value_info, *inferred.output)}
    groups: list[list[onnx.ValueInfoProto]] = [[]]
    used = 0
    for node in proto.graph.node:
        for name in node.output:
            info = infos.get(name)
            if info is None or info.type.tensor_type.elem_type != TensorProto.FLOAT:
                continue
            size = 4 * math.prod(dim.dim_value or 1 for dim in info.type.tensor_type.shape.dim)
            if used + size > _GROUP_BYTES and groups[-1]:
                groups.append([])
                used = 0
            groups[-1].append(info)
            used += size
    paths = []
    for number, group in enumerate(groups):
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        del copy.graph.output[:]
        copy.graph.output.extend(group)
        paths.append(folder / f"{number}.onnx")
        onnx.save(copy, paths[-1])
    return paths
