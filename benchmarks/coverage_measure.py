"""What `coverage.py` finds out about one model, in a process that is there for it alone."""

from __future__ import annotations

import copy
import resource
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from coverage_models import Subject, build, in_float64
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prune2deploy.channels import Graph, Plan, cut, mask, trace, try_plan
from prune2deploy.errors import BudgetError, Prune2DeployError
from prune2deploy.export import export_model_file
from prune2deploy.planning.plan import plan

BUDGET = {"channels": 0.5}
TOLERANCE = 1e-5
"""Largest difference of two outputs that counts as equal, relative to the largest number."""
FLOAT32_TOLERANCE = 1e-3
"""The same for models that are compared in float32."""
LARGEST_IN_FLOAT64 = 400_000_000
"""Parameters; larger models would need more memory than machines have that this should run on."""
MEMORY_GIB = 12
"""A model that needs more fails, instead of taking the machine with it."""

Say = Callable[[str, Any], None]
"""Hands a finding to the parent at once, so that it is not lost with this process."""


def measure(key: str, export: bool, parent: Connection) -> None:
    """Find out all about one model; sends (name, value) pairs to the parent."""
    # Data and not address space: libraries reserve much of that without using it.
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_GIB * 2**30,) * 2)
    torch.set_num_threads(1)
    say: Say = lambda name, value: parent.send((name, value))  # noqa: E731
    try:
        _measure(key, export, say)
    except Exception as err:  # a failing model is a finding
        say("error", error_found(err))
    finally:
        peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        say("peak_mib", round(peak_kib / 1024))
        parent.close()


def _measure(key: str, export: bool, say: Say) -> None:
    with timed_step("build", say):
        subject = build(key)
    say("image_size", subject.image_size)
    model = subject.model
    say("parameters", sum(p.numel() for p in model.parameters()))
    with timed_step("trace", say):
        graph = trace(model, subject.example)
    describe(graph, say)
    with timed_step("plan", say):
        try:
            planned = plan(graph, "l1", budget=BUDGET, round_to=1)
        except BudgetError as err:
            if graph.groups:
                raise
            say("nothing_to_cut", str(err))
            return
    with timed_step("cut", say):
        small = cut(model, planned)
    _costs(graph, planned, small, say)
    for name, check in (("runs", runs), ("trains", trains)):
        with guarded(name, say), timed_step(name, say):
            check(subject, small, say)
    if export:
        with guarded("onnx", say), timed_step("onnx", say):
            exports(subject, cut(model, planned), say)
    del small, graph
    # Last, as it changes the model: a copy would need as much memory again.
    with guarded("equal", say), timed_step("equal", say):
        equal(subject, planned, say)


@contextmanager
def timed_step(name: str, say: Say) -> Iterator[None]:
    say("step", name)
    start = time.perf_counter()
    yield
    say(f"{name}_s", round(time.perf_counter() - start, 3))


@contextmanager
def guarded(name: str, say: Say) -> Iterator[None]:
    """A check that raises has the answer no; the others still run."""
    try:
        yield
    except Exception as err:  # whatever the model's code raises is the finding
        say(name, False)
        say(f"{name}_error", error_found(err))


def error_found(err: BaseException) -> dict[str, Any]:
    lines = "".join(traceback.format_exception(err)).strip().splitlines()
    return {"type": type(err).__name__, "message": str(err)[:1000], "traceback": lines[-12:]}


def describe(graph: Graph, say: Say) -> None:
    say("groups", len(graph.groups))
    widths = output_widths(graph.model)
    cuttable: dict[str, set[int]] = {name: set() for name in widths}
    for group in graph.groups:
        for slot in group.slots:
            if slot.tensor in widths and widths[slot.tensor][0] == slot.dim:
                cuttable[slot.tensor].update(slot.index.reshape(-1).tolist())
    say("channels", sum(length for _, length in widths.values()))
    say("cuttable_channels", sum(len(places) for places in cuttable.values()))
    say("unknown_ops", dict(graph.unknown_ops))
    reasons: dict[str, dict[str, Any]] = {}
    for frozen in graph.frozen:
        entry = reasons.setdefault(
            frozen.reason, {"reason": frozen.reason, "channels": 0, "layers": []}
        )
        entry["channels"] += frozen.size
        entry["layers"].append(frozen.name)
    say("frozen", sorted(reasons.values(), key=lambda entry: -entry["channels"]))


