"""A commented recipe to start from, fitted to a model and a folder of images."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prune2deploy.errors import DataError, RecipeError
from prune2deploy.recipe.sources import (
    MODEL_KINDS,
    check_source,
    default_input_shape,
    python_file,
    split_folders,
)

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
_SAMPLED_IMAGES = 48
_SMALL = 64  # up to this, images are used as they are; larger ones are brought to the model's size


@dataclass(frozen=True)
class FolderSurvey:
    """What a folder of images holds; sizes are those of a sample of the training images."""

    root: Path
    images: dict[str, int]  # "train", "val", "test", as far as present
    classes: tuple[str, ...]
    width: int
    height: int
    same_size: bool
    grey: bool


def survey_folder(root: Path) -> FolderSurvey:
    """Look at a folder of images: splits, classes, and how large the images are.

    Raises:
        DataError: it is no folder, has no class folders, or holds no readable image.
    """
    layout = "Expected root/train/CLASS/*.jpg (and test, val), or root/CLASS/*.jpg."
    if not root.is_dir():
        found = "is a file" if root.exists() else "does not exist"
        raise DataError(f"Data folder {root} {found}. {layout}")
    splits = split_folders(root) or {"train": root}
    if "train" not in splits:
        raise DataError(f"{root} has {', '.join(splits)} but no folder train. {layout}")
    classes = sorted(
        path.name
        for path in splits["train"].iterdir()
        if path.is_dir() and not path.name.startswith(".")
    )
    if len(classes) < 2:
        raise DataError(
            f"{splits['train']} has {len(classes)} class folders, expected at least 2. {layout}"
        )
    train = [list(_images(splits["train"] / name)) for name in classes]
    sizes, modes = _sample([path for paths in train for path in paths])
    if not sizes:
        raise DataError(f"{splits['train']} holds no image that can be read. {layout}")
    (width, height), _ = sizes.most_common(1)[0]
    return FolderSurvey(
        root=root,
        images={name: sum(1 for _ in _images(folder)) for name, folder in splits.items()},
        classes=tuple(classes),
        width=width,
        height=height,
        same_size=len(sizes) == 1,
        grey=set(modes) <= {"L", "1", "I;16"},
    )


def starter_recipe(
    model: str, survey: FolderSurvey, path: Path, checkpoint: Path | None = None
) -> str:
    """Return the text of a recipe for this model and folder.

    Args:
        model: a model source.
        survey: of the data folder.
        path: where the recipe will be; relative paths are written from its folder.
        checkpoint: trained weights; without them the recipe trains the model first.

    Raises:
        RecipeError: the model source has no known form, or a file it names does not exist.
    """
    _check_model(model, checkpoint)
    home = path.absolute().parent
    file = python_file(model)
    source = model if file is None else _from(home, Path(file)) + model[len(file) :]
    shape = _input_shape(model, survey)
    return "\n".join(
        [
            f"# prune2deploy run {path.name}",
            "# All settings with their meaning: prune2deploy schema. Left out: the default.",
            "",
            "model:",
            f"  source: {_scalar(source)}",
            *_checkpoint_lines(home, checkpoint, file is not None),
            f"  input: {list(shape)}  # channels, height, width",
            "",
            *_data_lines(home, survey, shape),
            *_pretrain_lines(checkpoint, file is not None),
            _REST,
        ]
    )


def write_recipe(path: Path, text: str, *, replace: bool) -> None:
    """Write the text of a recipe, whole or not at all.

    Args:
        path: the file, in a folder that exists.
        text: what to write.
        replace: whether a file that is there may go.

    Raises:
        RecipeError: the file exists and may not go, or there is no such folder.
    """
    if path.exists() and not replace:
        raise RecipeError(
            f"{path} exists and was left as it is. Name another file with --output, "
            "or replace it with --force."
        )
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as err:
        raise RecipeError(
            f"{path} cannot be written: {err.strerror}. Make its folder first, or name another "
            "file with --output."
        ) from err
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


_REST = """\
prune:
  method: chip         # 'prune2deploy methods' lists them
  budget: {macs: 0.5}  # share of the multiply-accumulates that is kept

finetune:
  epochs: 20
  lr: 0.01
  distill: {from: original}  # learn from the unpruned network, too

