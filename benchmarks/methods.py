"""All channel methods on the same ground: accuracy after the cut and after the same fine-tuning.

    python benchmarks/methods.py --data FOLDER --checkpoint FILE [METHOD ...] [--seeds 1]
        [--model cifar:resnet20] [--images 10000] [--test-images 4000]
        [--epochs 8] [--macs 0.5]
        [--output methods.json] [--write docs/methods.md]

FOLDER holds train/CLASS/* and test/CLASS/*. Each method gets the same trained network, the same
budget and the same fine-tuning; those that learn their scores in training get as many epochs for
that beforehand, and those that work in rounds still do one. Beside them stand `random` (channels
drawn by lot) and `scratch` (the network that `random` left, from fresh weights, trained for as
long as the methods that train have in all). Latency is that of the ONNX file on one thread of
this machine, as a paired speed-up over the original's.

What is in the JSON already is not done again, so it can run in parts.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import shutil
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
import yaml
from methods_table import document
from rich.console import Console
from torch import Tensor, nn

from prune2deploy.channels import load_pruned
from prune2deploy.errors import Prune2DeployError
from prune2deploy.methods import METHODS, Context, Method, MethodOptions
from prune2deploy.pipeline import folder as files
from prune2deploy.pipeline.inputs import EVALUATION_BATCH, open_inputs, train_settings
from prune2deploy.pipeline.run import run_recipe
from prune2deploy.recipe import load_recipe
from prune2deploy.train import evaluate, fit

BASELINES = ("random", "scratch")
SPARSE_TRAINING = {"lr": 0.02, "warmup_epochs": 0.5}
FINETUNING = {"lr": 0.05, "warmup_epochs": 0.5}


class Random(Method[MethodOptions]):
    """Channels drawn by lot: what a method must beat."""

    name = "random"
    summary = "a number drawn by lot"
    source = "none"
    normalisation = "none"
    seed = 0

    def score(self, context: Context) -> list[Tensor | None]:
        """Random numbers, the same ones for one seed."""
        generator = torch.Generator().manual_seed(self.seed)
        return [torch.rand(group.size, generator=generator) for group in context.graph.groups]


def subset(folder: Path, images: int, test_images: int, target: Path) -> Path:
    """Links to the first images of each class."""
    for split, count in (("train", images), ("test", test_images)):
        classes = sorted(path for path in (folder / split).iterdir() if path.is_dir())
        if not classes:
            raise SystemExit(f"{folder / split} holds no folders of images.")
        for one in classes:
            images_of_it = sorted(one.iterdir(), key=lambda path: (len(path.name), path.name))
            chosen = images_of_it[: count // len(classes)]
            (target / split / one.name).mkdir(parents=True)
            for file in chosen:
                (target / split / one.name / file.name).symlink_to(file.resolve())
    return target


def recipe_text(arguments: argparse.Namespace, data: Path, method: str, seed: int) -> str:
    """The recipe of one row."""
    kind = METHODS[method]
    prune: dict[str, Any] = {"method": method, "budget": {"macs": arguments.macs}}
    if kind.needs_training:
        prune["train"] = {"epochs": arguments.epochs, **SPARSE_TRAINING}
    content = {
        "seed": seed,
        "threads": arguments.threads,
        "model": {
            "source": arguments.model,
            "input": [3, 32, 32],
            "checkpoint": str(arguments.checkpoint.resolve()),
        },
        "data": {
            "source": "imagefolder",
            "root": str(data),
            "normalize": "imagenet",
            "augment": {"flip": True, "crop_padding": 4},
        },
        "prune": prune,
        "finetune": {"epochs": arguments.epochs, **FINETUNING},
        "profile": {"threads": 1},
    }
    return yaml.safe_dump(content, sort_keys=False)


def measured(arguments: argparse.Namespace, data: Path, method: str, seed: int) -> dict[str, Any]:
    """One row: a whole run."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / f"{method}.yaml"
        path.write_text(
            recipe_text(arguments, data, "random" if method == "scratch" else method, seed)
        )
        recipe = load_recipe(path, [])
        Random.seed = seed
        start = time.perf_counter()
        result = run_recipe(recipe, folder / "run")
        metrics = result.metrics
        top1 = {stage.stage: stage.metrics[metrics.metric] for stage in metrics.stages}
        row: dict[str, Any] = {
            "method": method,
            "seed": seed,
            "top1": top1,
            "macs": metrics.after.macs / metrics.before.macs,
            "params": metrics.after.params / metrics.before.params,
            "speedup": metrics.latency[0]["speedups"][0] if metrics.latency else None,
            "latency": metrics.latency,
        }
        if method == "scratch":
            inputs = open_inputs(recipe)
            run = folder / "run"
            model = load_pruned(inputs.model, run / files.WEIGHTS, run / files.PLAN)
            top1 = trained_from_scratch(arguments, recipe, inputs, model, seed)
            row["top1"] = {"finetuned": top1}
        row["minutes"] = (time.perf_counter() - start) / 60
        return row


def trained_from_scratch(
    arguments: argparse.Namespace, recipe: Any, inputs: Any, model: nn.Module, seed: int
) -> float:
    """Accuracy of a network of this shape with fresh weights, trained twice as long."""
    torch.manual_seed(seed)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    section = recipe.finetune.model_copy(update={"epochs": 2 * arguments.epochs, "lr": 0.1})
    fit(model, inputs.task, inputs.data, train_settings(section, recipe), seed=seed)
    loader = inputs.data.loader("test", batch_size=EVALUATION_BATCH)
    return evaluate(model, inputs.task, loader)[inputs.task.metric]


def chosen(names: list[str]) -> list[str]:
    """The methods to run."""
    known = [*BASELINES, *sorted(n for n in METHODS if n not in BASELINES)]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(f"There is no method {', '.join(unknown)}. Known: {', '.join(known)}.")
    return names or known


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("methods", nargs="*", metavar="METHOD")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--model", default="cifar:resnet20")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--test-images", type=int, default=4_000)
    parser.add_argument("--epochs", type=float, default=8)
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, default=Path("methods.json"))
    parser.add_argument("--write", type=Path, help="Markdown file for the table")
    arguments = parser.parse_args()
    METHODS["random"] = Random
    console = Console()
    found: dict[str, Any] = {"rows": []}
    if arguments.output.exists():
        found = json.loads(arguments.output.read_text())
    named = ("model", "images", "test_images", "epochs", "macs", "threads")
    ground = {name: getattr(arguments, name) for name in named}
    if found.setdefault("ground", ground) != ground:
        raise SystemExit(f"{arguments.output} was measured with {found['ground']}; name another.")
    found["machine"] = {"processor": platform.processor(), "date": str(date.today())}
    logging.disable(logging.INFO)
    data = subset(arguments.data, arguments.images, arguments.test_images, Path(tempfile.mkdtemp()))
    try:
        for seed in range(arguments.seeds):
            for method in chosen(arguments.methods):
                if any((r["method"], r["seed"]) == (method, seed) for r in found["rows"]):
                    continue
                try:
                    row = measured(arguments, data, method, seed)
                except Prune2DeployError as err:
                    row = {"method": method, "seed": seed, "error": str(err)}
                found["rows"].append(row)
                arguments.output.write_text(json.dumps(found))
                console.print(f"{method}, seed {seed}: {row.get('top1', row.get('error'))}")
    finally:
        shutil.rmtree(data)
    text = document(found)
    if arguments.write:
        arguments.write.write_text(text)
    console.print(text)


if __name__ == "__main__":
    main()
