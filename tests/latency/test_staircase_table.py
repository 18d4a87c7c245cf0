"""The file of measured times: what is kept, what is refused, and what lies between."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from prune2deploy.errors import DeviceError
from prune2deploy.latency.staircase.specs import LayerSpec
from prune2deploy.latency.staircase.table import Profiler, Table, load_table, table_path

CONV = LayerSpec("conv", (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), (14, 14))
LINEAR = LayerSpec("linear")
HERE = {"cpu": "A72", "board": "Raspberry Pi 4", "runtime": "onnxruntime", "threads": 1}


def table(path: Path, step: int | None = 8, times: dict[Any, float] | None = None) -> Table:
    made = Table(path / "table.json", dict(HERE), step)
    made.add(CONV, {(8, 8): 10.0, (8, 32): 40.0, (32, 8): 30.0, (32, 32): 120.0})
    return made


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    made = table(tmp_path / "deeper")
    made.add(LINEAR, {(64, 10): 1.25})
    made.profiler = Profiler(3.25, 4.5)
    made.save()
    found = load_table(made.path, HERE)
    assert found == made
    assert [p.name for p in made.path.parent.iterdir()] == ["table.json"]  # no leftovers


def test_tables_from_before_the_profiler_was_measured_are_read(tmp_path: Path) -> None:
    made = table(tmp_path)
    made.profiler = Profiler(3.25, 4.5)
    made.save()
    content = json.loads(made.path.read_text())
    del content["profiler"]
    made.path.write_text(json.dumps(content))
    found = load_table(made.path, HERE)
    assert found.profiler is None
    assert found.times == made.times


def test_where_there_is_no_file_the_table_is_empty(tmp_path: Path) -> None:
    found = load_table(tmp_path / "none.json", HERE)
    assert (found.times, found.step) == ({}, None)
    assert not found.path.exists()


def test_the_file_says_its_units(tmp_path: Path) -> None:
    made = table(tmp_path)
    made.save()
    content = json.loads(made.path.read_text())
    assert content["unit"].startswith("microseconds")
    assert content["layers"][CONV.key] == {"8x8": 10.0, "8x32": 40.0, "32x8": 30.0, "32x32": 120.0}


def test_times_of_something_else_are_refused(tmp_path: Path) -> None:
    made = table(tmp_path)
    made.save()
    with pytest.raises(DeviceError) as caught:
        load_table(made.path, {**HERE, "threads": 4, "version": "1.17"})
    message = str(caught.value)
    assert "threads: 1 there, 4 here" in message
    assert "version: None there, '1.17' here" in message
    assert "cpu" not in message
    assert "Name another file" in message


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"format": 1}',
        '{"format": 1, "conditions": {}, "step": 8, "layers": {"conv": {"8": 1}}}',
        '{"format": 1, "conditions": {}, "step": 8, "layers": {"conv": {"8x8": "fast"}}}',
        '{"format": 1, "conditions": {}, "step": 8, "layers": {"conv": {"8x8": null}}}',
        '{"format": 1, "conditions": {}, "step": 8, "layers": []}',
        '{"format": 1, "conditions": [], "step": 8, "layers": {}}',
        '{"format": 1, "conditions": {}, "step": "eight", "layers": {}}',
        '{"format": 1, "conditions": {}, "step": 0, "layers": {}}',
        '{"format": 1, "conditions": {}, "step": 8, "layers": {"conv": {"8x8": NaN}}}',
        '{"format": 1, "conditions": {}, "step": 8, "layers": {"conv": {"8x8": -1}}}',
        '{"format": 1, "conditions": {}, "step": 8, "layers": {}, "profiler": {"inside_us": 1}}',
        '{"format": 1, "conditions": {}, "step": 8, "layers": {}, "profiler": 3}',
    ],
)
def test_a_damaged_file_is_refused_with_what_to_do(tmp_path: Path, text: str) -> None:
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(DeviceError, match=r"is not a table of times.*Remove it to have it"):
        load_table(path, {})


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(DeviceError, match="is not a table of times"):
        load_table(path, HERE)


def test_another_format_is_refused(tmp_path: Path) -> None:
    made = table(tmp_path)
    made.save()
    content = json.loads(made.path.read_text())
    made.path.write_text(json.dumps({**content, "format": 7}))
    with pytest.raises(DeviceError, match="has format 7, this version reads 1"):
        load_table(made.path, HERE)


def test_measured_points_are_as_measured(tmp_path: Path) -> None:
    made = table(tmp_path)
    for point, us in made.times[CONV.key].items():
        found = made.time(CONV, point)
        assert (found.us, found.interpolated) == (us, False)


def test_a_width_between_two_steps_costs_the_next_step(tmp_path: Path) -> None:
    made = table(tmp_path)
    for point in ((8, 25), (8, 31), (5, 32), (1, 26)):
        found = made.time(CONV, point)
        assert (found.us, found.interpolated) == (40.0, False)
    # but what was measured itself is believed
    made.add(CONV, {(8, 31): 77.0})
    assert made.time(CONV, (8, 31)).us == 77.0


def test_on_steps_nothing_narrower_takes_longer(tmp_path: Path) -> None:
    made = table(tmp_path)
    made.add(CONV, {(16, 8): 55.0, (16, 4): 61.0, (16, 3): 61.0})  # disturbed, all of them
    assert made.time(CONV, (16, 8)).us == 30.0
    assert made.time(CONV, (16, 4)).us == 30.0
    assert made.time(CONV, (16, 3)).us == 61.0  # between steps that may be so


def test_between_measured_steps_it_is_a_line(tmp_path: Path) -> None:
    made = table(tmp_path)
    found = made.time(CONV, (8, 16))
    assert (found.us, found.interpolated) == (pytest.approx(20.0), True)
    assert made.time(CONV, (8, 9)).us == found.us  # on the way up to 16
    assert made.time(CONV, (16, 8)).us == pytest.approx(10 + 20 / 3)
    # in both directions: at (16, 16) a third of the way in each
    low, high = 20.0, 30 + 90 / 3
    assert made.time(CONV, (16, 16)).us == pytest.approx(low + (high - low) / 3)


def test_beyond_what_was_measured_it_grows_with_the_width(tmp_path: Path) -> None:
    made = table(tmp_path)
    assert made.time(CONV, (32, 64)).us == pytest.approx(240)
    assert made.time(CONV, (64, 32)).us == pytest.approx(240)
    assert made.time(CONV, (64, 64)).us == pytest.approx(480)
    assert made.time(CONV, (64, 64)).interpolated


def test_a_whole_staircase_comes_back(tmp_path: Path) -> None:
    def real(inside: int, outside: int) -> float:
        return 3 + math.ceil(inside / 8) * math.ceil(outside / 8)

    made = Table(tmp_path / "t.json", dict(HERE), 8)
    some = (8, 24, 40, 64)
    made.add(CONV, {(a, b): real(a, b) for a in some for b in some})
    for a in range(1, 65):
        for b in range(1, 65):
            assert made.time(CONV, (a, b)).us == pytest.approx(real(a, b))


def test_without_a_step_nothing_is_rounded(tmp_path: Path) -> None:
    made = table(tmp_path, step=None)
    found = made.time(CONV, (8, 31))
    assert (found.us, found.interpolated) == (pytest.approx(38.75), True)


def test_depthwise_points_are_found_along_their_line(tmp_path: Path) -> None:
    spec = LayerSpec("depthwise", (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), (14, 14))
    made = Table(tmp_path / "t.json", dict(HERE), 8)
    made.add(spec, {(8, 8): 10.0, (24, 24): 30.0, (40, 40): 90.0})
    assert made.time(spec, (16, 16)).us == pytest.approx(20)
    assert made.time(spec, (32, 32)).us == pytest.approx(60)
    assert made.time(spec, (80, 80)).us == pytest.approx(180)
    found = made.time(spec, (21, 21))
    assert (found.us, found.interpolated) == (30.0, False)


def test_grouped_points_are_found_along_their_line(tmp_path: Path) -> None:
    spec = LayerSpec("grouped", (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), (14, 14), group_width=8)
    made = Table(tmp_path / "t.json", dict(HERE), 8)
    made.add(spec, {(8, 16): 10.0, (24, 48): 30.0, (40, 80): 90.0})
    assert made.time(spec, (24, 48)).us == 30
    assert made.time(spec, (16, 32)).us == pytest.approx(20)
    assert made.time(spec, (32, 64)).us == pytest.approx(60)


def test_an_odd_full_width_is_no_more_than_itself(tmp_path: Path) -> None:
    # An image has 3 channels in: there is no step up to 8. The same for a last width of 100.
    made = Table(tmp_path / "t.json", dict(HERE), 8)
    made.add(CONV, {(3, 8): 10.0, (3, 56): 58.0, (3, 100): 102.0})
    assert made.time(CONV, (3, 50)).us == 58.0
    assert made.time(CONV, (3, 30)).us == pytest.approx(34.0)
    assert made.time(CONV, (3, 98)).us == 102.0
    assert made.time(CONV, (3, 90)).us == pytest.approx(98.0)


def test_widths_measured_when_steps_were_looked_for_do_not_mislead(tmp_path: Path) -> None:
    made = Table(tmp_path / "t.json", dict(HERE), 8)

    def real(inside: int, outside: int) -> float:
        return 1.0 * math.ceil(inside / 8) * math.ceil(outside / 8)

    some = (8, 32, 72, 128)
    made.add(CONV, {(a, b): real(a, b) for a in some for b in some})
    for width in range(33, 65):
        made.add(CONV, {(64, width): real(64, width), (width, 64): real(width, 64)})
    for point in ((40, 8), (40, 16), (64, 8), (64, 128), (50, 100), (16, 50), (96, 40)):
        assert made.time(CONV, point).us == pytest.approx(real(*point))


def test_a_layer_that_was_never_measured_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="has no times of the layer 'linear rows1 float32'"):
        table(tmp_path).time(LINEAR, (8, 8))


def test_missing_has_each_point_once(tmp_path: Path) -> None:
    made = table(tmp_path)
    assert made.missing(CONV, [(8, 8), (8, 16), (8, 16), (32, 32)]) == [(8, 16)]
    assert made.missing(LINEAR, [(8, 8)]) == [(8, 8)]


def test_other_conditions_have_another_file() -> None:
    paths = {
        table_path(HERE),
        table_path({**HERE, "threads": 4}),
        table_path({**HERE, "version": "1.17"}),
        table_path({**HERE, "cpu": "A76"}),
    }
    assert len(paths) == 4
    assert table_path(HERE) == table_path(dict(reversed(HERE.items())))
    assert "raspberry-pi-4-onnxruntime-1t" in table_path(HERE).name
