"""fp32, fp16 and int8 of networks and of their pruned halves: size and latency side by side.

    python benchmarks/precisions.py [MODEL ...] [--device local] [--output precisions.json]

MODEL is a torchvision builder, with random weights and batch-norm statistics at 224×224 (for
speed and size only shapes matter). The half: L1 scores, half the MACs, widths in multiples of 8.
All six files of a model are measured in turns; speed-ups are over the whole network in fp32.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

import prune2deploy as p2d
from prune2deploy.export import export_model_file
from prune2deploy.export.precision import precision_of, to_fp16, to_int8
from prune2deploy.latency import ProfileOptions, profile

MODELS = ("resnet18", "resnet50", "mobilenet_v2")
SHAPE = (3, 224, 224)


def written(name: str, folder: Path) -> dict[str, Path]:
    """The six files of a model, by what they are; the whole one in fp32 first."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.1)
            assert module.running_var is not None
            module.running_var.uniform_(0.5, 1.5)
    graph = p2d.trace(model, torch.randn(1, *SHAPE))
    half = p2d.cut(model, p2d.plan(graph, "l1", budget={"macs": 0.5}, round_to=8))
    rng = np.random.default_rng(0)
    batches = [rng.standard_normal((1, *SHAPE), dtype=np.float32) for _ in range(8)]
    files = {}
    for what, network in (("whole", model), ("half", half)):
        files[f"{what} fp32"] = path = folder / f"{what}.onnx"
        export_model_file(network, path, input_shape=SHAPE)
        files[f"{what} fp16"] = folder / f"{what}.fp16.onnx"
        to_fp16(path, files[f"{what} fp16"], batches=batches)
        files[f"{what} int8"] = folder / f"{what}.int8.onnx"
        to_int8(path, files[f"{what} int8"], batches=batches)
    return files


def measured(name: str, device: str, min_time_s: float) -> list[dict[str, Any]]:
    """One row per file."""
    with tempfile.TemporaryDirectory() as folder:
        files = written(name, Path(folder))
        result = profile(files, device=device, options=ProfileOptions(min_time_s=min_time_s))
        rows = []
        for index, latency in enumerate(result.latencies):
            path = files[latency.name]
            faster = result.speedups[index - 1] if index else None
            layers = {kind: count.layers for kind, count in precision_of(path).items()}
            rows.append(
                {
                    "model": name,
                    "file": latency.name,
                    "bytes": path.stat().st_size,
                    "layers": layers,
                    "median_ms": latency.median_ms,
                    "median_ci95_ms": latency.median_ci95_ms,
                    "speedup": None if faster is None else faster.ratio,
                    "speedup_ci95": None if faster is None else [faster.low, faster.high],
                    "tainted": list(result.tainted),
                }
            )
    return rows


def main() -> None:
    """Parse, measure model by model, print a table, write JSON after each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--device", default="local")
    parser.add_argument("--min-time", type=float, default=10.0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    print("| model | file | MB | median, ms | faster than whole fp32 |\n|---|---|---|---|---|")
    for name in options.models:
        new = measured(name, options.device, options.min_time)
        rows += new
        for row in new:
            low, high = row["median_ci95_ms"] or (float("nan"), float("nan"))
            faster = "1"
            if row["speedup"] is not None:
                ends = row["speedup_ci95"]
                faster = f"{row['speedup']:.2f} [{ends[0]:.2f}, {ends[1]:.2f}]"
            print(
                f"| {name} | {row['file']} | {row['bytes'] / 1e6:.1f} | {row['median_ms']:.2f} "
                f"[{low:.2f}, {high:.2f}] | {faster} |",
                flush=True,
            )
        for reason in dict.fromkeys(reason for row in new for reason in row["tainted"]):
            print(f"{name} is tainted: {reason}", flush=True)
        if options.output:
            options.output.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
