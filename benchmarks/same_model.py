"""How far one model differs from itself: what the measuring alone does to a speed-up.

Each run compares a file with itself, once as prune2deploy does (interleaved blocks, paired
interval) and once with two plain loops one after the other, as is usual. A good way of measuring
has 1 in its interval in about 95 of 100 runs, and a narrow interval.

    python benchmarks/same_model.py --runs 100 --seconds 15 --output same_model.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

from prune2deploy.latency import Latency, ProfileOptions, profile
from prune2deploy.latency.statistics import CONFIDENCE

PLAIN_RUNS = 100
PLAIN_WARMUP_RUNS = 10


@dataclass(frozen=True)
class Outcome:
    """Speed-up of a model over itself, with its 95 % interval."""

    ratio: float
    low: float
    high: float

    @property
    def contains_1(self) -> bool:
        return self.low <= 1 <= self.high

    @property
    def half_width_percent(self) -> float:
        return 50 * (self.high - self.low) / self.ratio


def write_model(path: Path, channels: int = 32, size: int = 32, layers: int = 6) -> Path:
    """Write a plain stack of 3x3 convolutions, well under a millisecond on one core."""
    rng = np.random.default_rng(0)
    nodes, weights, width = [], [], 3
    for layer in range(layers):
        weight = rng.standard_normal((channels, width, 3, 3), dtype=np.float32) / (3 * width**0.5)
        weights.append(numpy_helper.from_array(weight, f"w{layer}"))
        conv = helper.make_node("Conv", [f"x{layer}", f"w{layer}"], [f"c{layer}"], pads=[1] * 4)
        nodes += [conv, helper.make_node("Relu", [f"c{layer}"], [f"x{layer + 1}"])]
        width = channels
    float32 = TensorProto.FLOAT
    source = helper.make_tensor_value_info("x0", float32, [1, 3, size, size])
    sink = helper.make_tensor_value_info(f"x{layers}", float32, [1, channels, size, size])
    graph = helper.make_graph(nodes, "stack", [source], [sink], weights)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return path


def plain_loop(model: Path, threads: int) -> np.ndarray:
    """Return the times of `PLAIN_RUNS` runs of a fresh session, in ms."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    node = session.get_inputs()[0]
    feed = {node.name: np.random.default_rng(0).standard_normal(node.shape, dtype=np.float32)}
    times = []
    for _ in range(PLAIN_WARMUP_RUNS + PLAIN_RUNS):
        start = time.perf_counter()
        session.run(None, feed)
        times.append((time.perf_counter() - start) * 1e3)
    return np.array(times[PLAIN_WARMUP_RUNS:])


def back_to_back(model: Path, threads: int, seed: int) -> tuple[Outcome, float]:
    """Compare two plain loops, with a bootstrap that takes the samples for independent.

    Also returns the median of both, in ms.
    """
    first, second = plain_loop(model, threads), plain_loop(model, threads)
    rng = np.random.default_rng(seed)
    medians = [
        np.median(rng.choice(times, (2000, len(times))), axis=1) for times in (first, second)
    ]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(medians[0] / medians[1], [tail, 1 - tail])
    outcome = Outcome(float(np.median(first) / np.median(second)), float(low), float(high))
    return outcome, float(np.median(np.concatenate([first, second])))


def interleaved(model: Path, options: ProfileOptions) -> tuple[Outcome, float, Latency]:
    """Compare as prune2deploy does; also return what one empty timed call took, in ns."""
    result = profile({"one": model, "same": model}, options=options)
    found = result.speedups[0]
    outcome = Outcome(found.ratio, found.low, found.high)
    return outcome, result.answer["timer_ns"], result.latencies[0]


def summary(outcomes: Sequence[Outcome]) -> dict[str, float]:
    widths = [one.half_width_percent for one in outcomes]
    off = [abs(one.ratio - 1) * 100 for one in outcomes]
    return {
        "runs": len(outcomes),
        "contain_1_percent": 100 * float(np.mean([one.contains_1 for one in outcomes])),
        "half_width_percent_median": float(np.median(widths)),
        "half_width_percent_worst": max(widths),
        "off_percent_median": float(np.median(off)),
        "off_percent_worst": max(off),
    }


def table_of(summaries: dict[str, dict[str, float]]) -> Table:
    table = Table(title="One model against itself (the true speed-up is 1)")
    for heading in ("", "runs", "1 in interval", "half-width", "worst", "off by", "worst"):
        table.add_column(heading, justify="right")
    for name, figures in summaries.items():
        cells = [f"{value:.2f} %" for value in list(figures.values())[1:]]
        table.add_row(name, str(figures["runs"]), *cells)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="ONNX file; default: a small stack of convs")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=15.0, help="timed, per model and run")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    console = Console()
    over_plain: list[float] = []
    outcomes: dict[str, list[Outcome]] = {"interleaved": [], "back to back": []}
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or write_model(Path(folder) / "stack.onnx")
        for run in range(arguments.runs):
            options = ProfileOptions(
                threads=arguments.threads, min_time_s=arguments.seconds, seed=run
            )
            outcome, timer_ns, latency = interleaved(model, options)
            plain, plain_ms = back_to_back(model, arguments.threads, run)
            outcomes["interleaved"].append(outcome)
            outcomes["back to back"].append(plain)
            over_plain.append(latency.median_ms / plain_ms)
            latest = {name: f"{ones[-1].ratio:.4f}" for name, ones in outcomes.items()}
            console.print(f"run {run + 1} of {arguments.runs}: {latest}")
    summaries = {name: summary(ones) for name, ones in outcomes.items()}
    console.print(table_of(summaries))
    console.print(f"The clock itself takes {timer_ns:.0f} ns per sample.")
    quartiles = np.quantile(over_plain, [0.25, 0.5, 0.75])
    console.print(
        "The probe's median over that of the plain loops: {1:.4f} [quartiles {0:.4f}, "
        "{2:.4f}]".format(*quartiles)
    )
    if arguments.output:
        details = {name: [asdict(one) for one in ones] for name, ones in outcomes.items()}
        conditions = {"seconds": arguments.seconds, "threads": arguments.threads}
        document = {**conditions, "timer_ns": timer_ns, "summary": summaries, "runs": details}
        arguments.output.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
