"""Devices of a recipe: known before anything is trained; the command for those that failed."""

import shlex
from pathlib import Path

import pytest

from prune2deploy.devices import LocalSettings
from prune2deploy.errors import DeviceError
from prune2deploy.pipeline import check_recipe, deploy, run_recipe
from prune2deploy.recipe import ProfileSection, Recipe, parse_recipe

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
    assert list(deploy.devices_for(asking())) == ["local"]
    with pytest.raises(DeviceError, match=r"profile.on names 'pi5'.*Known: local"):
        deploy.devices_for(asking(profile="{on: [pi5]}"))


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


def asking(**sections: str) -> Recipe:
    """A recipe with these sections."""
    said = {"prune": "{method: l1, budget: {macs: 0.5}}", "profile": "{on: [local]}", **sections}
    lines = [
        "model: {source: 'digits:convnet', input: [1, 8, 8]}",
        "data: {source: digits, normalize: none}",
    ]
    lines += ["pretrain: {epochs: 1, lr: 0.1}", *(f"{key}: {text}" for key, text in said.items())]
    return parse_recipe("\n".join(lines), Path("asking.yaml"))


SEARCH = "{method: l1, search: {trials: 4, objectives: [accuracy, latency], on: NAME}}"


@pytest.mark.parametrize(
    ("key", "prune"),
    [
        ("prune.budget.on", "{method: l1, budget: {speedup: 2, on: NAME}}"),
        ("prune.search.on", SEARCH),
    ],
)
def test_devices_of_plans_for_a_time_are_known_and_can_tell_the_times_of_layers(
    key, prune, known, monkeypatch
):
    with pytest.raises(DeviceError, match=f"{key} names 'pi5', and no such device"):
        deploy.devices_for(asking(prune=prune.replace("NAME", "pi5")))
    orin = asking(prune=prune.replace("NAME", "orin"))
    assert "orin" in deploy.devices_for(orin)
    devices = {"local": LocalSettings(), "orin": LocalSettings(runtime="tensorrt")}
    monkeypatch.setattr(deploy, "load_devices", lambda: devices)
    with pytest.raises(DeviceError, match=f"{key} names 'orin', whose runtime is tensorrt. Plans"):
        deploy.devices_for(orin)
    # Where no time is asked for, nobody looks at it.
    assert deploy.devices_for(asking(profile="{on: [orin]}")) == devices


def test_devices_of_engines_are_known(known):
    with pytest.raises(DeviceError, match=r"export.engines.on names 'pi5', and no such device"):
        deploy.devices_for(asking(export="{engines: {on: [pi5]}}"))
