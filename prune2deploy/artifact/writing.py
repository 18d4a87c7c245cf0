"""Write an artifact: all of it, or nothing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from prune2deploy.artifact.bom import bill_of_materials
from prune2deploy.artifact.manifest import MANIFEST, ArtifactFile, Manifest, hashed
from prune2deploy.artifact.verify import MODEL, SAMPLES
from prune2deploy.report import Metrics

BOM = "bom.cdx.json"
MEASURED = "measured.json"


@dataclass(frozen=True)
class Preprocessing:
    """What is done to an image before the model sees it.

    input_shape: (batch, channels, height, width). resize: of the shorter side before the centre
    crop; None: until the input is just covered. mean, std: per channel; the input is
    (pixel / 255 - mean) / std; None: pixel / 255.
    """

    input_shape: tuple[int, int, int, int]
    resize: int | None
    mean: Sequence[float] | None
    std: Sequence[float] | None


@dataclass(frozen=True)
class Source:
    """What an artifact is made of.

    model: the ONNX file that gates look at. others: further files by their name in the artifact.
    precision: of the model. samples: inputs, (samples, ...), float32. answers: of ONNX Runtime
    to them, by output.
    """

    metrics: Metrics
    model: Path
    precision: str
    task: str
    recipe_sha256: str
    code_sha256: str
    labels: Sequence[str] | None
    preprocessing: Preprocessing
    samples: NDArray[np.float32]
    answers: Mapping[str, NDArray[np.float32]]
    others: Mapping[str, Path] = field(default_factory=dict)


def write_artifact(source: Source, folder: Path) -> Manifest:
    """Write the artifact's folder; what was there before is replaced when all is written.

    The same inputs give the same bytes, but for measured.json and what of it is in the manifest.
    """
    part = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        manifest = _write(source, part)
        if folder.exists():
            old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
            os.replace(folder, old)
            os.replace(part, folder)
            shutil.rmtree(old)
        else:
            os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return manifest


def _write(source: Source, folder: Path) -> Manifest:
    for name, path in {MODEL: source.model, **source.others}.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    rules = source.preprocessing
    _write_json(folder / "labels.json", source.labels)
    _write_json(
        folder / "preprocessing.json",
        {
            "input_shape": rules.input_shape,
            "resize": rules.resize,
            "mean": rules.mean,
            "std": rules.std,
        },
    )
    _write_json(folder / MEASURED, _measured(source.metrics))
    tensors = {f"output {name}": value for name, value in source.answers.items()}
    save_file({"input": source.samples, **tensors}, folder / SAMPLES)
    (folder / SAMPLES).chmod((folder / "labels.json").stat().st_mode)
    example = (files("prune2deploy.artifact") / "example.txt").read_text(encoding="utf-8")
    (folder / "example.py").write_text(example, encoding="utf-8")
    (folder / "README.md").write_text(_readme(source), encoding="utf-8")
    manifest = _manifest(source, folder)
    method = source.metrics.pruning.method
    labels = None if source.labels is None else len(source.labels)
    # The bill knows nothing of what was measured, or of itself.
    still = {name: one for name, one in manifest.files.items() if name != MEASURED}
    fixed = manifest.model_copy(update={"files": still})
    text = bill_of_materials(fixed, source.task, method, labels)
    (folder / BOM).write_text(text, encoding="utf-8")
    manifest = manifest.model_copy(update={"files": _hashes(folder)})
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return manifest


def _manifest(source: Source, folder: Path) -> Manifest:
    metrics = source.metrics
    figures = {"before": metrics.before.metrics, "after": metrics.after.metrics}
    for one in metrics.precisions:
        figures[one.precision] = one.metrics
    # Paths are of the machine that it was made on, and nobody else's business.
    data = {key: value for key, value in metrics.data.items() if key != "root"}
    model = {key: value for key, value in metrics.model.items() if key != "checkpoint"}
    return Manifest(
        name=metrics.name,
        precision=source.precision,
        input_shape=source.preprocessing.input_shape,
        files=_hashes(folder),
        recipe_sha256=source.recipe_sha256,
        data=data,
        model=model,
        code_sha256=source.code_sha256,
        versions=metrics.versions,
        metric=metrics.metric,
        higher_is_better=metrics.higher_is_better,
        costs={"parameters": metrics.after.params, "MACs": metrics.after.macs},
        metrics=figures,
    )


def _hashes(folder: Path) -> dict[str, ArtifactFile]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashed(path) for path in paths}


def _measured(metrics: Metrics) -> dict[str, Any]:
    """Latencies with their intervals, the state of each device, what was tainted, and the gates."""
    kept = ("device", "tainted", "attempts", "latencies", "speedups", "setup")
    latency = [{key: one.get(key) for key in kept} for one in metrics.latency]
    for one in latency:
        one["latencies"] = [
            {key: value for key, value in model.items() if key != "path"}
            for model in one["latencies"] or []
        ]
    return {
        "created": metrics.created,
        "latency": latency,
        "not_measured": [one.model_dump() for one in metrics.latency_failures],
        "gates": [gate.model_dump() for gate in metrics.gates],
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _readme(source: Source) -> str:
    shape = "×".join(map(str, source.preprocessing.input_shape))
    name = source.metrics.name
    others = "".join(f"- `{name}`\n" for name in source.others)
    return (
        f"# {name}\n\n"
        f"`model.onnx` computes in {source.precision}; its input is float32, {shape} (batch, "
        "channels, height, width), prepared as `preprocessing.json` says. `labels.json` has the "
        "classes in the order of its output.\n\n"
        "```\npython -m pip install numpy Pillow onnxruntime\npython example.py IMAGE\n```\n\n"
        + (f"Beside it:\n\n{others}\n" if others else "")
        + "`manifest.json` has the sha256 of every file, `measured.json` the latencies with the "
        "state of each device, `bom.cdx.json` the bill of materials. "
        "`prune2deploy verify .` checks all of it, with `--on DEVICE` on the device too.\n"
    )
