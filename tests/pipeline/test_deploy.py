"""Devices of a recipe: known before anything is trained; the command for those that failed."""

import shlex
from pathlib import Path

import pytest

from prune2deploy.devices import LocalSettings
from prune2deploy.errors import DeviceError
from prune2deploy.pipeline import check_recipe, deploy, run_recipe
from prune2deploy.recipe import BudgetSection, ProfileSection, parse_recipe

RECIPE = """
model: {source: "digits:convnet", input: [1, 8, 8]}
data: {source: digits, normalize: none}
pretrain: {epochs: 1000, lr: 0.1}
prune: {method: l1, budget: {macs: 0.5}}
profile: {on: [pi5, local, orim]}
"""


@pytest.fixture
def known(monkeypatch):
    monkeypatch.setattr(
        deploy, "load_devices", lambda: {"local": LocalSettings(), "orin": LocalSettings()}
    )


@pytest.mark.parametrize("command", [run_recipe, check_recipe])
def test_unknown_devices_are_told_before_anything_is_done(command, known, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = parse_recipe(RECIPE, tmp_path / "far.yaml")
    with pytest.raises(DeviceError, match=r"names 'pi5', 'orim', and no such.*devices add pi5"):
        command(recipe)
    assert list(tmp_path.iterdir()) == []


def test_without_any_devices_yaml_this_machine_is_known(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("prune2deploy.devices.file.user_file", lambda: tmp_path / "none.yaml")
    assert list(deploy.devices_for(ProfileSection())) == ["local"]
    with pytest.raises(DeviceError, match=r"names 'pi5'.*Known: local"):
        deploy.devices_for(ProfileSection(on=["pi5"]))


def test_the_rest_is_measured_under_the_conditions_of_the_recipe():
    section = ProfileSection(on=["pi5", "orin", "local"], threads=2, min_time_s=0.5, retries=3)
    models = [Path("my runs/original.onnx"), Path("my runs/pruned.onnx")]
    command = deploy.measure_rest_command(models, section, ["pi5", "orin"], Path("my runs"))
    assert shlex.split(command) == [
        *("prune2deploy", "profile", "my runs/original.onnx", "my runs/pruned.onnx"),
        *("--on", "pi5", "--on", "orin", "--threads", "2", "--min-time", "0.5"),
        *("--retries", "3", "--output", "my runs"),
    ]
    assert "--threads" not in deploy.measure_rest_command(
        models, ProfileSection(), ["pi5"], Path("out")
    )


def test_devices_of_a_budget_of_time_are_known_and_can_tell_the_times_of_layers(known, monkeypatch):
    budget = BudgetSection(speedup=2, on=["local", "pi5"])
    with pytest.raises(DeviceError, match=r"prune.budget.on names 'pi5', and no such device"):
        deploy.devices_for(ProfileSection(), budget)
    assert "orin" in deploy.devices_for(ProfileSection(), BudgetSection(speedup=2, on=["orin"]))
    devices = {"local": LocalSettings(), "orin": LocalSettings(runtime="tensorrt")}
    monkeypatch.setattr(deploy, "load_devices", lambda: devices)
    with pytest.raises(DeviceError, match=r"names 'orin', whose runtime is tensorrt. A budget of"):
        deploy.devices_for(ProfileSection(), BudgetSection(speedup=2, on=["orin"]))
    # Where no time is asked for, nobody looks at it.
    assert deploy.devices_for(ProfileSection(), BudgetSection(macs=0.5)) == devices
