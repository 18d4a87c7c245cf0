import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from precision_networks import SHAPE, random_images

from prune2deploy.errors import ExportError
from prune2deploy.export.precision import activations, calibrate, collect, ranges_from
from prune2deploy.export.precision.activations import BINS, Statistics, TensorStatistics
from prune2deploy.export.precision.graphs import load_graph


def statistics_of(*parts: Any) -> Statistics:
    tensor = TensorStatistics()
    for part in parts:
        tensor.add(np.asarray(part, np.float32))
    return Statistics({"x": tensor}, 1)


def ranges(*parts: Any, method: Any, percentile: float = 99.99) -> tuple[float, float]:
    calibration = ranges_from(statistics_of(*parts), method, percentile=percentile)
    return calibration.ranges["x"]


def normal_with_outlier() -> Any:
    values = np.random.default_rng(0).standard_normal(100_000)
    values[17] = 100.0
    return values


def test_minmax_covers_the_outlier() -> None:
    values = normal_with_outlier()
    low, high = ranges(values, method="minmax")
    assert (low, high) == (pytest.approx(values.min()), 100.0)


def test_percentile_is_the_quantile_of_absolute_values() -> None:
    values = normal_with_outlier()
    # Bins are 128 / 4096 wide, as the histogram ends at the power of two above 100.
    expected = np.quantile(np.abs(values), 0.999)
    low, high = ranges(values, method="percentile", percentile=99.9)
    assert expected <= high <= expected + 128 / BINS
    assert low == -high


def test_entropy_gives_up_the_outlier_but_little_else() -> None:
    values = normal_with_outlier()
    low, high = ranges(values, method="entropy")
    assert np.quantile(np.abs(values), 0.99) < high < 10
    assert low >= -high


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_a_range_never_exceeds_what_was_seen(method: str) -> None:
    values = np.random.default_rng(0).uniform(-0.25, 3, 10_000)
    low, high = ranges(values, method=method)
    assert values.min() * 1.001 <= low < 0
    assert 2 < high <= values.max() * 1.001


def test_the_zeros_of_a_relu_do_not_decide_the_entropy() -> None:
    positive = np.abs(np.random.default_rng(0).standard_normal(20_000))
    plain = ranges(positive, method="entropy")
    assert ranges(positive, np.zeros(200_000), method="entropy")[1] == pytest.approx(
        plain[1], rel=0.05
    )


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_constant_tensors(method: str) -> None:
    assert ranges([0.0, 0.0], method=method) == (0.0, 0.0)
    assert ranges([2.0, 2.0], method=method) == (2.0, 2.0)


def test_the_order_of_the_images_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.standard_normal(500) * scale for scale in (1, 40, 0.01, 3)]
    forward, backward = (
        statistics_of(*order).tensors["x"] for order in (parts, list(reversed(parts)))
    )
    assert forward.end == backward.end
    assert np.array_equal(forward.counts, backward.counts)
    edges = np.abs(np.concatenate(parts).astype(np.float32))
    assert np.array_equal(forward.counts, np.histogram(edges, BINS, (0, forward.end))[0])


def test_memory_holds_one_batch_and_no_more(residual_file: Path) -> None:
    alive: list[int] = []
    handed: list[weakref.ref[Any]] = []

    def batches() -> Iterator[Any]:
        for seed in range(6):
            alive.append(sum(ref() is not None for ref in handed))
            (images,) = random_images(4, seed=seed)
            handed.append(weakref.ref(images))
            yield images
            del images

    found = collect(load_graph(residual_file), batches())
    assert found.samples == 24
    # The loop's own variable holds the latest until the next one is there.
    assert max(alive) <= 1
    assert {tensor.counts.size for tensor in found.tensors.values()} == {BINS}


def test_inner_tensors_are_looked_at_in_groups_of_a_limited_size(
    residual_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    proto = load_graph(residual_file)
    whole = collect(proto, random_images(4))
    # One tensor of 8 channels at 12×12 in a batch of 4 takes 18 KiB.
    monkeypatch.setattr(activations, "_GROUP_BYTES", 20_000)
    assert len(activations._probes(proto, tmp_path)) > 3
    parts = collect(proto, random_images(4))
    assert list(parts.tensors) == list(whole.tensors)
    for name, tensor in whole.tensors.items():
        assert np.array_equal(tensor.counts, parts.tensors[name].counts)
        assert tensor.lowest == parts.tensors[name].lowest


def test_ranges_are_those_of_the_tensors_in_the_graph(residual_file: Path) -> None:
    images = random_images(4, 4)
    found = calibrate(residual_file, images)
    graph = load_graph(residual_file).graph
    assert set(found.ranges) == {"input", *(n.output[0] for n in graph.node)}
    assert found.ranges["input"] == (
        pytest.approx(min(i.min() for i in images)),
        pytest.approx(max(i.max() for i in images)),
    )
    for node in graph.node:
        if node.op_type == "Relu":
            assert found.ranges[node.output[0]][0] == 0
        if node.op_type == "Clip":
            assert found.ranges[node.output[0]][1] <= 6
    assert (found.method, found.samples) == ("minmax", 8)


def test_any_number_of_images_fits_the_files_batch(residual_file: Path) -> None:
    images = random_images(12)[0]
    together = calibrate(residual_file, [images])
    apart = calibrate(residual_file, [images[:5], images[5:6], images[6:]])
    assert together.ranges == apart.ranges
    assert apart.samples == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batches": []}, "no images to calibrate on"),
        ({"method": "entropie"}, r"'entropie' does not exist. Did you mean 'entropy'"),
        ({"percentile": 0.9999}, "percentile is 0.9999; expected more than 50"),
        ({"batches": [np.zeros((1, 3, 8, 8), np.float32)]}, r"takes images of shape \(3, 12, 12\)"),
        ({"batches": [np.full((1, *SHAPE), np.nan, np.float32)]}, "NaN or infinity in 'input'"),
    ],
)
def test_errors(arguments: dict[str, Any], message: str, residual_file: Path) -> None:
    with pytest.raises(ExportError, match=message):
        calibrate(residual_file, **{"batches": random_images(1), **arguments})
