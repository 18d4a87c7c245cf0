"""What `engine.py` finds out about one model and one tool, in a process of its own."""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import re
import resource
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import torch
from coverage_measure import (
    FLOAT32_TOLERANCE,
    MEMORY_GIB,
    TOLERANCE,
    Say,
    describe,
    difference,
    equal,
    error_found,
    exports,
    guarded,
    in_widest_type,
    output_widths,
    outputs_of,
    runs,
    signal_of,
    timed_step,
    trains,
)
from coverage_models import Subject, build
from engine_reference import NotComparable, make_distinct, make_reference
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from prune2deploy.channels import Plan, cut, trace
from prune2deploy.errors import BudgetError
from prune2deploy.planning.plan import plan

BUDGET = {"channels": 0.5}
ROUND_TO = 8
USUAL_SIZE = 224

T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """One process: a tool ("ours" or "peer") on a model.

    full: whether the result is examined too; a repeat only takes the time.
    """

    tool: str
    model: str
    threads: int = 1
    full: bool = True
    export: bool = False


@dataclass
class Stopwatch:
    """Seconds and memory of the steps of one job."""

    say: Say
    steps: dict[str, dict[str, float]] = field(default_factory=dict)

    def __call__(self, step: str, work: Callable[[], T]) -> T:
        """Do one step."""
        self.say("step", step)
        gc.collect()
        _reset_peak()
        before = memory_mib("VmRSS")
        clock, cpu = time.perf_counter(), time.process_time()
        result = work()
        self.steps[step] = {
            "seconds": time.perf_counter() - clock,
            "cpu_seconds": time.process_time() - cpu,
            "peak_mib": memory_mib("VmHWM"),
            "added_mib": memory_mib("VmHWM") - before,
        }
        return result

    def timing(self) -> dict[str, Any]:
        """All steps together, and each."""
        steps = self.steps.values()
        return {
            "seconds": sum(step["seconds"] for step in steps),
            "cpu_seconds": sum(step["cpu_seconds"] for step in steps),
            "peak_mib": max(step["peak_mib"] for step in steps),
            "steps": self.steps,
        }


