"""manifest.json: every file of an artifact with its hash, and what it was made from."""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from prune2deploy.errors import ExportError

FORMAT = 1
MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
_MAX_BYTES = 16 << 20


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ArtifactFile(_Record):
    """One file."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="Of its content.")
    bytes: int = Field(ge=0, description="Its size.")


class Manifest(_Record):
    """The document. The same inputs give the same text, but for what `measured.json` hashes to."""

    format: int = Field(default=FORMAT, description="Of this document.")
    name: str = Field(description="Of the run.")
    precision: str = Field(description="In which model.onnx computes.")
    input_shape: tuple[int, ...] = Field(description="(batch, channels, height, width).")
    files: dict[str, ArtifactFile] = Field(description="Every file but this and its signature.")
    recipe_sha256: str = Field(description="Of the recipe's text with every setting.")
    data: dict[str, Any] = Field(description="Source, fingerprint, images per split.")
    model: dict[str, Any] = Field(description="Source, arguments, sha256 of its checkpoint.")
    code_sha256: str = Field(description="Of prune2deploy's own sources.")
    versions: dict[str, str] = Field(description="Of the packages that took part.")
    metric: str = Field(description="The one that counts.")
    higher_is_better: bool = Field(description="Its direction.")
    costs: dict[str, int] = Field(description="Parameters and MACs of the network.")
    metrics: dict[str, dict[str, float]] = Field(
        description="On the test images: before, after, and the file's own precision."
    )

    @field_validator("files")
    @classmethod
    def _files_are_inside(cls, files: dict[str, ArtifactFile]) -> dict[str, ArtifactFile]:
        for name in files:
            path = PurePosixPath(name)
            odd = "\\" in name or ":" in name or not name or not name.isprintable()
            if odd or path.is_absolute() or ".." in path.parts or path.as_posix() != name:
                raise ValueError(f"{name!r} is no path inside the folder")
            if name in (MANIFEST, SIGNATURE):
                raise ValueError(f"{name} cannot be in its own list")
        return files


def read_manifest(folder: Path) -> Manifest:
    """Read an artifact's manifest.

    Raises:
        ExportError: there is none, it is damaged, or of another format.
    """
    path = folder / MANIFEST
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ExportError(f"{path} is larger than any manifest.")
        found = Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError as err:
        raise ExportError(
            f"There is no {MANIFEST} in {folder}. Name the folder that a run left in dist/."
        ) from err
    except (OSError, ValidationError, ValueError) as err:
        first = str(err).splitlines()
        detail = " ".join(first[1:3]).strip() if isinstance(err, ValidationError) else first[0]
        raise ExportError(f"{path} is no manifest of prune2deploy: {detail}.") from err
    if found.format != FORMAT:
        raise ExportError(
            f"{path} has format {found.format}, and this version reads {FORMAT}. Use the version "
            "of prune2deploy that wrote it."
        )
    return found


def hashed(path: Path) -> ArtifactFile:
    """Size and hash of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return ArtifactFile(sha256=digest.hexdigest(), bytes=path.stat().st_size)
