"""From a model to a checked ONNX file in one call."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prune2deploy import progress
from prune2deploy.export.fold import fold_batchnorm
from prune2deploy.export.onnx import export_onnx
from prune2deploy.export.outputs import NameOutputs, name_outputs, run_named
from prune2deploy.export.parity import Agreement, Parity, check_parity, compare

_RANDOM_BATCHES = 4


def export_model_file(
    model: nn.Module,
    path: Path,
    *,
    input_shape: Sequence[int],
    batch: int = 1,
    opset: int | None = None,
    simplify: bool = True,
    tolerance: float = 1e-4,
    outputs: NameOutputs = name_outputs,
    metadata: Mapping[str, str] | None = None,
    samples: Iterable[tuple[Tensor, Any]] | None = None,
    agreement: Agreement | None = None,
) -> Parity:
    """Fold the batch norms, export, and compare the file with the model.

    The file appears under its name only after it has passed. For the arguments see
    `export_onnx` and `check_parity`.

    Args:
        samples: batches to compare on; None: random numbers.

    Raises:
        ExportError: any of the three fails; what was at `path` before is still there.
    """
    generator = torch.Generator().manual_seed(0)
    random = [
        (torch.randn(batch, *input_shape, generator=generator), None)
        for _ in range(_RANDOM_BATCHES)
    ]
    images = random[0][0]
    unchecked = path.with_name(f".{path.name}.{os.getpid()}.unchecked")
    with progress.task("Exporting to ONNX", total=3) as shown:
        expected = run_named(model, images, outputs)
        folded = fold_batchnorm(model, images)
        compare(
            expected,
            run_named(folded, images, outputs),
            tolerance=tolerance,
            what="the model with folded batch norms",
        )
        shown.advance(info="folded")
        try:
            export_onnx(
                folded,
                unchecked,
                input_shape=input_shape,
                batch=batch,
                opset=opset,
                simplify=simplify,
                outputs=outputs,
                metadata=metadata,
            )
            shown.advance(info="exported")
            parity = check_parity(
                unchecked,
                model,
                random if samples is None else samples,
                tolerance=tolerance,
                outputs=outputs,
                agreement=agreement,
            )
            os.replace(unchecked, path)
        finally:
            with contextlib.suppress(OSError):
                unchecked.unlink()
        shown.advance(info="checked")
    return parity
