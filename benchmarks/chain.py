"""Everything but training, for networks at 224×224: seconds of each step and peak memory.

    python benchmarks/chain.py [MODEL ...] [--threads 2] [--output chain.json]

MODEL is a torchvision builder (default resnet50), with random weights and batch-norm
statistics. Each runs in a process of its own, so that its peak memory is its own;
imports are timed apart. The ONNX file is compared with PyTorch on random images.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def chain(name: str, threads: int) -> dict[str, Any]:
    """Run all steps on one model in this process; seconds per step, MACs kept, peak in MiB."""
    seconds: dict[str, float] = {}

    def timed(step: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        seconds[step] = round(time.perf_counter() - start, 3)
        return result

    timed("import", _import)
    import torch
    import torchvision

    import prune2deploy as p2d
    from prune2deploy.export import export_model_file

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    images = torch.randn(1, 3, 224, 224)
    graph = timed("trace", lambda: p2d.trace(model, images))
    plan = timed("score and plan", lambda: p2d.plan(graph, "l1", budget={"macs": 0.5}))
    small = timed("cut", lambda: p2d.cut(model, plan))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pruned.onnx"
        parity = timed(
            "fold, export, simplify, check",
            lambda: export_model_file(small, path, input_shape=(3, 224, 224)),
        )
        size = path.stat().st_size
    kept = graph.counts(plan)
    return {
        "model": name,
        "seconds": seconds,
        "total_s": round(sum(seconds.values()), 3),
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "macs_kept": graph.cost.macs(kept) / graph.cost.macs(graph.full),
        "onnx_bytes": size,
        "max_rel_diff": parity.max_rel_diff,
        "threads": threads,
    }


def _import() -> None:
    import prune2deploy.export
    import prune2deploy.planning.plan  # noqa: F401


def main() -> None:
    """Parse, run each model in a fresh process, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="*", default=["resnet50"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(chain(options.models[0], options.threads)))
        return
    results = []
    for name in options.models:
        command = [sys.executable, __file__, name, "--child", "--threads", str(options.threads)]
        answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        results.append(json.loads(answer.stdout.splitlines()[-1]))
        one = results[-1]
        steps = ", ".join(f"{step} {value:.2f}" for step, value in one["seconds"].items())
        print(
            f"{name}: {one['total_s']:.1f} s ({steps}), peak {one['peak_memory_mib']} MiB, "
            f"{one['macs_kept']:.1%} of the MACs, largest difference {one['max_rel_diff']:.1e}"
        )
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