def memory_mib(kind: str) -> float:
    """Resident memory of this process: "VmRSS" now, "VmHWM" at most since the last reset."""
    found = re.search(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def _reset_peak() -> None:
    """Let VmHWM start again from what is in use now."""
    Path("/proc/self/clear_refs").write_text("5")


def measure(job: Job, parent: Connection) -> None:
    """Do a job; sends (name, value) pairs to the parent, the last of them ("ended", True)."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_GIB * 2**30,) * 2)
    torch.set_num_threads(job.threads)
    warnings.simplefilter("ignore")
    say: Say = lambda name, value: parent.send((name, value))  # noqa: E731
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            (_ours if job.tool == "ours" else _peer)(job, say)
    except Exception as err:  # a failing model is a finding
        say("error", error_found(err))
    finally:
        say("ended", True)
        parent.close()


def _prepared(key: str, say: Say) -> Subject:
    """The model, to be pruned with an image as large as it is deployed with.

    What comes out is examined on smaller images where the model takes them: that costs less,
    and the widths are the same.
    """
    with timed_step("build", say):
        subject = build(key)
        make_distinct(subject.model)
        if subject.targets is None and subject.image_size < USUAL_SIZE:
            subject.example = torch.randn(1, 3, USUAL_SIZE, USUAL_SIZE)
    return subject


def _ours(job: Job, say: Say) -> None:
    subject = _prepared(job.model, say)
    widths = output_widths(subject.model)
    say("layers", len(widths))
    clock = Stopwatch(say)
    graph = clock("trace", lambda: trace(subject.model, subject.example))
    try:
        planned = clock("plan", lambda: plan(graph, "l1", budget=BUDGET, round_to=ROUND_TO))
    except BudgetError as err:
        if graph.groups:
            raise
        say("prunes", False)
        say("note", str(err))
        return
    small = clock("cut", lambda: cut(subject.model, planned))
    say("timing", clock.timing())
    say("channels", sum(length for _, length in widths.values()))
    if job.full:
        # The layers that stay are the coverage document's to list.
        describe(graph, lambda name, value: None if name == "frozen" else say(name, value))
        _examine(job, subject, small, say, planned)


def _peer(job: Job, say: Say) -> None:
    from engine_peer import make_pruner, prunable_channels, prune

    subject = _prepared(job.model, say)
    whole = copy.deepcopy(subject.model) if job.full else subject.model
    clock = Stopwatch(say)
    pruner = clock("set up", lambda: make_pruner(job.model, subject))
    small = clock("step", lambda: prune(pruner))
    say("timing", clock.timing())
    if job.full:
        del pruner
        subject.model = whole
        _examine(job, subject, small, say)
        del small, whole, subject
        # Last, and on a new model: it takes as long as the set-up, and belongs to no step.
        with guarded("counted", say), timed_step("count", say):
            again = make_pruner(job.model, _prepared(job.model, say))
            say("cuttable_channels", prunable_channels(again))


def _examine(
    job: Job, subject: Subject, small: nn.Module, say: Say, planned: Plan | None = None
) -> None:
    """What the pruned model is worth; the same for both tools, but for our own proof of a plan."""
    params = [sum(p.numel() for p in model.parameters()) for model in (subject.model, small)]
    say("params", params)
    say("prunes", params[1] < params[0])
    with guarded("runs", say), timed_step("runs", say):
        runs(subject, small, say)
    with guarded("counted", say), timed_step("count", say):
        say("macs", [macs(model, subject.example) for model in (subject.model, small)])
    with guarded("trains", say), timed_step("trains", say):
        trains(subject, copy.deepcopy(small), say)
    if job.export:
        with guarded("onnx", say), timed_step("onnx", say):
            exports(subject, copy.deepcopy(small), say)
    if planned is not None:
        with guarded("equal", say), timed_step("equal", say):
            equal(subject, planned, say)
    # Last, as it changes the model.
    with guarded("exact", say), timed_step("exact", say):
        _exact(subject, small, say)


def macs(model: nn.Module, example: Any) -> int:
    """Multiply-adds of one call, as PyTorch's own counter finds them."""
    counter = FlopCounterMode(display=False)
    fast = torch.backends.mha.get_fastpath_enabled()
    # Attention as plain products, as the counter does not know all of its fused kernels.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), counter:
            outputs_of(model, example if isinstance(example, tuple) else (example,))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops()) // 2


def _exact(subject: Subject, small: nn.Module, say: Say) -> None:
    """Compare the pruned model with the original in which all that it lacks is zero."""
    model, batch, whole = in_widest_type(subject)
    kind = next(model.parameters()).dtype
    tolerance = TOLERANCE if kind == torch.float64 else FLOAT32_TOLERANCE
    signal = signal_of(whole)
    # Where all answers are alike, what differs between them is what a wrong channel changes.
    scale = min(1.0, signal) if signal else 1.0
    got = outputs_of(small.to(kind), batch)
    if not any(x.numel() for x in got):
        raise RuntimeError("the outputs are empty: nothing was compared")
    try:
        reference = make_reference(model, small)
        want = outputs_of(reference.model, batch)
    except Exception as err:  # no reference says nothing about the pruned model
        say("exact", None)
        say("exact_note", str(err) if isinstance(err, NotComparable) else repr(err)[:300])
        return
    found = difference(got, want) / scale
    say("norms", len(reference.norms))
    say("exact_difference", found)
    say("exact", found <= tolerance)
    if found > tolerance and reference.narrowed:
        reference.follow_scales()
        found = difference(got, outputs_of(reference.model, batch)) / scale
        say("scaled_difference", found)
        say("exact_but_for_scale", found <= tolerance)
