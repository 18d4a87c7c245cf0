"""Accuracy of fp32, fp16 and int8, with and without training for int8, on CIFAR-10.

    python benchmarks/precision_accuracy.py --root cifar10-jpeg --checkpoints DIR
        [--networks resnet20 resnet56] [--images 10000] [--epochs 5] [--output accuracy.json]

For each network the file CHECKPOINTS/NETWORK-jpeg.safetensors is taken as it is, and pruned to
half the MACs (L1, fine-tuned with distillation on the first `images` training images in a
random order). int8 for ONNX Runtime, percentile ranges from 512 training images, no layer given
back; trained for: one more epoch with its rounding. All figures are of ONNX Runtime on the whole
test set.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prune2deploy.export import export_model_file
from prune2deploy.pipeline.inputs import EVALUATION_BATCH, Inputs, open_inputs, train_settings
from prune2deploy.pipeline.precisions import lower_precisions, onnx_metrics
from prune2deploy.pipeline.pruning import prune
from prune2deploy.recipe import Recipe, parse_recipe
from prune2deploy.train import fit

RECIPE = """
seed: 1
model: {{source: "cifar:{network}", checkpoint: "{checkpoint}", input: [3, 32, 32]}}
data: {{source: imagefolder, root: "{root}", normalize: imagenet, batch_size: 128,
        augment: {{flip: true, crop_padding: 4}}}}
prune: {{method: l1, budget: {{macs: 0.5}}}}
finetune: {{epochs: {epochs}, lr: 0.02, distill: {{from: original}}}}
export:
  precision: [fp32, fp16, int8]
  int8:
    allowed_drop: null
    finetune: {{epochs: {int8_epochs}, lr: 0.0001}}
    finetune_when: always
"""


def figures(recipe: Recipe, inputs: Inputs, model: nn.Module) -> dict[str, Any]:
    """Top-1 accuracy and bytes by precision."""
    section = recipe.export.int8.finetune
    assert section is not None

    def train(network: nn.Module) -> None:
        settings = replace(train_settings(section, recipe), precision="fp32")
        fit(network, inputs.task, inputs.data, settings, seed=recipe.seed, label="For int8")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "fp32.onnx"
        export_model_file(
            model, source, input_shape=inputs.data.input_shape, outputs=inputs.task.outputs
        )
        loader = inputs.data.loader("test", batch_size=EVALUATION_BATCH)
        top1 = onnx_metrics(source, inputs, loader, "Testing (fp32)")["top1"]
        found = {"fp32": [top1, source.stat().st_size]}
        targets = {"fp16": folder / "fp16.onnx", "int8": folder / "int8.onnx"}
        half, int8 = lower_precisions(
            source, targets, recipe.export, inputs, [], recipe.seed, model, train
        )
        found["fp16"] = [half.metrics["top1"], half.onnx_bytes]
        # Where training made it worse, the file is made without it.
        before = int8.without_training or int8.metrics
        found["int8"] = [before["top1"], int8.onnx_bytes]
        found["int8 trained for"] = [int8.metrics["top1"], int8.onnx_bytes]
    return found


def main() -> None:
    """Parse, judge network by network, print a table, write JSON after each row."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--networks", nargs="+", default=["resnet20", "resnet56"])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rows = []
    print("| network | fp32 | fp16 | int8 | int8 trained for |\n|---|---|---|---|---|")
    for network in options.networks:
        text = RECIPE.format(
            network=network,
            checkpoint=(options.checkpoints / f"{network}-jpeg.safetensors").resolve(),
            root=options.root.resolve(),
            # Epochs of the whole set that are so many passes over the part.
            epochs=options.epochs * options.images / 50_000,
            int8_epochs=options.images / 50_000,
        )
        recipe = parse_recipe(text, Path("accuracy.yaml"))
        inputs = open_inputs(recipe)
        pruned = prune(recipe, inputs, inputs.model).model
        assert recipe.finetune is not None
        torch.manual_seed(recipe.seed)
        settings = train_settings(recipe.finetune, recipe)
        fit(pruned, inputs.task, inputs.data, settings, teacher=inputs.model, seed=recipe.seed)
        for name, model in ((network, inputs.model), (f"{network}, half", pruned)):
            found = figures(recipe, inputs, model)
            rows.append({"network": name, **found})
            cells = [f"{top1:.2f}, {size / 1000:,.0f} kB" for top1, size in found.values()]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
            if options.output:
                options.output.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
