"""The channel engine alone: seconds and peak memory of trace, plan and cut at 224×224.

    python benchmarks/engine.py [MODEL ...] [--threads 2] [--repeats 5] [--output engine.json]

MODEL is a torchvision builder (default resnet50), with random weights; the plan is L1 at half
the MACs. Each repeat runs in a process of its own: the imports (timed apart) and building the
model come first, so the figures are those of a user's first call, not of a warmed-up one. The
table shows the fastest repeat: other programs on the machine only ever make a repeat slower.
Threads that share a busy core wait for one another, and small layers then take ten times as long:
with two threads both cores must be free.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

STEPS = ("trace", "plan", "cut")
TARGET_S = 2.0
"""For trace, plan and cut of resnet50 together, on two cores."""


def memory_mib(kind: str) -> float:
    """Resident memory of this process: "VmRSS" now, "VmHWM" at most since the last reset."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"{kind}:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1024


def reset_peak() -> None:
    """Let VmHWM start again from what is in use now."""
    Path("/proc/self/clear_refs").write_text("5")


def measure(name: str, threads: int) -> dict[str, Any]:
    """Trace, plan and cut one model in this process."""
    figures: dict[str, dict[str, float]] = {}

    def timed(step: str, work: Callable[[], Any]) -> Any:
        reset_peak()
        before = memory_mib("VmRSS")
        clock, cpu = time.perf_counter(), time.process_time()
        result = work()
        figures[step] = {
            "seconds": time.perf_counter() - clock,
            "cpu_seconds": time.process_time() - cpu,
            "peak_mib": memory_mib("VmHWM"),
            "added_mib": memory_mib("VmHWM") - before,
        }
        return result

    start = time.perf_counter()
    import torch
    import torchvision

    import prune2deploy.channels as p2d
    from prune2deploy.pipeline.planning import plan

    import_s = time.perf_counter() - start
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    images = torch.randn(1, 3, 224, 224)
    graph = timed("trace", lambda: p2d.trace(model, images))
    planned = timed("plan", lambda: plan(graph, "l1", budget={"macs": 0.5}))
    timed("cut", lambda: p2d.cut(model, planned))
    kept = graph.counts(planned)
    return {
        "model": name,
        "threads": threads,
        "import_s": import_s,
        "total_s": sum(figures[step]["seconds"] for step in STEPS),
        "steps": figures,
        "weights_mib": sum(p.numel() for p in model.parameters()) * 4 / 2**20,
        "groups": len(graph.groups),
        "macs_kept": graph.cost.macs(kept) / graph.cost.macs(graph.full),
    }


def in_own_process(name: str, threads: int) -> dict[str, Any]:
    """`measure` in a fresh interpreter, so that nothing is warm and the memory is its own."""
    command = [sys.executable, __file__, name, "--child", "--threads", str(threads)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return result


def table_of(results: list[dict[str, Any]]) -> Table:
    """The steps of each model, in the fastest of its repeats."""
    table = Table(title=f"Trace, plan and cut at 224×224, {results[0]['threads']} thread(s)")
    table.add_column("model")
    table.add_column("step")
    for heading in ("seconds", "CPU seconds", "memory added, MiB", "peak, MiB"):
        table.add_column(heading, justify="right")
    for name in dict.fromkeys(r["model"] for r in results):
        best = fastest(results, name)
        for step in STEPS:
            found = best["steps"][step]
            seconds = [f"{found[key]:.2f}" for key in ("seconds", "cpu_seconds")]
            memory = [f"{found[key]:.0f}" for key in ("added_mib", "peak_mib")]
            table.add_row(name, step, *seconds, *memory)
        cpu = sum(best["steps"][step]["cpu_seconds"] for step in STEPS)
        peak = max(best["steps"][step]["peak_mib"] for step in STEPS)
        table.add_row(
            name,
            "together",
            f"{best['total_s']:.2f}",
            f"{cpu:.2f}",
            "",
            f"{peak:.0f}",
            end_section=True,
        )
    return table


def fastest(results: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """The repeat of this model that took the least time."""
    return min((r for r in results if r["model"] == name), key=lambda r: float(r["total_s"]))


def main() -> None:
    """Parse, run each model in fresh processes, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="*", default=["resnet50"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="write every repeat's figures as JSON")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.models[0], options.threads)))
        return
    results = [
        in_own_process(name, options.threads)
        for name in options.models
        for _ in range(options.repeats)
    ]
    console = Console()
    console.print(table_of(results))
    for name in dict.fromkeys(options.models):
        best = fastest(results, name)
        console.print(
            f"{name}: imports took {best['import_s']:.1f} s before that; its weights are "
            f"{best['weights_mib']:.0f} MiB."
        )
        if name == "resnet50":
            verdict = "met" if best["total_s"] <= TARGET_S else "MISSED"
            console.print(f"Target for resnet50, {TARGET_S:.0f} s: {verdict}.")
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
