"""The channel engine beside Torch-Pruning: what each can prune, whether it is right, how long.

    python benchmarks/engine.py [MODEL ...] [--family NAME] [--threads 1] [--repeats 1] [--export]
                                [--output engine.json] [--resume] [--alone] [--scaling]

Each model is built with random weights and pruned by both tools, each in a fresh process of its
own: L1 norms, half the channels of each group, widths in multiples of 8. The clock runs over
trace, plan and cut of ours, and over the pruner's construction and step() of the peer; imports and
building the model come before. Then the pruned models run, do one step of training, and are
compared with the original in which what they lack is zero. A failure of any kind is a row.

MODEL is a key such as torchvision:resnet50, or the part after the colon; the steps of ours are
then shown one by one. A family is one of torchvision (default), segmentation, detection. Repeats
take turns; the table shows the fastest of each tool, as other programs on the machine only ever
make one slower. --alone measures our engine only and needs no peer; --scaling does so for families
of growing models and fits how the time grows. With --resume the models in the JSON are kept.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import platform
import sys
import time
from datetime import date
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coverage import chosen_models, save
from engine_table import (
    SCALING,
    comparison_table,
    outcome,
    scaling_lines,
    scaling_table,
    steps_table,
    total_lines,
)
from rich.console import Console

if TYPE_CHECKING:
    from engine_measure import Job

FAMILIES = ("torchvision", "segmentation", "detection")
PRELOAD = ("torchvision", "prune2deploy.channels", "prune2deploy.export", "engine_measure")
PACKAGES = ("prune2deploy", "torch", "torchvision", "torch-pruning")
SCALING_REPEATS = 5


def in_own_process(job: Job, timeout_s: float) -> dict[str, Any]:
    """What one process found out; it comes in time whatever the process does."""
    context = multiprocessing.get_context("forkserver")
    peer = ["engine_peer"] if importlib.util.find_spec("torch_pruning") else []
    context.set_forkserver_preload([*PRELOAD, *peer])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(job, theirs), daemon=True)
    start = time.monotonic()
    process.start()
    theirs.close()
    found: dict[str, Any] = {}
    try:
        while "ended" not in found:
            if not ours.poll(max(0.0, start + timeout_s - time.monotonic())):
                found["error"] = _error("Timeout", f"not finished after {timeout_s:.0f} s", found)
                break
            name, value = ours.recv()
            found[name] = value
    except (EOFError, ConnectionResetError):
        process.join(10)
        found["error"] = _error("Died", f"ended with exit code {process.exitcode}", found)
    finally:
        if found.pop("ended", False):
            process.join(10)
        if process.is_alive():
            process.kill()
        process.join()
        ours.close()
    return found


def _child(job: Job, parent: Connection) -> None:
    from engine_measure import measure  # torch takes seconds that --help should not

    measure(job, parent)


def _error(kind: str, what: str, found: dict[str, Any]) -> dict[str, Any]:
    return {"type": kind, "message": f"{what}, in the step '{found.get('step', 'start')}'"}


def measure_model(key: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Both tools on one model, in turns; the first turn also examines the results."""
    from engine_measure import Job

    tools = ["ours"] if arguments.alone else ["ours", "peer"]
    entry: dict[str, Any] = {"model": key}
    for turn in range(arguments.repeats):
        for tool in tools:
            if turn and "timings" not in entry[tool]:
                continue  # it failed the first time
            full = not turn and not arguments.alone
            job = Job(tool, key, arguments.threads, full, arguments.export)
            found = in_own_process(job, arguments.timeout)
            timing = [found.pop("timing")] if "timing" in found else []
            if not turn:
                entry[tool] = found
                entry[tool]["timings"] = timing
            else:
                entry[tool]["timings"] += timing
    return entry


def conditions(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a reader must know about a run."""
    packages = PACKAGES[:-1] if arguments.alone else PACKAGES
    return {
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "setting": "L1, half the channels of each group, widths in multiples of 8, batch 1",
        "threads": arguments.threads,
        "repeats": arguments.repeats,
        "timeout_s": arguments.timeout,
    }


def run(arguments: argparse.Namespace, document: dict[str, Any]) -> dict[str, Any]:
    """Measure what was asked for; the JSON is written after every model."""
    keys = _keys(arguments)
    part = "scaling" if arguments.scaling else "models"
    results = {entry["model"]: entry for entry in document.get(part, [])}
    asked = [key for key in keys if arguments.models or key not in results]
    for number, key in enumerate(asked, 1):
        results[key] = measure_model(key, arguments)
        print(
            f"[{number}/{len(asked)}] {key}: {outcome(results[key])}", file=sys.stderr, flush=True
        )
        document = {**document, **conditions(arguments), part: list(results.values())}
        if arguments.output:
            save(arguments.output, document)
    # A resumed run shows all that it has, other runs what was asked for; in the models' order.
    order = {key: n for n, key in enumerate(chosen_models([], list(FAMILIES)))}
    shown = [entry for key, entry in results.items() if arguments.resume or key in keys]
    return {**document, part: sorted(shown, key=lambda entry: order[entry["model"]])}


def _keys(arguments: argparse.Namespace) -> list[str]:
    if arguments.scaling:
        return [f"torchvision:{name}" for names in SCALING.values() for name in names]
    families = arguments.family or (list(FAMILIES) if arguments.models else ["torchvision"])
    return chosen_models(arguments.models, families)


def show(document: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Print the tables to the terminal, or as plain text of 120 columns into a pipe."""
    terminal = Console()
    console = terminal if terminal.is_terminal else Console(width=120)
    if arguments.scaling:
        console.print(scaling_table(document))
        lines = scaling_lines(document)
    else:
        if not arguments.alone:
            console.print(comparison_table(document))
        if arguments.models or arguments.alone:
            console.print(steps_table(document))
        lines = [] if arguments.alone else total_lines(document)
    for line in lines:
        console.print(line, highlight=False, markup=False)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--family", action="append", choices=FAMILIES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, help=f"default 1; --scaling {SCALING_REPEATS}")
    parser.add_argument("--export", action="store_true", help="also compare ONNX files")
    parser.add_argument("--output", type=Path, metavar="FILE", help="all findings as JSON")
    parser.add_argument("--resume", action="store_true", help="keep what the JSON has")
    parser.add_argument("--timeout", type=float, default=150, help="seconds per tool and model")
    parser.add_argument("--alone", action="store_true", help="without the peer: seconds, memory")
    parser.add_argument("--scaling", action="store_true", help="how our time grows with the model")
    arguments = parser.parse_args()
    arguments.alone |= arguments.scaling
    arguments.repeats = arguments.repeats or (SCALING_REPEATS if arguments.scaling else 1)
    if arguments.scaling and (arguments.models or arguments.family):
        parser.error("--scaling has its own list of models.")
    if arguments.resume and not arguments.output:
        parser.error("--resume needs --output.")
    if arguments.output and arguments.output.is_file() and not arguments.resume:
        parser.error(f"{arguments.output} exists; --resume adds to it, or name another --output.")
    if not arguments.alone and importlib.util.find_spec("torch_pruning") is None:
        parser.error("the peer is missing: pip install 'prune2deploy[bench]', or use --alone.")
    return arguments


def main() -> None:
    """Parse, measure, print."""
    arguments = parse()
    # Read by OpenMP and MKL when they are loaded, in the server process.
    threads = str(arguments.threads)
    os.environ.update({"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads})
    known = arguments.output is not None and arguments.output.is_file()
    document = run(arguments, json.loads(arguments.output.read_text()) if known else {})
    show(document, arguments)


if __name__ == "__main__":
    main()
