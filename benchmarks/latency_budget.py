"""What a budget of time brings over a budget of MACs, on this machine.

    python benchmarks/latency_budget.py [MODEL ...] [--budgets 0.75 0.5 0.33] [--threads 1]
        [--min-time 3] [--output latency_budget.json]

For each torchvision model (random weights, L1 scores, 224x224): the widths that fit into a share
of the original's time, measured; and, at the same share of MACs as the result for half the time,
the measured time of plain plans with widths as they fall and rounded to 8 and to 16. Importance is
the share of the summed scores that is kept, the same scores for all plans.

What is in the JSON already is not done again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torchvision
from rich.console import Console
from rich.table import Table

from prune2deploy.budget.latency import value_of
from prune2deploy.channels import Graph, cut, trace
from prune2deploy.devices import load_devices
from prune2deploy.errors import Prune2DeployError
from prune2deploy.export import export_model_file
from prune2deploy.latency import ProfileOptions, profile
from prune2deploy.methods import Context
from prune2deploy.pipeline.planning import channel_scores, make_method, plan
from prune2deploy.pipeline.timed_budget import Goal, plan_for_time

MODELS = (
    "resnet18",
    "mobilenet_v2",
    "resnet50",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "densenet121",
    "regnet_y_400mf",
)
ROUNDINGS = (1, 8, 16)


def export(model: torch.nn.Module, path: Path) -> None:
    export_model_file(model, path, input_shape=(3, 224, 224))


def shares(graph: Graph, counts: Any) -> float:
    return graph.cost.macs(counts) / graph.cost.macs(graph.full)


def measured(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures of one model."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name).eval()
    graph = trace(model, torch.randn(1, 3, 224, 224))
    method = make_method("l1", {})
    scores = channel_scores(Context(graph), method, None)
    options = ProfileOptions(threads=arguments.threads, min_time_s=arguments.min_time)
    devices = load_devices()
    found: dict[str, Any] = {"timed": [], "plain": []}
    for share in arguments.budgets:
        start = time.perf_counter()
        try:
            done = plan_for_time(
                graph,
                scores,
                [Goal("local", speedup=1 / share)],
                devices=devices,
                options=options,
                export=export,
            )
        except Prune2DeployError as err:
            found["timed"].append({"share": share, "error": str(err)})
            continue
        attempts = [rounds[0] for rounds in done.attempts]
        found["timed"].append(
            {
                "share": share,
                "macs": shares(graph, graph.counts(done.plan)),
                "importance": done.importance,
                "used": [one.used for one in attempts],
                "time": share * done.chosen[0].used,
                "errors": [one.predicted_ms / one.measured_ms - 1 for one in attempts],
                "seconds": time.perf_counter() - start,
            }
        )
    half = next((one for one in found["timed"] if one["share"] == 0.5 and "macs" in one), None)
    macs = half["macs"] if half else 0.5
    with tempfile.TemporaryDirectory() as folder:
        files = {"original": Path(folder, "original.onnx")}
        export(model, files["original"])
        kept = {}
        for rounding in ROUNDINGS:
            made = plan(graph, "l1", budget={"macs": macs}, round_to=rounding)
            key = f"round_to {rounding}"
            files[key] = Path(folder, f"{rounding}.onnx")
            export(cut(model, made), files[key])
            counts = graph.counts(made)
            kept[key] = shares(graph, counts), value_of(scores, counts)
        result = profile(files, options=options)
    for one in result.speedups:
        macs_kept, importance = kept[one.other]
        found["plain"].append(
            {
                "name": one.other,
                "time": 1 / one.ratio,
                "low": 1 / one.high,
                "high": 1 / one.low,
                "macs": macs_kept,
                "importance": importance,
            }
        )
    found["tainted"] = list(result.tainted)
    return found


def table_of(found: dict[str, Any]) -> Table:
    table = Table(title="Times and MACs as shares of the original's")
    for heading in ("model", "plan", "time", "MACs", "importance", "rounds", "first error", "last"):
        table.add_column(heading, justify="right")
    for name, one in found.items():
        for timed in one["timed"]:
            if "error" in timed:
                table.add_row(name, f"{timed['share']:.0%} of the time", timed["error"][:40])
                continue
            table.add_row(
                name,
                f"{timed['share']:.0%} of the time",
                f"{timed['time']:.3f}",
                f"{timed['macs']:.3f}",
                f"{timed['importance']:.3f}",
                str(len(timed["used"])),
                f"{timed['errors'][0]:+.1%}",
                f"{timed['errors'][-1]:+.1%}",
            )
        for plain in one["plain"]:
            table.add_row(
                name,
                plain["name"],
                f"{plain['time']:.3f}",
                f"{plain['macs']:.3f}",
                f"{plain['importance']:.3f}",
            )
    return table


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("models", nargs="*", default=[*MODELS])
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.75, 0.5, 0.33])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--min-time", type=float, default=3.0)
    parser.add_argument("--output", type=Path, default=Path("latency_budget.json"))
    arguments = parser.parse_args()
    console = Console()
    found: dict[str, Any] = {}
    if arguments.output.exists():
        found = json.loads(arguments.output.read_text())
    for name in arguments.models:
        if name not in found:
            found[name] = measured(name, arguments)
            arguments.output.write_text(json.dumps(found, indent=1))
            console.print(table_of({name: found[name]}))
    console.print(table_of(found))


if __name__ == "__main__":
    main()
