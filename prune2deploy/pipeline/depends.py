"""What each stage of a run depends on: parts of the recipe, files, our own code, other stages."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import prune2deploy
from prune2deploy.devices import Devices
from prune2deploy.methods import METHODS
from prune2deploy.pipeline.engines import engine_devices
from prune2deploy.pipeline.folder import sha256_of
from prune2deploy.pipeline.inputs import Inputs
from prune2deploy.pipeline.processes import trains
from prune2deploy.recipe import Recipe
from prune2deploy.recipe.sources import python_file

_TRAINING = ("models", "data", "train", "pipeline")
_PACKAGES = ("torch", "torchvision", "numpy", "lightning-fabric")
_ONNX = ("onnx", "onnxruntime", "onnxsim", "onnxscript")
# These change how fast data is read, and where from, and nothing that comes of it.
_DATA_WITHOUT_EFFECT = {"root", "workers", "cache"}
_MODEL_WITHOUT_EFFECT = {"checkpoint"}
_DEVICE_WITHOUT_EFFECT = {"cooldown_s", "connect_timeout_s", "folder", "key", "known_hosts"}


@dataclass(frozen=True)
class StageKind:
    """A stage's place among the others.

    after: stages whose files it reads, if the recipe has them. recipe: keys of the recipe that
    it looks at. rooms: of our code. packages: of others. devices: whether it measures.
    """

    name: str
    after: tuple[str, ...] = ()
    recipe: tuple[str, ...] = ()
    rooms: tuple[str, ...] = _TRAINING
    packages: tuple[str, ...] = _PACKAGES
    devices: bool = False


_CUT = (*_TRAINING, "channels", "methods", "budget", "planning")
_WRITTEN = (*_CUT, "export")
_MEASURED = ("export", "devices", "latency", "probe", "pipeline")

KINDS = {
    kind.name: kind
    for kind in (
        StageKind("pretrain", recipe=("pretrain",)),
        StageKind("original", after=("pretrain",)),
        StageKind(
            "search",
            after=("pretrain",),
            recipe=("searched",),
            rooms=(*_CUT, "search", "report"),
            packages=(*_PACKAGES, "optuna", "matplotlib"),
        ),
        StageKind("prune", after=("pretrain", "search"), recipe=("prune",), rooms=_CUT),
        StageKind("finetune", after=("pretrain", "prune"), recipe=("finetune",), rooms=_CUT),
        StageKind(
            "export",
            after=("pretrain", "prune", "finetune"),
            recipe=("export.onnx",),
            rooms=_WRITTEN,
            packages=(*_PACKAGES, *_ONNX),
        ),
        StageKind(
            "precisions",
            after=("export",),
            recipe=("export.precision", "export.int8"),
            rooms=_WRITTEN,
            packages=(*_PACKAGES, *_ONNX),
            devices=True,
        ),
        StageKind(
            "engines",
            after=("export", "precisions"),
            recipe=("export.engines", "prune.budget.pattern"),
            rooms=_MEASURED,
            packages=_ONNX,
            devices=True,
        ),
        StageKind(
            "profile",
            after=("export", "precisions"),
            recipe=("profile", "export.engines"),
            rooms=_MEASURED,
            packages=_ONNX,
            devices=True,
        ),
        StageKind(
            "report",
            after=(
                "pretrain",
                "search",
                "prune",
                "finetune",
                "export",
                "precisions",
                "engines",
                "profile",
            ),
            recipe=("name", "gates", "export", "prune", "profile"),
            rooms=(*_WRITTEN, "report", "latency"),
            packages=(*_PACKAGES, *_ONNX),
        ),
    )
}
"""Every stage, in order."""


def stages_of(recipe: Recipe, devices: Devices | None = None) -> list[str]:
    """The stages that a recipe has, in order.

    devices: those of this machine; None: engines, which only some devices have, are left out.
    """
    absent = {
        "pretrain": recipe.pretrain is None,
        "search": recipe.prune.search is None,
        "finetune": recipe.finetune is None,
        "precisions": not recipe.export.lower,
        "engines": devices is None or not engine_devices(recipe, devices),
    }
    return [name for name in KINDS if not absent.get(name, False)]


def depends_of(
    stage: str,
    recipe: Recipe,
    inputs: Inputs,
    devices: Devices,
    contents: Mapping[str, str],
) -> dict[str, str]:
    """What a stage depends on, by name.

    contents: of the stages that are finished.
    """
    kind = KINDS[stage]
    found = {**_said(recipe), **_inputs(recipe, inputs), **_asked(stage, recipe)}
    found["code"] = code_of(kind.rooms)
    found.update({f"package {name}": _version(name) for name in kind.packages})
    if kind.devices or _is_timed(stage, recipe):
        searched = [] if recipe.prune.search is None else [recipe.prune.search.on]
        asked = [*recipe.profile.on, *recipe.prune.budget.on, *recipe.export.engines.on, *searched]
        names = dict.fromkeys(asked)
        for name in names:
            settings = devices[name].model_dump(mode="json", exclude=_DEVICE_WITHOUT_EFFECT)
            found.update(_flat(f"device {name}", settings))
    found.update({f"stage {name}": contents[name] for name in kind.after if name in contents})
    return found


def shared_keys(recipe: Recipe) -> dict[str, str]:
    """Per stage a text that two recipes have in common if one can take the stage from the other.

    Only the recipe is looked at: files, devices and code are taken to stay as they are.
    """
    paths = {"checkpoint": str(recipe.model.checkpoint), "root": str(recipe.data.root)}
    found: dict[str, str] = {}
    for stage in stages_of(recipe):
        before = {name: found[name] for name in KINDS[stage].after if name in found}
        asked = {**paths, **_said(recipe), **_asked(stage, recipe), **before}
        found[stage] = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    return found


def _asked(stage: str, recipe: Recipe) -> dict[str, str]:
    """What the recipe says of this stage."""
    found: dict[str, str] = {}
    more = ("train",) if trains(stage, recipe) else ()
    for key in (*KINDS[stage].recipe, *more, *_more_of_the_recipe(stage, recipe)):
        found.update(_flat(f"recipe {key}", _at(recipe, key)))
    return found


def _is_timed(stage: str, recipe: Recipe) -> bool:
    search = recipe.prune.search
    searched = stage == "search" and search is not None and search.cost == "latency"
    return searched or (stage == "prune" and recipe.prune.budget.timed)


def _more_of_the_recipe(stage: str, recipe: Recipe) -> tuple[str, ...]:
    """Keys that a stage looks at only in some recipes."""
    if stage == "search" and _is_timed(stage, recipe):
        return ("export.onnx", "profile.threads")
    if stage != "prune":
        return ()
    more: tuple[str, ...] = ()
    if recipe.prune.schedule.rounds > 1 or METHODS[recipe.prune.method].granularity == "weight":
        more += ("finetune",)
    else:
        more += ("finetune_present",)
    if recipe.prune.budget.timed:
        more += ("export.onnx", "profile.threads")
    elif recipe.prune.round_to == "auto":
        # Whose steps; not the steps themselves: a run that has its widths keeps them when a table
        # comes to be.
        more += ("profile.on", "profile.threads")
    return more


def _said(recipe: Recipe) -> dict[str, str]:
    """What the recipe says that every stage looks at."""
    return {
        "recipe seed": str(recipe.seed),
        "recipe threads": str(recipe.threads),
        "recipe task": recipe.task,
        **_flat(
            "recipe model", recipe.model.model_dump(mode="json", exclude=_MODEL_WITHOUT_EFFECT)
        ),
        **_flat("recipe data", recipe.data.model_dump(mode="json", exclude=_DATA_WITHOUT_EFFECT)),
    }


def _inputs(recipe: Recipe, inputs: Inputs) -> dict[str, str]:
    """The contents of the model's, the data's and the task's files."""
    checkpoint = recipe.model.checkpoint
    facts = inputs.data.describe()
    found = {
        "checkpoint": "none" if checkpoint is None else sha256_of(checkpoint),
        "data": json.dumps(
            [facts.get("fingerprint"), facts["images"], inputs.data.classes], sort_keys=True
        ),
    }
    for what, source in (
        ("model", recipe.model.source),
        ("data", recipe.data.source),
        ("task", recipe.task),
    ):
        file = python_file(source)
        if file is not None:
            found[f"file {what}"] = sha256_of(recipe.base_dir / Path(file).expanduser())
    return found


