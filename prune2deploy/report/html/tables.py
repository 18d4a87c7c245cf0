"""The tables of a run's report: all texts, and no figures that are not in its folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prune2deploy.report.html.charts import Table
from prune2deploy.report.html.contents import RunContents, TimedLayer
from prune2deploy.report.metrics import FrozenChannels, Metrics
from prune2deploy.report.numbers import percent_change, size_text
from prune2deploy.report.tables import comparison_rows

_GIGA = 1e9


def comparison_table(metrics: Metrics) -> Table:
    """Before and after, as on the terminal."""
    return Table(
        ("figure", "before", "after", "change"),
        tuple(comparison_rows(metrics)),
        frozenset({1, 2, 3}),
    )


def widths_table(metrics: Metrics) -> Table:
    """Groups with their channels, or layers with their weights."""
    if metrics.pruning.weights:
        rows = [
            (one.layer, f"{one.weights:,}", f"{one.kept:,}", f"{1 - one.kept / one.weights:.1%}")
            for one in metrics.pruning.weights
        ]
        return Table(("layer", "weights", "not zero", "zeros"), tuple(rows), frozenset({1, 2, 3}))
    rows = [
        (one.group, str(one.channels), str(one.kept), f"{one.kept / one.channels:.0%}")
        for one in metrics.pruning.groups
    ]
    return Table(("group", "channels", "kept", "share"), tuple(rows), frozenset({1, 2, 3}))


def costs_table(rows: Sequence[tuple[str, str, int | None, int | None]]) -> Table:
    """(layer, operator, before, after) in full numbers, with the change."""
    return _layers_table(rows, lambda value: f"{value:,.0f}")


def times_table(layers: Sequence[TimedLayer]) -> Table:
    """Layers with their times in ms."""
    return _layers_table([(one.name, one.operator, *one.ms) for one in layers], "{:.3f}".format)


def _layers_table(
    rows: Sequence[tuple[str, str, float | None, float | None]], shown: Callable[[float], str]
) -> Table:
    filled = []
    for name, operator, old, new in rows:
        figures = ("none" if value is None else shown(value) for value in (old, new))
        change = "" if old is None or new is None else percent_change(old, new)
        filled.append((name, operator, *figures, change))
    headings = ("layer", "operator", "before", "after", "change")
    return Table(headings, tuple(filled), frozenset({2, 3, 4}))


def precisions_table(metrics: Metrics) -> Table:
    """The pruned network in each precision."""
    name, after = metrics.metric, metrics.after
    rows = [
        ("fp32", f"{after.metrics[name]:.2f}", size_text(after.onnx_bytes), "all layers", "", "")
    ]
    for one in metrics.precisions:
        layers = ", ".join(f"{count} {kind}" for kind, count in one.layers.items() if count)
        alike = "no classes" if one.agreement is None else f"{one.agreement:.1%}"
        rows.append(
            (
                one.precision,
                f"{one.metrics[name]:.2f}",
                size_text(one.onnx_bytes),
                layers,
                alike,
                f"{one.max_rel_difference:.2g}",
            )
        )
    headings = ("precision", name, "file", "layers", "same answer as fp32", "largest difference")
    return Table(headings, tuple(rows), frozenset({1, 2, 4, 5}))


def kept_layers(metrics: Metrics) -> Table:
    """Layers that stay fp32 in a lower precision, with the reason."""
    rows = [
        (one.precision, layer, why) for one in metrics.precisions for layer, why in one.kept.items()
    ]
    return Table(("precision", "stays in fp32", "because"), tuple(rows))


def frozen_table(frozen: Sequence[FrozenChannels]) -> Table:
    """What could not be cut, by reason, the one with most channels first."""
    by_reason: dict[str, list[FrozenChannels]] = {}
    for one in frozen:
        by_reason.setdefault(one.reason, []).append(one)
    ordered = sorted(by_reason.items(), key=lambda item: -sum(one.channels for one in item[1]))
    rows = [
        (
            reason,
            f"{sum(one.channels for one in some):,}",
            ", ".join(f"{one.layer} ({one.channels})" for one in some),
        )
        for reason, some in ordered
    ]
    return Table(("because", "channels", "layers"), tuple(rows), frozenset({1}))


def device_table(run: RunContents, measured: Mapping[str, Any]) -> Table:
    """What a device is, how it was measured, and what its sensors told."""
    setup, options = measured["setup"], measured["options"]
    machine = setup.get("machine") or {}
    facts: list[tuple[str, Any]] = [
        ("measured", run.measured.get(measured["device"])),
        ("processor", machine.get("cpu_model")),
        ("board", machine.get("board")),
        ("GPU", _name_of(machine.get("gpu"))),
        ("architecture", machine.get("architecture")),
        ("system", machine.get("os")),
        ("kernel", machine.get("kernel")),
        ("memory", _gigabytes(machine.get("memory_bytes"))),
        ("threads", options.get("threads")),
        ("CPUs", _listed(setup.get("cpus"))),
        ("batch", measured["latencies"][0]["batch"]),
        ("attempts", measured.get("attempts")),
        *((f"version of {name}", text) for name, text in (setup.get("versions") or {}).items()),
        *_readings(setup.get("state") or {}),
    ]
    rows = [(name, str(value)) for name, value in facts if value not in (None, "", [])]
    return Table(("what", "found"), tuple(rows))


def _readings(state: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Sensors that were read, before, after warm-up and at the end."""
    rows = []
    for name, words in (
        ("clock_khz", "clock, kHz"),
        ("governor", "governor"),
        ("temperature_c", "temperature, °C"),
        ("pi_temperature_c", "temperature, °C"),
        ("pi_throttled", "throttled"),
        ("power_mode", "power mode"),
        ("gpu_clock_hz", "GPU clock, Hz"),
        ("load_average", "load average"),
        ("pressure", "waiting for CPU, memory, disk, %"),
    ):
        found = [state[when].get(name) for when in ("start", "warm", "end") if state.get(when)]
        if any(value is not None for value in found):
            rows.append((words, " → ".join(map(_plain, found))))
    return rows


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value))
    return "unknown" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _name_of(gpu: Any) -> Any:
    return gpu.get("name", str(gpu)) if isinstance(gpu, Mapping) else gpu


