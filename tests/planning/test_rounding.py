"""`round_to: auto` without a budget of time: the devices' tables, where there are any."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from fake_device import FakeDevice, FakeDevices, fake_devices

from prune2deploy.devices import LocalSettings
from prune2deploy.errors import DeviceError
from prune2deploy.latency import ProfileOptions
from prune2deploy.latency.staircase.measure import open_table, prepare
from prune2deploy.planning import rounding
from prune2deploy.planning.rounding import ROUND_TO, rounding_for

ONE = ProfileOptions(threads=1)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    def make(*devices: FakeDevice) -> FakeDevices:
        found = fake_devices(monkeypatch, tmp_path / "cache", *devices)
        monkeypatch.setattr(importlib.import_module(rounding.__name__), "open_device", found.open)
        return found

    return make


def measure_steps(device: FakeDevice, options: ProfileOptions = ONE) -> None:
    prepare(open_table(device, options), device, options)
    device.jobs.clear()


def test_without_any_table_no_device_is_asked(world: Any) -> None:
    device = FakeDevice()
    step, told = rounding_for(["local"], world(device).settings, ONE)
    assert step == ROUND_TO
    assert told == (
        "Widths are multiples of 8: 8 suits most CPUs, as there is no table of layer times for "
        "local."
    )
    assert device.jobs == []


@pytest.mark.parametrize("step", [4, 16])
def test_a_table_of_the_device_decides(world: Any, step: int) -> None:
    device = FakeDevice(step=step)
    known = world(device).settings
    measure_steps(device)
    found, told = rounding_for(["local"], known, ONE)
    assert found == step
    assert told.startswith(f"Widths are multiples of {step}: {step} are the steps of local, by")
    assert device.jobs == ["facts"], "nothing is measured"


def test_a_table_for_other_threads_says_nothing(world: Any) -> None:
    device = FakeDevice(step=16)
    known = world(device).settings
    measure_steps(device)
    assert rounding_for(["local"], known, ProfileOptions(threads=2))[0] == ROUND_TO


def test_of_several_devices_the_coarsest_counts_and_one_without_a_table_the_default(
    world: Any,
) -> None:
    fine, coarse = FakeDevice("fine", step=4), FakeDevice("coarse", step=16)
    known = world(fine, coarse).settings
    measure_steps(fine)
    step, told = rounding_for(["fine", "coarse"], known, ONE)
    assert step == ROUND_TO
    assert "4 are the steps of fine; 8 suits most CPUs, as there is no table" in told
    assert told.endswith("for coarse.")
    measure_steps(coarse)
    assert rounding_for(["fine", "coarse"], known, ONE)[0] == 16


def test_a_device_that_is_away_or_runs_something_else_is_no_error(world: Any) -> None:
    there = FakeDevice("there", step=16)
    engine = FakeDevice("engine", step=16, settings=LocalSettings(runtime="torch"))
    away = FakeDevice("away")
    known = world(there, engine, away).settings
    measure_steps(there)

    def refuse(*_: object, **__: object) -> None:
        raise DeviceError("no route to host")

    away.run_probe = refuse  # type: ignore[method-assign]
    step, told = rounding_for(["there", "engine", "away"], known, ONE)
    assert step == 16
    assert told.endswith("no table of layer times for engine, away.")
