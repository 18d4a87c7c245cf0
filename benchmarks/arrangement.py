"""Which arrangement of processes measures two models without one disturbing the other?

    python benchmarks/arrangement.py A.onnx B.onnx [--threads 2] [--blocks 60] [--rounds 5]

Two sessions in one process share caches, memory arenas and CPUs, and the threads of one may still
spin while the other is timed. The truth here is each model in a process of its own while no other
session exists. Beside it, all with turns in the order A B B A:

    one process      both sessions in one process, as the probe has them
    two processes    a process for each, both alive, taking turns

each with several times of untimed runs (settle) at the start of a turn. Printed is the median of
each model over its median alone, with the range over rounds, and the ratio of B to A over the true
ratio: 1.000 is undisturbed. The rounds of all arrangements are interleaved, so that a slow minute
of the machine meets them all.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

SETTLES_MS = (0.0, 2.0, 10.0, 50.0)
TURN_S = 0.05


def serve(pipe: Connection, models: list[Path], threads: int, cpus: list[int]) -> None:
    """Hold sessions and run turns of them until told to stop. A turn: (model, settle_s, calls)."""
    os.sched_setaffinity(0, {cpus[0]})
    import numpy as np
    import onnxruntime

    runs = []
    for model in models:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        if threads > 1:
            places = ";".join(str(cpu + 1) for cpu in cpus[1:])
            options.add_session_config_entry("session.intra_op_thread_affinities", places)
        session = onnxruntime.InferenceSession(str(model), options, ["CPUExecutionProvider"])
        node = session.get_inputs()[0]
        feed = {node.name: np.random.default_rng(0).standard_normal(node.shape, np.float32)}
        runs.append((session, feed))
    while (command := pipe.recv()) is not None:
        index, settle_s, calls = command
        session, feed = runs[index]
        end = time.perf_counter() + settle_s
        while time.perf_counter() < end:
            session.run(None, feed)
        samples = []
        for _ in range(calls):
            start = time.perf_counter_ns()
            session.run(None, feed)
            samples.append(time.perf_counter_ns() - start)
        pipe.send(samples)


class Worker:
    """A process with some sessions."""

    def __init__(self, models: list[Path], threads: int, cpus: list[int]) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, models, threads, cpus))
        self.process.start()

    def turn(self, index: int, settle_s: float, calls: int) -> list[int]:
        self.pipe.send((index, settle_s, calls))
        samples: list[int] = self.pipe.recv()
        return samples

    def stop(self) -> None:
        self.pipe.send(None)
        self.process.join()


def alone(models: list[Path], arguments: argparse.Namespace, cpus: list[int]) -> list[float]:
    """Median time in ns of each model while nothing else is loaded."""
    medians = []
    for model in models:
        worker = Worker([model], arguments.threads, cpus)
        calls = warm(worker, 0)
        samples: list[int] = []
        for _ in range(2 * arguments.blocks):
            samples += worker.turn(0, 0.002, calls)
        medians.append(statistics.median(samples))
        worker.stop()
    return medians


def warm(worker: Worker, index: int) -> int:
    """Warm up; returns the calls that fill a turn."""
    worker.turn(index, 0.5, 1)
    return max(3, round(TURN_S * 1e9 / statistics.median(worker.turn(index, 0.0, 20))))


def together(
    models: list[Path], arguments: argparse.Namespace, cpus: list[int], one_process: bool
) -> dict[float, list[float]]:
    """Median time in ns of each model in turns with the other, by the time to settle in ms."""
    if one_process:
        shared = Worker(models, arguments.threads, cpus)
        places = [(shared, 0), (shared, 1)]
    else:
        places = [(Worker([model], arguments.threads, cpus), 0) for model in models]
    calls = [warm(worker, index) for worker, index in places]
    found = {}
    for settle in SETTLES_MS:
        samples: list[list[int]] = [[], []]
        for _ in range(arguments.blocks):
            for model in (0, 1, 1, 0):
                worker, index = places[model]
                samples[model] += worker.turn(index, settle / 1000, calls[model])
        found[settle] = [statistics.median(of_one) for of_one in samples]
    for worker in {id(worker): worker for worker, _ in places}.values():
        worker.stop()
    return found


def table_of(rounds: list[dict[str, Any]], arguments: argparse.Namespace) -> Table:
    table = Table(title=f"{arguments.threads} thread(s); over the time alone, [range of rounds]")
    for heading in ("", "settle ms", "A", "B", "ratio B / A"):
        table.add_column(heading, justify="right")
    for name in ("one process", "two processes"):
        for settle in SETTLES_MS:
            over = [
                [found[name][settle][m] / found["alone"][m] for m in (0, 1)] for found in rounds
            ]
            columns = [[one[0] for one in over], [one[1] for one in over]]
            columns.append([b / a for a, b in over])
            cells = [f"{statistics.median(c):.3f} \\[{min(c):.3f}, {max(c):.3f}]" for c in columns]
            table.add_row(name, f"{settle:g}", *cells)
    return table


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("models", nargs=2, type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--blocks", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    cpus = sorted(os.sched_getaffinity(0))[::-1][: arguments.threads]
    if len(cpus) < arguments.threads:
        raise SystemExit(f"{arguments.threads} threads need as many CPUs, there are {len(cpus)}.")
    console = Console()
    rounds: list[dict[str, Any]] = []
    for number in range(arguments.rounds):
        found: dict[str, Any] = {"alone": alone(arguments.models, arguments, cpus)}
        for name, one_process in (("one process", True), ("two processes", False)):
            found[name] = together(arguments.models, arguments, cpus, one_process)
        rounds.append(found)
        console.print(f"round {number + 1} of {arguments.rounds}")
    console.print(table_of(rounds, arguments))
    if arguments.output:
        arguments.output.write_text(json.dumps(rounds, indent=1))


if __name__ == "__main__":
    main()
