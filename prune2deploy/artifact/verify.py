"""Is an artifact what its manifest says, and does it run on a device as it did here?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load_file

from prune2deploy.artifact.manifest import (
    MANIFEST,
    SIGNATURE,
    Manifest,
    hashed,
    read_manifest,
)
from prune2deploy.artifact.signing import signature_problem
from prune2deploy.devices import Devices
from prune2deploy.errors import ExportError
from prune2deploy.latency import outputs_on

SAMPLES = "samples.safetensors"
MODEL = "model.onnx"
_TOLERANCE = {"fp32": 1e-3, "fp16": 2e-2, "int8": 5e-2}
"""Largest difference over the largest output; other processors round otherwise."""
_MAX_FILES = 10_000


@dataclass(frozen=True)
class Verdict:
    """What was found. problems: empty where all is as it should be."""

    manifest: Manifest
    problems: tuple[str, ...]
    signed: bool
    ran_on: tuple[str, ...] = ()


def verify(
    folder: Path,
    *,
    public_key: Path | None = None,
    on: Sequence[str] = (),
    devices: Devices | None = None,
) -> Verdict:
    """Check every file, the signature if a key is given, and the answers on devices.

    Raises:
        ExportError: there is no manifest that can be read, or no such key.
        DeviceError: the model does not run on a device.
    """
    manifest = read_manifest(folder)
    problems = _file_problems(folder, manifest)
    if public_key is not None:
        problem = signature_problem(folder, public_key)
        problems += [] if problem is None else [problem]
    if not problems:
        # Files that are not what they should be are not sent anywhere.
        for name in on:
            problems += _answer_problems(folder, manifest, name, devices)
    signed = (folder / SIGNATURE).is_file()
    return Verdict(manifest, tuple(problems), signed, tuple(on))


def _file_problems(folder: Path, manifest: Manifest) -> list[str]:
    problems = []
    for name, wanted in manifest.files.items():
        path = folder / name
        if not path.is_file() or path.is_symlink():
            problems.append(f"{name} is missing")
            continue
        size = path.stat().st_size
        if size != wanted.bytes:
            problems.append(f"{name} has {size:,} bytes, {MANIFEST} says {wanted.bytes:,}")
        elif hashed(path) != wanted:
            problems.append(f"{name} was changed: its sha256 is not the one of {MANIFEST}")
    known = {*manifest.files, MANIFEST, SIGNATURE}
    for number, path in enumerate(sorted(folder.rglob("*"))):
        if number > _MAX_FILES:
            problems.append(f"there are more than {_MAX_FILES:,} files")
            break
        name = path.relative_to(folder).as_posix()
        if not path.is_dir() and name not in known:
            problems.append(f"{name} is not in {MANIFEST}")
    return problems


def _answer_problems(
    folder: Path, manifest: Manifest, device: str, devices: Devices | None
) -> list[str]:
    import numpy as np

    try:
        held = load_file(folder / SAMPLES)
        inputs = held.pop("input")
    except (OSError, SafetensorError, KeyError) as err:
        raise ExportError(f"{folder / SAMPLES} holds no samples: {err}.") from err
    answers = outputs_on(folder / MODEL, [inputs], device=device, devices=devices)
    problems = []
    limit = _TOLERANCE.get(manifest.precision, 1e-3)
    for name, wanted in held.items():
        found = answers.get(name.removeprefix("output "))
        if found is None or found.shape != wanted.shape:
            problems.append(f"on {device} there is no output like {name}")
            continue
        difference = float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-12))
        if not difference <= limit:
            problems.append(
                f"on {device} {name} differs by {difference:.2g} of the largest value, and "
                f"{limit:g} is what {manifest.precision} may"
            )
    return problems
