"""What a model answers on a device, to compare it with what it answers here."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prune2deploy import progress
from prune2deploy.devices import Devices, load_devices, open_device
from prune2deploy.errors import DeviceError
from prune2deploy.latency.options import NVIDIA
from prune2deploy.latency.profile import precisions_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LIMIT_S = 1800.0
_MAX_BYTES = 1 << 30


def outputs_on(
    model: Path,
    inputs: Sequence[NDArray[Any]],
    *,
    device: str = "local",
    devices: Devices | None = None,
    engine: Mapping[str, Any] | None = None,
) -> dict[str, NDArray[Any]]:
    """Run a model on a device on given inputs.

    Args:
        model: ONNX file (or .pt2 where the runtime is torch).
        inputs: one array per input, the samples along the first dimension.
        engine: options of the build where the runtime is TensorRT, beside the file's precision.

    Returns:
        Per output the answers to all samples.

    Raises:
        DeviceError: it does not run there, or the answer cannot be read.
    """
    import numpy as np

    known = load_devices() if devices is None else devices
    with (
        open_device(device, known) as opened,
        tempfile.TemporaryDirectory(prefix="prune2deploy-") as name,
    ):
        folder = Path(name)
        samples = folder / "samples.npz"
        numbered: dict[str, Any] = {str(n): array for n, array in enumerate(inputs)}
        np.savez(samples, **numbered)
        settings = opened.settings
        job: dict[str, Any] = {
            "ask": "outputs",
            "model": {"name": model.stem, "path": opened.place(model)},
            "inputs": opened.place(samples),
            "runtime": settings.runtime,
            "threads": 1 if settings.runtime in NVIDIA else settings.threads,
        }
        if settings.runtime in NVIDIA:
            (precision,) = precisions_of(settings, {"model": model})
            job["engine"] = {**(engine or {}), "precision": precision}
        with progress.task(f"Running on {device}"):
            answer = opened.run_probe(job, time_limit_s=_LIMIT_S, report=lambda line: None)
        target = folder / "outputs.npz"
        opened.fetch(str(answer["outputs"]), target)
        return _read(target, device, [str(name) for name in answer["names"]], len(inputs[0]))


def _read(path: Path, device: str, names: Sequence[str], samples: int) -> dict[str, NDArray[Any]]:
    import numpy as np

    try:
        if sum(item.file_size for item in zipfile.ZipFile(path).infolist()) > _MAX_BYTES:
            raise ValueError("it is larger than 1 GiB")
        with np.load(path, allow_pickle=False) as held:
            found = {name: held[str(number)] for number, name in enumerate(names)}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as err:
        raise DeviceError(f"Device '{device}': its outputs cannot be read: {err}.") from err
    if not found or any(array.ndim == 0 or len(array) != samples for array in found.values()):
        shapes = {name: array.shape for name, array in found.items()}
        raise DeviceError(
            f"Device '{device}': its outputs {shapes} are not those of {samples} samples."
        )
    return found
