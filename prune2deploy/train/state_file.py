"""Plain values and tensors in one file that is written whole, and read only if it is intact.

The file: a magic number, the sha256 of all that follows, the length of a JSON document (8
bytes, little-endian), the document, and the tensors that it names as safetensors. No pickle:
reading one runs no code.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

MAGIC = b"P2DSTATE"
_DIGEST = hashlib.sha256().digest_size
_LENGTH = 8


class DamagedError(Exception):
    """The file is not as it was written; the text says how that is seen."""


def write_state(path: Path, value: Any) -> None:
    """Write a value, whole or not at all.

    value: None, numbers, texts, lists, tuples, dicts of them, tensors and numpy arrays.

    Raises:
        TypeError: there is something else in it.
    """
    tensors: dict[str, Tensor] = {}
    structure = json.dumps(_encoded(value, tensors)).encode()
    body = len(structure).to_bytes(_LENGTH, "little") + structure + save_tensors(tensors)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(MAGIC + hashlib.sha256(body).digest())
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)  # on a full disk it would only be in the way
        raise
    os.replace(temporary, path)


def read_state(path: Path) -> Any:
    """Return what `write_state` wrote, tensors on the CPU.

    Raises:
        FileNotFoundError: there is none.
        DamagedError: it is not whole, or was changed.
    """
    raw = path.read_bytes()
    start = len(MAGIC) + _DIGEST
    if len(raw) < start + _LENGTH or not raw.startswith(MAGIC):
        raise DamagedError(f"{path.name} is no state of prune2deploy, or not whole")
    if hashlib.sha256(memoryview(raw)[start:]).digest() != raw[len(MAGIC) : start]:
        raise DamagedError(f"{path.name} is not as it was written: its digest differs")
    try:
        end = start + _LENGTH + int.from_bytes(raw[start : start + _LENGTH], "little")
        structure = json.loads(raw[start + _LENGTH : end])
        return _decoded(structure, load_tensors(raw[end:]))
    except (SafetensorError, ValueError, LookupError, TypeError, RecursionError) as err:
        raise DamagedError(f"{path.name} cannot be read: {err}") from err


def _encoded(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The value as JSON: what is no text, number, bool or None is a list [kind, content]."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (Tensor, np.ndarray)):
        kind = "tensor" if isinstance(value, Tensor) else "array"
        tensor = value.detach() if isinstance(value, Tensor) else torch.from_numpy(value)
        # A copy: safetensors refuses tensors that share memory.
        tensors[str(len(tensors))] = tensor.cpu().contiguous().clone()
        return [kind, str(len(tensors) - 1)]
    if isinstance(value, (list, tuple)):
        return [type(value).__name__, [_encoded(one, tensors) for one in value]]
    if isinstance(value, dict):
        pairs = [[_encoded(k, tensors), _encoded(v, tensors)] for k, v in value.items()]
        return ["dict", pairs]
    raise TypeError(f"a state holds no {type(value).__name__}")


def _decoded(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, list):
        return value
    kind, content = value
    if kind == "tensor":
        return tensors[content]
    if kind == "array":
        return tensors[content].numpy()
    if kind == "dict":
        return {_decoded(k, tensors): _decoded(v, tensors) for k, v in content}
    items = [_decoded(one, tensors) for one in content]
    if kind == "tuple":
        return tuple(items)
    if kind == "list":
        return items
    raise ValueError(f"unknown kind {kind!r}")
