"""Does the ONNX file compute what the model computes? Compare them number by number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from prune2deploy import progress
from prune2deploy.errors import ExportError
from prune2deploy.export.outputs import NameOutputs, name_outputs, run_named

#: Share of samples, 0 to 1, that two named outputs of one batch answer alike.
Agreement = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], float]


@dataclass(frozen=True)
class Parity:
    """How close the ONNX file came to the model, over all samples."""

    max_abs_diff: float
    """Largest difference of one number, in the units of the output."""
    max_rel_diff: float
    """Largest difference, divided by the largest absolute value of that output in its batch."""
    agreement: float | None
    """Share of samples answered alike, 0 to 1; None where nobody said what that means."""
    samples: int


class OnnxModel:
    """Runs one ONNX file in ONNX Runtime; the session lives only inside the with-block.

    Args:
        path: the file.
        threads: threads of one operator; None: as many as PyTorch uses.
        providers: execution providers, all of which must really be used.
    """

    def __init__(
        self,
        path: Path,
        *,
        threads: int | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        self._path = path
        self._threads = threads
        self._providers = list(providers)
        self._session: Any = None

    def __enter__(self) -> Self:
        """Open the session.

        Raises:
            ExportError: no such file, not a model that ONNX Runtime can run, or a
                provider that it does not use.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        # Explicit, as the automatic number fails where a container has fewer processors.
        options.intra_op_num_threads = self._threads or torch.get_num_threads()
        options.log_severity_level = 3
        # Waiting threads would take the processors from PyTorch, which runs in turns with this.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        unknown = set(self._providers) - set(onnxruntime.get_available_providers())
        if unknown:
            raise ExportError(
                f"This ONNX Runtime has no {', '.join(sorted(unknown))}; it has "
                f"{', '.join(onnxruntime.get_available_providers())}."
            )
        if not self._path.is_file():
            raise ExportError(f"There is no ONNX file {self._path}.")
        try:
            session = onnxruntime.InferenceSession(
                str(self._path), options, providers=self._providers
            )
        # ONNX Runtime's errors have no common class but Exception.
        except Exception as err:
            raise ExportError(f"ONNX Runtime cannot load {self._path}: {err}") from err
        used = session.get_providers()[: len(self._providers)]
        if used != self._providers:
            raise ExportError(
                f"ONNX Runtime uses {', '.join(used)} for {self._path}, "
                f"though {', '.join(self._providers)} was asked for."
            )
        self._session = session
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._session = None

    def predict(self, images: Tensor) -> dict[str, Tensor]:
        """Run any number of images through the model, however large its static batch is.

        Args:
            images: float32 (n, channels, height, width), n >= 1.

        Returns:
            The outputs by name, on the CPU, in the file's order; first dimension n, or what
            the model returns for one whole batch, as a detector its boxes.

        Raises:
            ExportError: the images do not fit the file's input, or its outputs cannot
                be told apart by sample though several batches are needed.
        """
        if self._session is None:
            raise RuntimeError("OnnxModel.predict is for use inside its with-block.")
        given = self._session.get_inputs()[0]
        batch, *shape = given.shape
        if list(images.shape[1:]) != shape:
            raise ExportError(
                f"{self._path} takes images of shape {tuple(shape)}, got {tuple(images.shape[1:])}."
            )
        size = batch if isinstance(batch, int) else len(images)
        if len(images) == size:
            return self._run(given.name, images)
        chunks = [self._run_filled(given.name, chunk, size) for chunk in images.split(size)]
        return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}

    def _run(self, input_name: str, images: Tensor) -> dict[str, Tensor]:
        array = images.detach().cpu().float().contiguous().numpy()
        names = [output.name for output in self._session.get_outputs()]
        tensors = map(torch.from_numpy, self._session.run(names, {input_name: array}))
        return dict(zip(names, tensors, strict=True))

    def _run_filled(self, input_name: str, images: Tensor, size: int) -> dict[str, Tensor]:
        """Repeat the last image until the batch is full; leave out what that returns."""
        missing = size - len(images)
        filled = torch.cat([images, images[-1:].expand(missing, -1, -1, -1)]) if missing else images
        result = self._run(input_name, filled)
        for name, tensor in result.items():
            if tensor.ndim == 0 or len(tensor) != size:
                raise ExportError(
                    f"Output '{name}' of {self._path} has shape {tuple(tensor.shape)} for a batch "
                    f"of {size}: it cannot be divided by sample."
                )
        return {name: tensor[: len(images)] for name, tensor in result.items()}