# Checked at the end; if one fails, the exit code is 3 and everything is kept.
gates:
  max_accuracy_drop: 1.0  # percentage points on the test images
  min_speedup: 1.2
"""


def _check_model(model: str, checkpoint: Path | None) -> None:
    try:
        check_source(model, "model source", kinds=MODEL_KINDS)
    except ValueError as err:
        raise RecipeError(str(err)) from err
    file = python_file(model)
    for named in (Path(file) if file else None, checkpoint):
        if named is not None and not named.expanduser().is_file():
            raise RecipeError(f"No such file: {named}. Paths start from the current folder.")


def _checkpoint_lines(home: Path, checkpoint: Path | None, own_code: bool) -> list[str]:
    if checkpoint is not None:
        return [f"  checkpoint: {_scalar(_from(home, checkpoint))}"]
    wanted = "if the function does not load the trained weights itself" if own_code else "see below"
    return [f"  # checkpoint: weights.safetensors  # {wanted}"]


def _data_lines(home: Path, survey: FolderSurvey, shape: tuple[int, int, int]) -> list[str]:
    counts = ", ".join(f"{count} {name}" for name, count in survey.images.items())
    size = f"{survey.width}×{survey.height}" + ("" if survey.same_size else " and other sizes")
    shown = ", ".join(survey.classes[:5]) + (", ..." if len(survey.classes) > 5 else "")
    small = max(shape[1:]) <= _SMALL
    lines = [
        f"# {counts} images, {size}; {len(survey.classes)} classes: {_comment(shown)}",
        "data:",
        "  source: imagefolder",
        f"  root: {_scalar(_from(home, survey.root))}",
    ]
    if "test" not in survey.images:
        lines.append("  test: 0.2  # there is no test folder: this share of all images, set aside")
    if shape[0] == 3:
        lines.append("  normalize: imagenet  # or what the network was trained with")
    else:
        lines.append("  normalize: none  # or {mean: [...], std: [...]}, as in training")
    if small:
        lines += ["  augment: {flip: true, crop_padding: 4}  # training images only", ""]
        return lines
    if not (survey.same_size and (survey.height, survey.width) == shape[1:]):
        lines.append(f"  resize: {max(shape[1:]) * 8 // 7}  # shorter side, then the centre is cut")
    return [
        *lines,
        "  augment: {flip: true, resized_crop: 0.35}  # training images only",
        "  batch_size: 64",
        "",
    ]


def _pretrain_lines(checkpoint: Path | None, own_code: bool) -> list[str]:
    if checkpoint is not None or own_code:
        return []
    return [
        "# No trained weights were named, so the network is trained first. If you have some,",
        "# name them in model.checkpoint and remove this section.",
        "pretrain: {epochs: 60, lr: 0.05, warmup_epochs: 2}",
        "",
    ]


def _input_shape(model: str, survey: FolderSurvey) -> tuple[int, int, int]:
    channels, height, width = default_input_shape(model)
    if max(survey.width, survey.height) <= _SMALL and survey.same_size:
        height, width = survey.height, survey.width
    if python_file(model) and survey.grey:
        channels = 1
    return channels, height, width


def _images(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in _SUFFIXES:
            yield path


def _sample(paths: list[Path]) -> tuple[Counter[tuple[int, int]], Counter[str]]:
    """Return how often each (width, height) and each pixel format occurs in a spread-out sample."""
    from PIL import Image

    sizes: Counter[tuple[int, int]] = Counter()
    modes: Counter[str] = Counter()
    for path in paths[:: max(1, len(paths) // _SAMPLED_IMAGES)]:
        try:
            with Image.open(path) as image:
                sizes[image.size] += 1
                modes[image.mode] += 1
        # A broken image is for the run to report; here it only says nothing about sizes.
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue
    return sizes, modes


def _from(home: Path, path: Path) -> str:
    """Return the path as seen from the recipe's folder; absolute ones stay absolute."""
    path = path.expanduser()
    return str(path) if path.is_absolute() else os.path.relpath(path, home)


def _scalar(text: str) -> str:
    """Return the text as YAML, quoted where it could mean something else."""
    plain = re.fullmatch(r"[A-Za-z_./][\w./\-]*(:[A-Za-z_]\w*)?", text, re.ASCII)
    return text if plain and text.lower() not in ("true", "false", "null") else json.dumps(text)


def _comment(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)
