"""Read files of weights without running code from them, and fit them into a model."""

from __future__ import annotations

import logging
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from prune2deploy.errors import ModelError
from prune2deploy.models.user_code import shorten

_log = logging.getLogger(__name__)

_TORCH_SUFFIXES = (".pt", ".pth", ".th", ".bin", ".ckpt", ".tar")
# In this order: averaged weights are taken only where there are no others.
_NESTS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "network",
    "net",
    "module",
    "weights",
    "params",
    "state_dict_ema",
    "ema_state_dict",
    "model_ema",
    "ema",
)
# What the restricted unpickler says when a file is sound but asks for more than tensors.
_CODE_WANTED = re.compile(r"GLOBAL (\S+)|Trying to call|Can only (build|create)", re.IGNORECASE)
_TRACKER = "num_batches_tracked"
_SHOWN = 8
_MOST_INFLATED = 4
_ALWAYS_FINE = 64 << 20  # bytes


def load_state_dict_file(path: Path) -> dict[str, Tensor]:
    """Return the weights in a file, by parameter name, on the CPU.

    Nested dictionaries (`state_dict`, `model`, …) are opened, entries that are not
    tensors are left out, and the prefixes of wrappers (`module.`, `_orig_mod.`) removed.

    Raises:
        ModelError: no such file, damaged, not weights, or it needs pickle to run code.
    """
    _check_file(path)
    if path.suffix.lower() == ".safetensors":
        try:
            return _without_wrappers(safetensors.torch.load_file(path))
        except (safetensors.SafetensorError, OSError) as err:
            raise _damaged(path, err) from err
    if path.suffix.lower() not in _TORCH_SUFFIXES:
        raise ModelError(
            f"{path}: weights are read from .safetensors, {', '.join(_TORCH_SUFFIXES)}, "
            f"not from '{path.suffix}'."
        )
    content = _load_pickled(path)
    state = _find_state_dict(content)
    if state is None:
        keys = f" with the keys {_few(map(str, content))}" if isinstance(content, Mapping) else ""
        raise ModelError(
            f"{path} holds no weights: found a {type(content).__name__}{keys}; "
            f"expected a state_dict, or one under one of {', '.join(_NESTS)}."
        )
    return _without_wrappers(state)


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise ModelError(f"There is no checkpoint file {path}.")
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as err:
        raise ModelError(f"{path} cannot be opened: {err.strerror}.") from err
    if not start:
        raise ModelError(f"{path} is empty. Download or copy it again.")
    if start.startswith(b"version https://git-lfs"):
        raise ModelError(
            f"{path} is a Git LFS pointer, not the weights. Fetch them with: git lfs pull"
        )