def check_parity(
    onnx_path: Path,
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Any]],
    *,
    tolerance: float = 1e-4,
    outputs: NameOutputs = name_outputs,
    agreement: Agreement | None = None,
) -> Parity:
    """Compare the ONNX file in ONNX Runtime with the model in PyTorch on every batch.

    Differences are measured against the largest absolute value of an output in its
    batch: a single logit near zero carries the rounding errors of large ones, so its
    own size says nothing. Outputs of integers count the share of entries that differ.

    Args:
        loader: yields (images, anything), images float32 (n, channels, height, width).
        tolerance: largest relative difference.
        outputs: names the model's tensors; the names must be those in the file.
        agreement: compares the two named outputs of a batch.

    Raises:
        ExportError: a difference over the tolerance (saying where), an output that is
            not finite, no samples, or nothing but empty outputs, as of a detector that
            finds nothing.
    """
    worst_abs, worst_rel, alike, samples, entries = 0.0, 0.0, 0.0, 0, 0
    total = len(loader) if isinstance(loader, Sized) else None
    with (
        OnnxModel(onnx_path) as runtime,
        progress.task("Comparing ONNX Runtime with PyTorch", total) as shown,
    ):
        for images, _ in loader:
            expected = run_named(model, images, outputs)
            found = runtime.predict(images)
            absolute, relative = compare(
                expected, found, tolerance=tolerance, first_sample=samples, what=str(onnx_path)
            )
            worst_abs, worst_rel = max(worst_abs, absolute), max(worst_rel, relative)
            if agreement is not None:
                alike += agreement(expected, found) * len(images)
            samples += len(images)
            entries += sum(output.numel() for output in expected.values())
            shown.advance(info=f"largest relative difference {worst_rel:.1e}")
    if not samples:
        raise ExportError("There are no samples to compare the ONNX file with the model on.")
    if not entries:
        raise ExportError(
            f"The model returned nothing for any of {samples} samples, so nothing was compared. "
            "Give samples in which it finds something, or lower its score threshold."
        )
    share = None if agreement is None else alike / samples
    return Parity(worst_abs, worst_rel, share, samples)


def compare(
    expected: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    *,
    tolerance: float,
    what: str,
    first_sample: int = 0,
) -> tuple[float, float]:
    """Return the largest absolute and relative difference between two named outputs.

    Args:
        what: names the side of `found` in errors.
        first_sample: number of the batch's first sample, for errors.

    Raises:
        ExportError: other names or shapes, not finite, or over the tolerance.
    """
    if list(expected) != list(found):
        raise ExportError(f"{what} has the outputs {list(found)}; expected {list(expected)}.")
    worst_abs, worst_rel = 0.0, 0.0
    for name, ours in expected.items():
        theirs = found[name]
        if ours.shape != theirs.shape:
            raise ExportError(
                f"Output '{name}' of {what} has shape {tuple(theirs.shape)}; the model's has "
                f"{tuple(ours.shape)}."
            )
        if not torch.isfinite(ours).all():
            raise ExportError(
                f"The model itself returns NaN or infinity in output '{name}', so nothing can be "
                "compared. Check its weights and the normalisation of its input."
            )
        absolute, relative, sample = _difference(ours, theirs)
        if not relative <= tolerance:
            raise ExportError(
                f"Output '{name}' of {what} differs from the model in PyTorch: by {absolute:.3g} "
                f"in sample {first_sample + sample}, {relative:.2e} of the largest value; "
                f"allowed are {tolerance:.0e}. The file must not be used. Try another "
                "export.onnx.opset or simplify: false; raise the tolerance only if you know why."
            )
        worst_abs, worst_rel = max(worst_abs, absolute), max(worst_rel, relative)
    return worst_abs, worst_rel


def _difference(expected: Tensor, found: Tensor) -> tuple[float, float, int]:
    """Return the largest absolute and relative difference, and the sample that has it."""
    if not expected.numel():
        return 0.0, 0.0, 0
    distance = (found.double() - expected.double()).abs()
    # A NaN on the other side is the largest difference there is.
    distance = distance.nan_to_num(nan=torch.inf, posinf=torch.inf)
    absolute = float(distance.max())
    sample = int(distance.flatten(1).amax(dim=1).argmax()) if distance.ndim > 1 else 0
    if not expected.is_floating_point():
        return absolute, float((distance > 0).double().mean()), sample
    largest = float(expected.abs().max())
    # Where the model returns only zeros, any difference is infinitely large.
    relative = 0.0 if absolute == 0 else absolute / largest if largest else torch.inf
    return absolute, relative, sample
