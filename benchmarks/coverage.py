"""What the channel engine can do with the vision models people deploy, one after the other.

    python benchmarks/coverage.py [MODEL ...] [--family NAME] [--export] [--output coverage.json]
                                  [--resume] [--write docs/coverage.md]

Each model is built with random weights, traced, planned (L1, half the channels of each group,
any width) and cut; then the cut model runs, does one step of training, is compared with the
original in which the same channels are zeroed, and with --export goes to ONNX and back. Each has
a process of its own with one thread, and a failure of any kind is a row of the table.

MODEL is a key such as torchvision:resnet50, or the part after the colon; a family is one of
torchvision, segmentation, detection, timm; default: all models. With --resume the models in the
JSON are kept, apart from those named. --write makes the document from what the JSON then holds;
with --no-run, without measuring anything.
"""

from __future__ import annotations

import argparse
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
from typing import Any

from coverage_document import outcome, write_document

# Imported once by a server process, from which every model's process is forked.
PRELOAD = (
    "torchvision",
    "timm",
    "prune2deploy.channels",
    "prune2deploy.export",
    "prune2deploy.planning.plan",
)
PACKAGES = ("prune2deploy", "torch", "torchvision", "timm", "onnx", "onnxruntime")


def in_own_process(key: str, export: bool, timeout_s: float) -> dict[str, Any]:
    """Measure one model; whatever it does, the answer says so and comes in time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOAD))
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(key, export, theirs), daemon=True)
    start = time.monotonic()
    process.start()
    theirs.close()
    found: dict[str, Any] = {"model": key}
    try:
        while True:
            if not ours.poll(max(0.0, start + timeout_s - time.monotonic())):
                found["error"] = _ended("Timeout", f"not finished after {timeout_s:.0f} s", found)
                break
            name, value = ours.recv()
            found[name] = value
    except EOFError:
        process.join(10)
        if "peak_mib" not in found:
            found["error"] = _ended("Died", f"ended with exit code {process.exitcode}", found)
    finally:
        if process.is_alive():
            process.kill()
        process.join()
        ours.close()
    found["total_s"] = round(time.monotonic() - start, 1)
    return found


def _child(key: str, export: bool, parent: Connection) -> None:
    from coverage_measure import measure  # torch takes seconds that --help should not

    measure(key, export, parent)


def _ended(kind: str, what: str, found: dict[str, Any]) -> dict[str, Any]:
    message = f"{what}, in the step '{found.get('step', 'start')}'"
    return {"type": kind, "message": message, "traceback": []}


def chosen_models(names: list[str], families: list[str]) -> list[str]:
    """Keys of the models asked for, in the order of the document.

    Raises:
        SystemExit: a name is not in the list.
    """
    from coverage_models import all_models

    keys = [key for key in all_models() if not families or key.split(":")[0] in families]
    unknown = [n for n in names if not any(n in (key, key.split(":")[1]) for key in keys)]
    if unknown:
        raise SystemExit(f"Not in the list of coverage_models.py: {', '.join(unknown)}.")
    return [key for key in keys if not names or key in names or key.split(":")[1] in names]


def conditions(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a reader must know about a run."""
    import coverage_measure as measured

    options = [f"--family {name}" for name in arguments.family or []]
    options += ["--export"] if arguments.export else []
    return {
        "date": date.today().isoformat(),
        "command": " ".join(["python benchmarks/coverage.py", *options]),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "budget": measured.BUDGET,
        "tolerance": measured.TOLERANCE,
        "float32_tolerance": measured.FLOAT32_TOLERANCE,
    }


def save(path: Path, document: dict[str, Any]) -> None:
    """Write the JSON whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(document, indent=1) + "\n")
    os.replace(temporary, path)


def run(arguments: argparse.Namespace, known: list[dict[str, Any]]) -> None:
    """Measure what was asked for; the JSON is written after every model."""
    # Read by OpenMP and MKL when they are loaded, in the server process.
    os.environ.update({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"})
    keys = chosen_models(arguments.models, arguments.family or [])
    results = {entry["model"]: entry for entry in known}
    order = {key: number for number, key in enumerate(chosen_models([], []))}
    if not arguments.models:
        keys = [key for key in keys if key not in results]
    for number, key in enumerate(keys, 1):
        results[key] = in_own_process(key, arguments.export, arguments.timeout)
        text = f"[{number}/{len(keys)}] {key}: {outcome(results[key])}"
        print(f"{text} ({results[key]['total_s']:.0f} s)", file=sys.stderr, flush=True)
        models = sorted(results.values(), key=lambda entry: order.get(entry["model"], len(order)))
        save(arguments.output, {**conditions(arguments), "models": models})


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument(
        "--family", action="append", choices=["torchvision", "segmentation", "detection", "timm"]
    )
    parser.add_argument("--export", action="store_true", help="also compare ONNX files")
    parser.add_argument("--output", type=Path, default=Path("coverage.json"))
    parser.add_argument("--resume", action="store_true", help="keep what the JSON has")
    parser.add_argument("--no-run", action="store_true", help="only write the document")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one model")
    parser.add_argument("--write", type=Path, metavar="FILE", help="the document, as Markdown")
    arguments = parser.parse_args()
    if arguments.output.is_file() and not (arguments.resume or arguments.no_run):
        parser.error(f"{arguments.output} exists; --resume adds to it, or name another --output.")
    if not arguments.no_run:
        old = json.loads(arguments.output.read_text()) if arguments.output.is_file() else {}
        run(arguments, old.get("models", []))
    if arguments.write:
        document = json.loads(arguments.output.read_text())
        arguments.write.write_text(write_document(document), encoding="utf-8")


if __name__ == "__main__":
    main()
