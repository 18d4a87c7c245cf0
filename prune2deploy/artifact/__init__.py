"""What leaves a run for a device: a folder that proves itself, and how to check and compare one."""

from prune2deploy.artifact.manifest import FORMAT, MANIFEST, Manifest
from prune2deploy.artifact.signing import new_key, sign
from prune2deploy.artifact.verify import Verdict, verify
from prune2deploy.artifact.writing import Preprocessing, Source, write_artifact

__all__ = [
    "FORMAT",
    "MANIFEST",
    "Manifest",
    "Preprocessing",
    "Source",
    "Verdict",
    "new_key",
    "sign",
    "verify",
    "write_artifact",
]
