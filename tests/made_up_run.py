"""A run that never happened: its metrics, and what its folder would hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from tiny_onnx import save

from prune2deploy.report.html.contents import (
    Input,
    LayerPair,
    RunContents,
    SearchFront,
    SearchPoint,
    TimedLayer,
)
from prune2deploy.report.metrics import (
    FileRecord,
    FrozenChannels,
    GateResult,
    GroupChoice,
    LatencyFailure,
    LayerWeights,
    Metrics,
    NetworkFigures,
    ParityFigures,
    PrecisionFigures,
    Pruning,
    Stage,
)

PARITY = ParityFigures(
    max_abs_difference=1e-6, max_rel_difference=1e-7, agreement=1.0, samples=1000
)


def latency(name: str, median: float, sha256: str = "0" * 64) -> dict[str, Any]:
    interval = [median * 0.99, median * 1.01]
    percentiles = {f"p{n}_ms": median * (1 + n / 400) for n in (90, 95)}
    return {
        "name": name,
        "path": f"{name}.onnx",
        "batch": 1,
        "samples": 400,
        "median_ms": median,
        "median_ci95_ms": interval,
        **percentiles,
        **{f"p{n}_ci95_ms": [median * 1.1, median * 1.3] for n in (90, 95)},
        "p99_ms": None,
        "p99_ci95_ms": None,
        "mean_ms": median,
        "std_ms": median / 10,
        "model_memory_mb": None,
        "sha256": sha256,
    }


def device(
    name: str = "local", ratio: float = 1.6, tainted: tuple[str, ...] = (), **medians: float
) -> dict[str, Any]:
    """What metrics.json says of a device; medians: of further models, in ms."""
    others = {"pruned": 2.0 / ratio, **{key.replace("_", " "): ms for key, ms in medians.items()}}
    return {
        "device": name,
        "tainted": list(tainted),
        "attempts": 1,
        "options": {"threads": 1},
        "latencies": [latency("original", 2.0), *(latency(k, v) for k, v in others.items())],
        "speedups": [
            {
                "baseline": "original",
                "other": other,
                "ratio": 2.0 / ms,
                "low": 2.0 / ms - 0.05,
                "high": 2.0 / ms + 0.05,
                "blocks": 30,
            }
            for other, ms in others.items()
        ],
        "setup": {
            "cpus": [1],
            "versions": {"python": "3.11", "onnxruntime": "1.20"},
            "machine": {"cpu_model": "A Processor", "memory_bytes": 8_000_000_000},
            "state": {"start": {"load_average": [0.1, 0.2, 0.3]}, "warm": None, "end": {}},
        },
    }


def metrics(**changes: Any) -> Metrics:
    """A finished run in which nothing that may be left out is there."""
    figures = {"onnx_bytes": 1_000_000, "unfolded_batch_norms": 0, "parity": PARITY}
    before = NetworkFigures(metrics={"top1": 90.0}, params=200_000, macs=4_000_000, **figures)
    after = NetworkFigures(
        metrics={"top1": 88.0}, params=100_000, macs=2_000_000, **{**figures, "onnx_bytes": 400_000}
    )
    plain: dict[str, Any] = {
        "name": "made-up",
        "created": "2026-01-02T03:04:05+00:00",
        "versions": {"prune2deploy": "0.1.0"},
        "machine": {"cpu": "A Processor"},
        "seed": 0,
        "model": {"source": "digits:convnet"},
        "data": {"source": "digits", "images": {"train": 2000, "test": 1000}},
        "metric": "top1",
        "higher_is_better": True,
        "stages": [
            Stage(stage=name, metrics={"top1": value})
            for name, value in (("original", 90.0), ("cut", 50.0), ("finetuned", 88.0))
        ],
        "before": before,
        "after": after,
        "pruning": Pruning(
            method="l1",
            options={},
            budget={"macs": 0.5},
            kept_share={"macs": 0.5, "params": 0.5},
            groups=[GroupChoice(group="conv1", channels=64, kept=40)],
            frozen=[],
            unknown_ops={},
            notes=[],
        ),
        "latency": [],
        "gates": [],
        "seconds": {"prune": 1.0},
        "files": {},
    }
    return Metrics.model_validate({**plain, **changes})


def full_metrics(name: str = "whole", **changes: Any) -> Metrics:
    """A run with everything, and `name` wherever a model or a recipe puts a text of its own."""
    pruning = metrics().pruning.model_copy(
        update={
            "method": name,
            "groups": [GroupChoice(group=f"{name}{n}", channels=64, kept=40 - n) for n in range(5)],
            "frozen": [
                FrozenChannels(layer=name, channels=10, reason=f"reaches {name}"),
                FrozenChannels(layer="head", channels=3, reason=f"reaches {name}"),
            ],
            "unknown_ops": {name: 2},
            "notes": [f"A note on {name}."],
        }
    )
    int8 = PrecisionFigures(
        precision="int8",
        file="pruned.int8.onnx",
        metrics={"top1": 87.5},
        onnx_bytes=150_000,
        layers={"fp32": 1, "int8": 4},
        kept={name: f"loses too much: {name}"},
        max_rel_difference=0.02,
        agreement=0.98,
    )
    found = {
        "name": name,
        "precisions": [int8],
        "gated_precision": "int8",
        "pruning": pruning,
        "latency": [device(pruned_int8=0.8), device("pi5", 1.3, (f"hot {name}",), pruned_int8=1.9)],
        "latency_failures": [LatencyFailure(device="orin", message=f"no answer from {name}")],
        "gates": [
            GateResult(name="max_accuracy_drop", held=True, found=2.5, limit=3.0),
            GateResult(name="min_speedup", held=False, found=1.0, limit=2.0, note=name),
        ],
        "model": {"source": name, "checkpoint": name},
        "data": {"source": name, "images": {"test": 1000}, "mean": [0.5], "std": [0.2]},
        "machine": {"cpu": name, "features": [name], "memory_bytes": 8e9},
        "files": {name: FileRecord(sha256="ab" * 32, bytes=12)},
    }
    return metrics(**{**found, **changes})


def full_run(name: str = "whole") -> RunContents:
    """The same with everything that a folder may hold."""
    found = full_metrics(name)
    rng = np.random.default_rng(0)
    samples = {
        one["device"]: {
            model["name"]: list(rng.gamma(9, model["median_ms"] / 9, 400))
            for model in one["latencies"]
        }
        for one in found.latency
    }
    point = SearchPoint(88.0, 2e6, name)
    return RunContents(
        folder=name,
        metrics=found,
        recipe=f"name: {name}\n",
        samples=samples,
        measured={"local": "2026-01-02T03:04:05+00:00"},
        layers=(
            LayerPair(name, "Conv", (2_000_000, 900_000), (1000, 500)),
            LayerPair("gone", "Gemm", (500, None), (100, None)),
        ),
        layer_times={"local": (TimedLayer(name, "Conv", (1.5, 0.75)),)},
        search=SearchFront(
            axis=f"MACs on {name}",
            metric="top1",
            front=(SearchPoint(80.0, 1e6), point),
            tried=(point, SearchPoint(70.0, 3e6)),
            original=SearchPoint(90.0, 4e6),
            judged=f"Judged on {name}.",
        ),
        inputs=(Input(name, "float32", (1, 3, 8, 8)),),
        absent=(f"{name} is not there.",),
    )


def weight_run() -> RunContents:
    """A run that zeroed single weights."""
    found = metrics()
    layers = [LayerWeights(layer="conv1.weight", weights=1000, kept=200)]
    pruning = found.pruning.model_copy(
        update={"groups": [], "weights": layers, "budget": {"weights": 0.2}}
    )
    return RunContents(folder="zeros", metrics=found.model_copy(update={"pruning": pruning}))


def write_networks(folder: Path) -> None:
    """original.onnx and pruned.onnx: two 3×3 convolutions, with 16 or 8 channels between."""
    for name, width in (("original", 16), ("pruned", 8)):
        weights = [
            numpy_helper.from_array(np.ones((width, 3, 3, 3), np.float32), "a.weight"),
            numpy_helper.from_array(np.ones((8, width, 3, 3), np.float32), "b.weight"),
        ]
        nodes = [
            helper.make_node("Conv", ["x", "a.weight"], ["h"]),
            helper.make_node("Conv", ["h", "b.weight"], ["y"]),
        ]
        save(folder / f"{name}.onnx", nodes, [1, 3, 16, 16], weights, TensorProto.FLOAT)


def write_run(folder: Path, found: Metrics | None = None) -> Path:
    """The folder of a finished run, with its ONNX files and recipe, and no samples."""
    folder.mkdir(parents=True, exist_ok=True)
    write_networks(folder)
    (folder / "metrics.json").write_text((found or metrics()).model_dump_json())
    (folder / "recipe.yaml").write_text("name: made-up\n")
    return folder


def write_samples(folder: Path, of: dict[str, Any], **changes: Any) -> Path:
    """latency/DEVICE.json of a device as `device` gives it."""
    names = [one["name"] for one in of["latencies"]]
    turns = [
        {"block": block, "model": place, "samples_ns": [int(one["median_ms"] * 1e6)] * 5}
        for block in range(10)
        for place, one in enumerate(of["latencies"])
    ]
    facts = {"inputs": [{"name": "x", "dtype": "float32", "shape": [1, 3, 16, 16]}]}
    record = {
        "measured": "2026-01-02T03:04:05+00:00",
        "models": [{"name": one["name"], "sha256": one["sha256"]} for one in of["latencies"]],
        "answer": {"models": [facts] * len(names), "turns": turns},
        **changes,
    }
    path = folder / "latency" / f"{of['device']}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record))
    return path