def _gigabytes(value: Any) -> str | None:
    return f"{value / _GIGA:.1f} GB" if isinstance(value, (int, float)) else None


def _listed(values: Any) -> str:
    return ", ".join(map(str, values or ()))


def facts_table(metrics: Metrics) -> Table:
    """The model, the data, the training machine and how long it took."""
    model, data, machine = metrics.model, metrics.data, metrics.machine
    images = data.get("images") or {}
    memory = _gigabytes(machine.get("memory_bytes"))
    found = [
        ("model", model.get("source")),
        ("checkpoint", model.get("checkpoint")),
        ("sha256 of it", model.get("checkpoint_sha256")),
        ("data", data.get("source")),
        ("images", ", ".join(f"{count:,} {name}" for name, count in images.items() if count)),
        ("method", metrics.pruning.method),
        ("its options", _listed(f"{k}: {v}" for k, v in metrics.pruning.options.items())),
        ("budget", _listed(f"{k}: {v}" for k, v in metrics.pruning.budget.items())),
        ("seed", metrics.seed),
        ("trained on", _listed(filter(None, (machine.get("cpu"), memory)))),
        ("features", _listed(machine.get("features"))),
        ("threads", machine.get("threads")),
        ("ended", metrics.created),
        ("took", _listed(f"{name} {took:,.1f} s" for name, took in metrics.seconds.items())),
    ]
    rows = [(name, str(value)) for name, value in found if value not in (None, "")]
    return Table(("what", "found"), tuple(rows))


def parity_table(metrics: Metrics) -> Table:
    """How far ONNX Runtime and PyTorch agree."""
    rows = []
    for name, one in (("original", metrics.before.parity), ("pruned", metrics.after.parity)):
        alike = "no classes" if one.agreement is None else f"{one.agreement:.2%}"
        largest = f"{one.max_abs_difference:.2g}", f"{one.max_rel_difference:.2g}"
        rows.append((name, f"{one.samples:,}", *largest, alike))
    headings = ("network", "test images", "largest difference", "relative", "same answer")
    return Table(headings, tuple(rows), frozenset({1, 2, 3, 4}))


def files_table(metrics: Metrics) -> Table:
    """Files with their hashes."""
    rows = [(name, f"{one.bytes:,}", one.sha256) for name, one in metrics.files.items()]
    return Table(("file", "bytes", "sha256"), tuple(rows), frozenset({1}))


def versions_table(metrics: Metrics) -> Table:
    """Versions of what ran here."""
    return Table(("package", "version"), tuple(metrics.versions.items()))
