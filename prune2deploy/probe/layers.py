"""Where a model's time goes: ONNX Runtime's own profile, reduced to a few figures per node.

Each model has a child process of its own. That loads it twice: first as it is, to time plain runs
and to save the optimised graph, whose tensors tell what a node was made of; then with the profiler
on, whose stamps slow every node a little. Both numbers of runs are the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any, Iterable

from .alone import alone
from .job import Refusal
from .lock import only_one
from .machine import machine
from .measuring import median, timed, warm_up
from .onnx_runtime import CPU, OnnxRuntime
from .placing import place_threads
from .saved_graph import read_nodes
from .state import state

# The runtime keeps all events in memory and writes some 700 bytes of text for each.
MAX_EVENTS = 60_000
_KERNEL = "_kernel_time"
# A protobuf message ends at 2 GiB; larger models cannot be saved by the runtime.
_MAX_SAVED_BYTES = 2**31 - 2**26


def layers(job: dict[str, Any]) -> dict[str, Any]:
    """Profile all models of the job, one after the other, alone on this machine."""
    if job["runtime"] != "onnxruntime" or job["provider"] != CPU:
        what = job["runtime"] if job["runtime"] != "onnxruntime" else job["provider"]
        raise Refusal(
            "not_as_asked",
            f"times per layer come from ONNX Runtime on the CPU, this device runs models with "
            f"{what}. Profile on a device with runtime: onnxruntime",
        )
    root = Path(job["sysroot"])
    with only_one(job):
        before = state(root)
        models = []
        for index, model in enumerate(job["models"]):
            _tell(model["name"], index / len(job["models"]))
            # Here, so that it is removed whatever happens to the child.
            with tempfile.TemporaryDirectory(prefix="prune2deploy-layers-") as folder:
                models.append({**model, **alone(model, {**job, "folder": folder})})
        _tell(None, 1.0)
        versions = {"python": platform.python_version(), **OnnxRuntime.versions()}
        return {
            "versions": versions,
            "machine": machine(root),
            "state": {"start": before, "end": state(root)},
            "models": models,
        }


def run_layers(job: dict[str, Any]) -> dict[str, Any]:
    """What the child does for its one model; times in µs, unless named otherwise."""
    model = job["models"][0]
    cpus = place_threads(job)
    OnnxRuntime.versions()  # refuses where there is no runtime
    plain, graph = _open_and_save(model, job, cpus)
    plain.run()
    setup = plain.check()
    warm = warm_up(plain.run, job)
    wanted_s = job["min_time_s"] * 1e9 / warm["window_medians_ns"][-1]
    per_run = (len(graph) if graph else 1000) + 2
    fitting = MAX_EVENTS // per_run - job["warmup_runs"]
    runs = max(1, min(max(job["runs"], round(wanted_s)), fitting))
    plain_ns = timed(plain.run, runs)
    inputs = plain.inputs
    del plain  # two copies of the weights would not fit everywhere
    nodes, run_us = _profiled(model, job, cpus, runs)
    executed = [_node_facts(samples, run_us) for samples in nodes.values()]
    return {
        "cpus": cpus,
        "setup": setup,
        "warmup": warm,
        "inputs": inputs,
        "runs": len(run_us),
        "plain_run_us": _quartiles([ns / 1000 for ns in plain_ns]),
        "profiled_run_us": _quartiles(run_us),
        "outside_nodes_us": _quartiles(_outside(nodes.values(), run_us)),
        "nodes": _with_tensors(executed, graph),
    }


class _Adjusted(OnnxRuntime):
    """A session with further options: `settings` are attributes of SessionOptions."""

    def __init__(
        self,
        model: dict[str, str],
        job: dict[str, Any],
        cpus: list[int] | None,
        settings: dict[str, Any],
    ) -> None:
        super().__init__(model, job, cpus)
        self.settings = settings

    def adjust(self, options: Any) -> None:
        for name, value in self.settings.items():
            setattr(options, name, value)


def _open_and_save(
    model: dict[str, str], job: dict[str, Any], cpus: list[int] | None
) -> tuple[OnnxRuntime, list[dict[str, Any]] | None]:
    """Open the model; also return the nodes of its optimised graph, None where it is not saved."""
    path = os.path.join(job["folder"], "optimized.onnx")
    if os.path.getsize(model["path"]) < _MAX_SAVED_BYTES:
        # Saving warns that the file is for this machine; only errors are of interest here.
        settings = {"optimized_model_filepath": path, "log_severity_level": 3}
        saving = _Adjusted(model, job, cpus, settings)
        # A full disk, or weights in a second file: what else is wrong, the next attempt says.
        with contextlib.suppress(Refusal, OSError, ValueError):
            saving.open()
            nodes = read_nodes(path)
            os.remove(path)
            return saving, nodes
    session = OnnxRuntime(model, job, cpus)
    session.open()
    return session, None


def _profiled(
    model: dict[str, str], job: dict[str, Any], cpus: list[int] | None, runs: int
) -> tuple[dict[tuple[str, str], dict[str, Any]], list[float]]:
    """Run with the profiler on; return the nodes with their samples, and the runs' durations."""
    prefix = os.path.join(job["folder"], "profile")
    settings = {"enable_profiling": True, "profile_file_prefix": prefix}
    session = _Adjusted(model, job, cpus, settings)
    session.open()
    timed(session.run, job["warmup_runs"] + runs)
    path = session.session.end_profiling()
    with open(path) as stream:
        events = json.load(stream)
    os.remove(path)
    found = by_run(events)[job["warmup_runs"] :]
    if len(found) != runs:
        raise Refusal(
            "internal", f"the profile has {len(found)} runs, there were {runs}", model["name"]
        )
    return collect(found), [run["dur"] for run, _ in found]