def _refuse_bombs(path: Path) -> None:
    """Refuse an archive that says it is far larger inside: torch writes them uncompressed."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            inside = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError):
        return  # what is damaged is told by who reads it
    outside = path.stat().st_size
    if inside > _MOST_INFLATED * outside + _ALWAYS_FINE:
        raise ModelError(
            f"{path} was refused: its {outside:,} bytes say that they become {inside:,}, and "
            "PyTorch writes archives without compression. Download it again from who made it, or "
            "write it with torch.save."
        )


def _load_pickled(path: Path) -> Any:
    _refuse_bombs(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as err:  # A damaged file can end, and fail, anywhere in the unpickler.
        if isinstance(err, pickle.UnpicklingError) and _CODE_WANTED.search(str(err)):
            raise _needs_code(path, err) from err
        if "TorchScript" in str(err):
            raise ModelError(
                f"{path} is a TorchScript archive; expected weights. Convert it with:\n"
                "    import torch\n"
                f"    script = torch.jit.load({str(path)!r})\n"
                f"    torch.save(script.state_dict(), {_converted(path)!r})"
            ) from err
        raise _damaged(path, err) from err


def _damaged(path: Path, err: Exception) -> ModelError:
    # PyTorch puts the reason behind a paragraph of advice on unsafe loading.
    reason = shorten(str(err).rpartition("WeightsUnpickler error: ")[2])
    return ModelError(
        f"{path} ({path.stat().st_size} bytes) cannot be read as weights "
        f"({type(err).__name__}: {reason}). "
        "The file is damaged, incomplete or of another kind; download or copy it again."
    )


def _needs_code(path: Path, err: Exception) -> ModelError:
    named = re.search(r"GLOBAL (\S+)", str(err))
    reason = f"it asks for {named[1]}" if named else "it calls functions"
    return ModelError(
        f"{path} was refused: reading it would run code that is stored in it "
        f"({reason}). Expected a file of tensors only. "
        "If you trust where it comes from, convert it once with:\n"
        f"    import torch; saved = torch.load({str(path)!r}, 'cpu', weights_only=False)\n"
        "    if isinstance(saved, dict): "
        "saved = saved.get('state_dict') or saved.get('model') or saved\n"
        "    torch.save({k: v for k, v in (saved if isinstance(saved, dict) else "
        f"saved.state_dict()).items() if torch.is_tensor(v)}}, {_converted(path)!r})"
    )


def _converted(path: Path) -> str:
    return str(path.with_name(f"{path.stem}-weights.pth"))


def _find_state_dict(content: Any) -> dict[str, Tensor] | None:
    if not isinstance(content, Mapping):
        return None
    for nest in _NESTS:
        found = _find_state_dict(content.get(nest))
        if found:
            others = [n for n in _NESTS if n != nest and isinstance(content.get(n), Mapping)]
            if others:
                _log.info("The weights under '%s' are used, not those under %s.", nest, others)
            return found
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    return tensors or None


def _without_wrappers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # A compiled part of a model has its mark in the middle of a name.
    state = {key.replace("_orig_mod.", ""): value for key, value in state.items()}
    # "n_averaged" is what torch.optim.swa_utils.AveragedModel adds beside its module.
    state.pop("n_averaged", None)
    while state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state


def load_weights_into(model: nn.Module, path: Path, *, num_classes: int | None = None) -> None:
    """Load a file of weights into the model, which changes.

    A prefix that the whole model has in the file (such as Lightning's `model.`) is
    removed. Counters of batches that old files lack keep their value.

    Args:
        num_classes: the data's class count, to explain a classifier of another size.

    Raises:
        ModelError: the file cannot be read, holds NaN or infinity, or does not fit.
    """
    own = model.state_dict()
    state = _under_prefix(load_state_dict_file(path), own)
    wanted = [key for key in own if not key.endswith(_TRACKER)]
    missing = [key for key in wanted if key not in state]
    unexpected = [key for key in state if key not in own]
    wrong = [key for key in own if key in state and state[key].shape != own[key].shape]
    if missing or unexpected or wrong:
        matching = len(wanted) - len(missing) - len(wrong)
        lines = [
            f"The weights in {path} do not fit the model: "
            f"{matching} of the model's {len(wanted)} entries match, and the file has {len(state)}."
        ]
        for title, keys in (
            ("missing in the file", missing),
            ("unexpected in the file", unexpected),
            ("of another shape", [_shapes(key, state, own) for key in wrong]),
        ):
            if keys:
                lines.append(f"  {title} ({len(keys)}): {_few(keys)}")
        raise ModelError("\n".join([*lines, _advice(wrong, state, own, num_classes)]))
    for key, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ModelError(
                f"{path}: '{key}' holds NaN or infinity. The training that wrote this file "
                "diverged; use an earlier checkpoint."
            )
    model.load_state_dict({**own, **state})


def _under_prefix(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the part of `state` that holds the whole model under one prefix, if there is one."""
    wanted = [key for key in own if not key.endswith(_TRACKER)]
    if not wanted or wanted[0] in state:
        return state
    for key in state:
        prefix = key.removesuffix(wanted[0])
        if key.endswith("." + wanted[0]) and all(prefix + other in state for other in wanted):
            inside = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            _log.info(
                "The model is stored under the prefix '%s'; %d other entries are left out.",
                prefix,
                len(state) - len(inside),
            )
            return inside
    return state


def _advice(
    wrong: list[str], state: Mapping[str, Tensor], own: Mapping[str, Tensor], classes: int | None
) -> str:
    """Say what to do; a classifier of another size is recognised by its rows."""
    for key in reversed(wrong):
        if own[key].ndim >= 2 and state[key].shape[1:] == own[key].shape[1:]:
            rows, expected = state[key].shape[0], own[key].shape[0]
            if expected == classes:
                return (
                    f"The classifier '{key}' has {rows} rows in the file, but the data has "
                    f"{classes} classes: use data with {rows} classes, or weights trained "
                    f"for {classes}."
                )
    return (
        "Use the model source and arguments (num_classes too) that these weights were trained with."
    )


def _shapes(key: str, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    return f"{key} (file {tuple(state[key].shape)}, model {tuple(own[key].shape)})"


def _few(names: Iterable[str]) -> str:
    names = list(names)
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