def _at(recipe: Recipe, key: str) -> Any:
    if key == "finetune_present":
        # Without it the prune stage's weights are the final ones, and are named so.
        return recipe.finetune is not None
    if key == "searched":
        return _searched(recipe)
    value: Any = recipe
    for part in key.split("."):
        value = getattr(value, part)
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


def _searched(recipe: Recipe) -> dict[str, Any]:
    """What a search looks at: neither which point is taken, nor where its trials are."""
    section = recipe.prune
    assert section.search is not None
    without = {"budget": True, "compensate": True, "recalibrate": True}
    found = section.model_dump(
        mode="json", exclude={**without, "search": {"point", "storage", "shares"}}
    )
    size = "params" if section.search.cost == "params" else "macs"
    return {**found, "shares": list(section.search.bounds(getattr(section.budget, size)))}


def _flat(name: str, value: Any) -> dict[str, str]:
    if isinstance(value, dict) and value:
        found: dict[str, str] = {}
        for key, one in value.items():
            found.update(_flat(f"{name}.{key}", one))
        return found
    return {name: value if isinstance(value, str) else json.dumps(value, sort_keys=True)}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


@functools.cache
def code_of(rooms: tuple[str, ...]) -> str:
    """Hash of the sources of these rooms of the package, and of what all of them share."""
    root = Path(prune2deploy.__file__).parent
    digest = hashlib.sha256()
    files = [*root.glob("*.py"), *(path for room in rooms for path in (root / room).rglob("*.py"))]
    for path in sorted(files):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0")
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()
