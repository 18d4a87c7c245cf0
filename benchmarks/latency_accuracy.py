"""Accuracy after fine-tuning at equal latency: widths by a budget of MACs, and of time.

    python benchmarks/latency_accuracy.py --root cifar10-jpeg --checkpoints DIR
        [--networks resnet20 resnet56] [--macs 0.5] [--images 10000] [--epochs 5] [--seeds 1 2]
        [--output latency_accuracy.json]

The file CHECKPOINTS/NETWORK-jpeg.safetensors is pruned with L1 scores to a share of its MACs,
rounded to 8 as is usual, and its time is measured beside the original's. That time is then the
budget of the other network. Both are measured once more in one session, and fine-tuned alike with
distillation, on the first `images` training images in a random order that the seed draws.
Accuracies are of the whole test set. What is in the JSON already is not done again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prune2deploy.budget.latency import value_of
from prune2deploy.channels import Plan, cut
from prune2deploy.latency import ProfileOptions, profile
from prune2deploy.methods import Context
from prune2deploy.pipeline.deploy import exporter
from prune2deploy.pipeline.inputs import EVALUATION_BATCH, Inputs, open_inputs, train_settings
from prune2deploy.pipeline.pruning import Pruned, prune, recalibrate
from prune2deploy.planning.plan import make_method
from prune2deploy.planning.sums import summable_scores
from prune2deploy.recipe import Recipe, parse_recipe
from prune2deploy.train import evaluate, fit

RECIPE = """
seed: {seed}
model: {{source: "cifar:{network}", checkpoint: "{checkpoint}", input: [3, 32, 32]}}
data: {{source: imagefolder, root: "{root}", normalize: imagenet, batch_size: 128,
        augment: {{flip: true, crop_padding: 4}}}}
prune: {{method: l1, {budget}}}
finetune: {{epochs: {epochs}, lr: 0.02, distill: {{from: original}}}}
profile: {{threads: 1}}
"""
BY_MACS, BY_TIME = "MACs, round_to 8", "time"


class Subject:
    """A network, and the recipes that prune it."""

    def __init__(self, network: str, options: argparse.Namespace) -> None:
        self.network = network
        self.options = options

    def recipe(self, budget: str, seed: int) -> Recipe:
        """One of the two."""
        checkpoint = self.options.checkpoints / f"{self.network}-jpeg.safetensors"
        text = RECIPE.format(
            network=self.network,
            seed=seed,
            checkpoint=checkpoint.resolve(),
            root=self.options.root.resolve(),
            budget=budget,
            # Epochs of the whole set that are so many passes over the part.
            epochs=self.options.epochs * self.options.images / 50_000,
        )
        return parse_recipe(text, Path("accuracy.yaml"))

    def pruned(self, budget: str) -> tuple[Recipe, Inputs, Pruned]:
        """The network after the cut."""
        recipe = self.recipe(budget, 1)
        inputs = open_inputs(recipe)
        return recipe, inputs, prune(recipe, inputs, inputs.model.eval())


def times(recipe: Recipe, inputs: Inputs, models: dict[str, nn.Module]) -> dict[str, Any]:
    """Shares of the original's time, all in turns, with their 95 % intervals."""
    export = exporter(recipe, inputs)
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for number, (name, model) in enumerate({"original": inputs.model, **models}.items()):
            files[name] = Path(folder, f"{number}.onnx")
            export(model, files[name])
        result = profile(files, options=ProfileOptions(threads=1))
    return {
        one.other: {"time": 1 / one.ratio, "low": 1 / one.high, "high": 1 / one.low}
        for one in result.speedups
    }


def figures(pruned: Pruned) -> dict[str, Any]:
    """What is known without training and measuring."""
    graph = pruned.graph
    assert graph is not None
    counts = graph.counts(pruned.plan)
    scores = summable_scores(Context(graph), make_method("l1", {}), None)
    macs = graph.cost.macs
    return {
        "macs": macs(counts) / macs(graph.full),
        "importance": value_of(scores, counts),
        "notes": list(pruned.plan.notes),
        "plan": pruned.plan.to_json(),
    }


def top1(inputs: Inputs, model: nn.Module) -> float:
    """On the whole test set."""
    loader = inputs.data.loader("test", batch_size=EVALUATION_BATCH)
    return evaluate(model, inputs.task, loader, label="Testing")["top1"]


def trained(subject: Subject, budget: str, seed: int, plan: str) -> float:
    """Accuracy after fine-tuning with this seed."""
    recipe = subject.recipe(budget, seed)
    inputs = open_inputs(recipe)
    model = cut(inputs.model, Plan.from_json(plan))
    recalibrate(recipe, inputs, model)
    assert recipe.finetune is not None
    torch.manual_seed(seed)
    settings = train_settings(recipe.finetune, recipe)
    fit(model, inputs.task, inputs.data, settings, teacher=inputs.model.eval(), seed=seed)
    return top1(inputs, model)


def add_network(one: dict[str, Any], subject: Subject) -> Any:
    """Do what is missing of one network, and give back after every part."""
    by_macs = f"budget: {{macs: {subject.options.macs}}}, round_to: 8"
    recipe, inputs, plain = subject.pruned(by_macs)
    if "speedup" not in one:
        one["speedup"] = 1 / times(recipe, inputs, {BY_MACS: plain.model})[BY_MACS]["time"]
        yield
    by_time = f"budget: {{speedup: {one['speedup']}}}"
    if BY_TIME not in one:
        recipe, inputs, timed = subject.pruned(by_time)
        models = {BY_MACS: plain.model, BY_TIME: timed.model}
        measured = times(recipe, inputs, models)
        for name, pruned in ((BY_MACS, plain), (BY_TIME, timed)):
            one[name] = {**measured[name], **figures(pruned), "cut": top1(inputs, pruned.model)}
        one["original"] = top1(inputs, inputs.model)
        yield
    for seed in subject.options.seeds:
        for name, budget in ((BY_MACS, by_macs), (BY_TIME, by_time)):
            found = one[name].setdefault("trained", {})
            if str(seed) not in found:
                found[str(seed)] = trained(subject, budget, seed, one[name]["plan"])
                yield


def row(network: str, name: str, one: dict[str, Any]) -> str:
    """A line of the table."""
    accuracies = ", ".join(f"{value:.2f}" for value in one.get("trained", {}).values())
    return (
        f"| {network} | {name} | {one['time']:.3f} [{one['low']:.3f}, {one['high']:.3f}] | "
        f"{one['macs']:.3f} | {one['importance']:.3f} | {one['cut']:.2f} | {accuracies} |"
    )


def main() -> None:
    """Do what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--networks", nargs="+", default=["resnet20", "resnet56"])
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--output", type=Path, default=Path("latency_accuracy.json"))
    options = parser.parse_args()
    found = json.loads(options.output.read_text()) if options.output.exists() else {}
    for network in options.networks:
        one = found.setdefault(network, {})
        for _ in add_network(one, Subject(network, options)):
            options.output.write_text(json.dumps(found, indent=1) + "\n")
    print("| network | widths by | time | MACs | importance | top-1 after the cut | trained |")
    print("|---|---|---|---|---|---|---|")
    for network, one in found.items():
        print(f"| {network} | original, {one['original']:.2f} | 1 | 1 | 1 | | |")
        for name in (BY_MACS, BY_TIME):
            print(row(network, name, one[name]))


if __name__ == "__main__":
    main()