def by_run(events: Iterable[dict[str, Any]]) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Return (the run's event, its nodes' events in order of execution) for each run.

    The nodes of a branch or a loop run inside their outer node's time, and are left out.
    """
    runs = []
    nodes: list[dict[str, Any]] = []
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
            nodes.append(event)
        elif event.get("name") == "model_run":  # written when it ends, after its nodes
            outer: list[dict[str, Any]] = []
            for node in sorted(nodes, key=lambda one: (one["ts"], -one["dur"])):
                if not outer or node["ts"] >= outer[-1]["ts"] + outer[-1]["dur"]:
                    outer.append(node)
            runs.append((event, outer))
            nodes = []
    return runs


def collect(
    runs: list[tuple[dict[str, Any], list[dict[str, Any]]]],
) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the nodes by name and index, each with a duration for each run that it was in."""
    nodes: dict[tuple[str, str], dict[str, Any]] = {}
    for number, (_, events) in enumerate(runs):
        for event in events:
            args = event["args"]
            key = event["name"], str(args.get("node_index"))
            if key not in nodes:
                nodes[key] = {
                    "name": event["name"][: -len(_KERNEL)],
                    "op": args["op_name"],
                    "index": int(args["node_index"]) if "node_index" in args else None,
                    "provider": args.get("provider"),
                    "input_shapes": _shapes(args.get("input_type_shape")),
                    "output_shapes": _shapes(args.get("output_type_shape")),
                    "by_run": {},
                }
            taken = nodes[key]["by_run"]
            taken[number] = taken.get(number, 0) + event["dur"]
    return nodes


def _shapes(listed: Any) -> list[dict[str, Any]] | None:
    """[{"float": [1, 3, 8, 8]}] as [{"dtype": "float", "shape": [1, 3, 8, 8]}]."""
    if not isinstance(listed, list):
        return None
    return [{"dtype": kind, "shape": dims} for one in listed for kind, dims in one.items()]


def _node_facts(node: dict[str, Any], run_us: list[float]) -> dict[str, Any]:
    # A node that a run did not reach took no time in it.
    samples = [node["by_run"].get(number, 0) for number in range(len(run_us))]
    facts = {key: value for key, value in node.items() if key != "by_run"}
    return {**facts, **of_whole_us(samples)}


def of_whole_us(samples: list[float]) -> dict[str, float]:
    """The quartiles of times that were cut to whole µs: where in its µs each lies, by how many do.

    Of layers that take a few µs the plain median would be off by a tenth and more.
    """
    found = {}
    for (name, plain), share in zip(_quartiles(samples).items(), (0.25, 0.5, 0.75)):
        equal = samples.count(plain)
        within = (len(samples) * share - sum(one < plain for one in samples)) / max(equal, 1)
        found[name] = round(plain - 0.5 + min(max(within, 0.0), 1.0), 3) if equal > 1 else plain
    return found


def _outside(nodes: Iterable[dict[str, Any]], run_us: list[float]) -> list[float]:
    inside = [0.0] * len(run_us)
    for node in nodes:
        for number, duration in node["by_run"].items():
            inside[number] += duration
    return [total - part for total, part in zip(run_us, inside)]


def _with_tensors(
    executed: list[dict[str, Any]], graph: list[dict[str, Any]] | None
) -> list[dict[str, Any]]:
    """Add the names of inputs and outputs: the runtime saves its nodes in the order it runs them.

    Where the operators say otherwise, or the graph is not known, they are None.
    """
    known = graph if graph and [n["op"] for n in graph] == [n["op"] for n in executed] else None
    empty = {"inputs": None, "outputs": None}
    return [
        {**node, **({**known[place], "op": node["op"]} if known else empty)}
        for place, node in enumerate(executed)
    ]


def _quartiles(samples: list[float]) -> dict[str, float]:
    ordered = sorted(samples)
    last = len(ordered) - 1
    return {
        "q1": round(ordered[last // 4], 3),
        "median": round(median(ordered), 3),
        "q3": round(ordered[last - last // 4], 3),
    }


def _tell(model: str | None, done: float) -> None:
    line = json.dumps({"stage": "layers", "model": model, "done": round(done, 4)})
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