def output_widths(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Weight's name: (dimension of the output channels, length), of all layers that mix channels.

    Counted are convolutions, linear layers and the joint projection of nn.MultiheadAttention.
    """
    widths: dict[str, tuple[int, int]] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            leaf, dim = "weight", 1 if module.transposed else 0
        elif isinstance(module, nn.Linear):
            leaf, dim = "weight", 0
        elif isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            leaf, dim = "in_proj_weight", 0
        else:
            continue
        weight = getattr(module, leaf)
        if id(weight) not in seen:
            seen.add(id(weight))
            widths[f"{name}.{leaf}" if name else leaf] = (dim, weight.shape[dim])
    return widths


def _costs(graph: Graph, planned: Plan, small: nn.Module, say: Say) -> None:
    kept = graph.counts(planned)
    params = sum(p.numel() for p in small.parameters())
    say("macs", [graph.cost.macs(graph.full), graph.cost.macs(kept)])
    say("params", [graph.cost.params(graph.full), params])
    if params != graph.cost.params(kept):
        say("cost_error", f"{graph.cost.params(kept)} parameters expected, {params} found")
    say("notes", list(planned.notes))


def outputs_of(model: nn.Module, args: Any) -> list[Tensor]:
    with torch.no_grad():
        out = model.eval()(*args)
    return [x for x in tree_leaves(out) if isinstance(x, Tensor)]


def runs(subject: Subject, small: nn.Module, say: Say) -> None:
    outputs = outputs_of(small, subject.batch)
    say("runs", True)
    say("output_shapes", [list(x.shape) for x in outputs[:4]])


def trains(subject: Subject, small: nn.Module, say: Say) -> None:
    """One step; every parameter that has a gradient in the original must have one."""
    without = _train_step(subject, small)
    if without:
        whole = copy.deepcopy(subject.model)
        without -= _train_step(subject, whole)
    if without:
        raise RuntimeError(f"no gradient for {sorted(without)[:5]} ({len(without)} parameters)")
    say("trains", True)


def _train_step(subject: Subject, model: nn.Module) -> set[str]:
    """Return the names of parameters without a gradient.

    Raises:
        FloatingPointError: the loss or a gradient is not finite.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    loss = subject.loss(model)
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    wrong = [n for n, g in grads.items() if g is not None and not bool(g.isfinite().all())]
    if wrong or not bool(loss.isfinite()):
        raise FloatingPointError(f"loss {float(loss)}, gradients not finite: {wrong[:5]}")
    optimizer.step()
    return {name for name, grad in grads.items() if grad is None}


def equal(subject: Subject, planned: Plan, say: Say) -> None:
    """Compare cut with mask, and cut with the engine's reference, on two different samples."""
    model, batch, whole = in_widest_type(subject)
    exact = next(model.parameters()).dtype == torch.float64
    say("compared_in", "float64" if exact else "float32")
    signal = signal_of(whole)
    say("signal", signal)
    # Where all answers are alike, what differs between them is what a wrong channel changes.
    scale = min(1.0, signal) if signal else 1.0
    small = cut(model, planned)
    got = outputs_of(small, batch)
    del small
    zeroed = mask(model, planned)
    by_mask = difference(got, outputs_of(zeroed, batch)) / scale
    del zeroed
    say("mask_difference", by_mask)
    if not any(x.numel() for x in got):
        raise RuntimeError("the outputs are empty: nothing was compared")
    trial = try_plan(model, planned, batch)
    if trial.error is not None:
        raise RuntimeError(trial.error)
    by_reference = trial.difference / scale
    say("difference", by_reference)
    say("equal", min(by_mask, by_reference) <= (TOLERANCE if exact else FLOAT32_TOLERANCE))


def in_widest_type(subject: Subject) -> tuple[nn.Module, Any, list[Tensor]]:
    """The model and its batch in float64 where it runs so, and its outputs; changes the model."""
    model = subject.model
    if sum(p.numel() for p in model.parameters()) <= LARGEST_IN_FLOAT64:
        try:
            batch = in_float64(subject.batch)
            return model, batch, outputs_of(model.double(), batch)
        except RuntimeError:  # its code makes tensors of float32
            model.float()  # exact: the numbers came from float32
    return model, subject.batch, outputs_of(model, subject.batch)


def signal_of(outputs: list[Tensor]) -> float | None:
    """How far the answers to two samples are apart, relative to the largest number.

    The smallest of the outputs that have a row for each sample; None if none has.
    """
    found = [
        float((x[0] - x[1]).abs().max() / x.abs().max())
        for x in outputs
        if x.is_floating_point() and x.dim() > 1 and len(x) == 2
    ]
    return min(found, default=None)


def difference(got: list[Tensor], want: list[Tensor]) -> float:
    """Largest difference relative to the largest number of the output; inf for other shapes."""
    if [x.shape for x in got] != [x.shape for x in want]:
        return float("inf")
    worst = 0.0
    for a, b in zip(got, want, strict=True):
        if not b.numel():
            continue
        gap, scale = float((a.double() - b.double()).abs().max()), float(b.double().abs().max())
        found = gap / scale if scale else gap
        worst = max(worst, found if found == found else float("inf"))
    return worst


def exports(subject: Subject, small: nn.Module, say: Say) -> None:
    """Export the cut model as `prune2deploy export` does; where that fails, the original too."""
    shape = (3, subject.image_size, subject.image_size)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        try:
            parity = export_model_file(subject.on_images(small), path, input_shape=shape)
        except Prune2DeployError:
            try:
                export_model_file(subject.on_images(subject.model), path, input_shape=shape)
            except Prune2DeployError as original:
                say("original_onnx_error", str(original)[:1000])
                return
            raise
    say("onnx", True)
    say("onnx_difference", parity.max_rel_diff)
