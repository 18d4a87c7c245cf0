"""The ranges of activations, from images."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from prune2deploy.errors import ExportError
from prune2deploy.export.precision.samples import Batches, whole_batches
from prune2deploy.export.precision.sessions import session_of, watched
from prune2deploy.export.quiet import quiet
from prune2deploy.models import explain

Method = Literal["minmax", "percentile", "entropy"]

#: Images that each method reads. More change the ranges little, and time grows with them.
MOST_IMAGES = {"minmax": 1024, "percentile": 512, "entropy": 512}
_PERCENTILE = 99.99
_BINS = {"percentile": 2048, "entropy": 512}
_LEVELS = 128  # Of an int8 number without its sign.
# What is computed on the way is held for some images at once.
_GROUP_BYTES = 2**28


@dataclass(frozen=True)
class Ranges:
    """What calibration found."""

    tensors: Any
    """ONNX Runtime's own TensorsData."""
    method: Method
    images: int


class _Reader:
    """One group of inputs, as ONNX Runtime's calibrators want to be given them."""

    def __init__(self, feeds: list[dict[str, NDArray[np.float32]]]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self._feeds, None)


def calibrated(
    model: onnx.ModelProto, batches: Batches, method: Method, operators: Collection[str]
) -> Ranges:
    """Return the ranges of all tensors that these operators read and write.

    Memory: all activations of a group of images of 256 MiB, or of one batch where that is more.

    Raises:
        ExportError: no images, or they do not fit, or ONNX Runtime cannot run the model.
    """
    feeds = whole_batches(model, batches, MOST_IMAGES[method])
    first = next(feeds, None)
    if first is None:
        raise ExportError("There are no images to calibrate on. Give some of the training data.")
    group = max(1, _GROUP_BYTES // _activation_bytes(model, first))
    feeds = itertools.chain([first], feeds)
    images = 0
    with tempfile.TemporaryDirectory(prefix="prune2deploy-") as folder, quiet():
        calibrator = _calibrator(model, Path(folder), method, sorted(operators))
        # The first group is the largest that memory allows: its values set the bins' width.
        while some := list(itertools.islice(feeds, group)):
            calibrator.collect_data(_Reader(some))
            images += sum(len(array) for feed in some for array in feed.values())
        try:
            tensors = calibrator.compute_data()
        except Exception as err:
            raise ExportError(
                f"No ranges could be found by the method '{method}': {explain(err)}. "
                "Try another method, or other images."
            ) from err
    return Ranges(tensors, method, images)


def _activation_bytes(model: onnx.ModelProto, feed: dict[str, NDArray[np.float32]]) -> int:
    session = session_of(watched(model))
    return 1 + sum(int(array.nbytes) for array in session.run(None, feed))


def _calibrator(model: onnx.ModelProto, folder: Path, method: Method, operators: list[str]) -> Any:
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

    path = folder / "model.onnx"
    onnx.save(model, path)
    kinds = {
        "minmax": CalibrationMethod.MinMax,
        "percentile": CalibrationMethod.Percentile,
        "entropy": CalibrationMethod.Entropy,
    }
    # ONNX Runtime's own 128 bins of entropy leave it nothing to choose: as many as the levels.
    options = {
        "minmax": {},
        "percentile": {"percentile": _PERCENTILE, "num_bins": _BINS["percentile"]},
        "entropy": {"num_bins": _BINS["entropy"], "num_quantized_bins": _LEVELS},
    }
    try:
        calibrator = create_calibrator(
            path,
            operators,
            augmented_model_path=str(folder / "augmented.onnx"),
            calibrate_method=kinds[method],
            providers=["CPUExecutionProvider"],
            extra_options=options[method],
        )
    except Exception as err:
        raise ExportError(f"ONNX Runtime cannot run the model: {explain(err)}.") from err
    if method != "minmax":
        calibrator.collector = _bounded_collector(calibrator)
    return calibrator


def _bounded_collector(calibrator: Any) -> Any:
    """Return the calibrator's own collector of histograms, but with a limit to their bins.

    It keeps the width of the first bins. Where the first images hold little but zeros, that asks
    for more bins later than any memory has.
    """
    from onnxruntime.quantization.calibrate import HistogramCollector

    class Bounded(HistogramCollector):  # type: ignore[misc]
        def collect(self, name_to_arr: dict[str, list[NDArray[np.float32]]]) -> None:
            for name, arrays in name_to_arr.items():
                peak = max((float(np.abs(a).max()) for a in arrays if a.size), default=0.0)
                if name in self.histogram_dict and peak > 0:
                    _rebin(self.histogram_dict, name, peak, self.num_bins)
            super().collect(name_to_arr)

    return Bounded(
        method=calibrator.method,
        symmetric=calibrator.symmetric,
        num_bins=calibrator.num_bins,
        num_quantized_bins=calibrator.num_quantized_bins,
        percentile=calibrator.percentile,
        scenario=calibrator.scenario,
    )


def _rebin(histograms: dict[str, Any], name: str, peak: float, bins: int) -> None:
    """Give a histogram bins up to `peak`, if it would get more than twice as many otherwise.

    A histogram is (counts, edges, smallest, largest) of absolute values; or of values, with the
    last edge as a fifth, and edges from minus to plus that.
    """
    counts, edges, smallest, largest, *threshold = histograms[name]
    before = max(abs(float(smallest)), abs(float(largest)))
    if before > 0 and len(counts) * max(1.0, peak / float(edges[-1])) <= 2 * bins:
        return
    peak = max(peak, before)
    centres = np.clip((edges[:-1] + edges[1:]) / 2, -before, before)
    wider = np.linspace(-peak if threshold else 0.0, peak, bins + 1, dtype=edges.dtype)
    moved, _ = np.histogram(np.clip(centres, wider[0], wider[-1]), wider, weights=counts)
    ends = [np.array(peak, edges.dtype)] if threshold else []
    histograms[name] = (moved.astype(counts.dtype), wider, smallest, largest, *ends)
