"""What the probe reads about the machine, from fake trees: the right numbers, or None."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from prune2deploy.devices.bundle import SOURCES
from prune2deploy.probe.machine import cpu_quota, machine
from prune2deploy.probe.placing import best_cpus, cpu_list
from prune2deploy.probe.state import state


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize("path", sorted(SOURCES.glob("*.py")), ids=lambda path: path.stem)
def test_the_probe_is_python_3_8_and_stands_alone(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 8))
    imported = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [a.name for a in node.names]
        )
        if not (isinstance(node, ast.ImportFrom) and node.level)
    }
    assert imported - sys.stdlib_module_names <= {"numpy", "onnxruntime", "torch"}


def test_a_missing_sensor_is_none_and_never_zero(tmp_path: Path) -> None:
    found = state(tmp_path)
    del found["time_utc"]
    assert set(found.values()) == {None}
    facts = machine(tmp_path)
    for known_without_files in ("kind", "architecture", "kernel", "cpus_allowed"):
        assert facts.pop(known_without_files)
    assert set(facts.values()) == {None}


def test_an_unreadable_zone_does_not_hide_the_others(tmp_path: Path) -> None:
    thermal = "sys/class/thermal"
    write(
        tmp_path,
        {f"{thermal}/thermal_zone1/temp": "48312\n", f"{thermal}/thermal_zone1/type": "gpu"},
    )
    (tmp_path / thermal / "thermal_zone0/temp").mkdir(parents=True)  # reading it is an I/O error
    assert state(tmp_path)["temperature_c"] == {"thermal_zone1 gpu": pytest.approx(48.312)}


def test_state_of_a_fake_machine(tmp_path: Path) -> None:
    cpu = "sys/devices/system/cpu"
    write(
        tmp_path,
        {
            f"{cpu}/cpufreq/policy0/scaling_cur_freq": "1800000\n",
            f"{cpu}/cpufreq/policy4/scaling_cur_freq": "2400000\n",
            f"{cpu}/cpufreq/policy0/scaling_governor": "ondemand\n",
            f"{cpu}/cpu1/thermal_throttle/core_throttle_count": "7\n",
            "proc/loadavg": "1.50 0.25 0.10 2/300 1234\n",
            "proc/self/status": "Name:\tpython\nvoluntary_ctxt_switches:\t5\n"
            "nonvoluntary_ctxt_switches:\t11\n",
            "proc/self/schedstat": "1000 2000 3\n",
            "proc/stat": "cpu  1 2 3 4 5 6 7 88 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\n",
        },
    )
    found = state(tmp_path)
    assert found["clock_khz"] == {"policy0": 1800000, "policy4": 2400000}
    assert found["governor"] == {"policy0": "ondemand"}
    assert found["throttle_count"] == {"cpu1": 7}
    assert found["load_average"] == [1.5, 0.25, 0.1]
    assert (found["switches_voluntary"], found["switches_forced"]) == (5, 11)
    assert found["waited_for_cpu_ns"] == 2000
    assert found["stolen_ticks"] == 88


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        (
            {
                "proc/self/cgroup": "0::/user/me\n",
                "sys/fs/cgroup/user/me/cpu.max": "150000 100000\n",
            },
            1.5,
        ),
        ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        (
            {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        (
            {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
    ],
)
def test_cpu_quota_in_cores(tmp_path: Path, files: dict[str, str], cores: float | None) -> None:
    assert cpu_quota(write(tmp_path, files)) == {"cores": cores}


@pytest.mark.parametrize(
    ("files", "turbo"),
    [
        ({"intel_pstate/no_turbo": "1"}, False),
        ({"intel_pstate/no_turbo": "0"}, True),
        ({"cpufreq/boost": "0"}, False),
    ],
)
def test_turbo(tmp_path: Path, files: dict[str, str], turbo: bool) -> None:
    write(tmp_path / "sys/devices/system/cpu", files)
    assert machine(tmp_path)["turbo"] is turbo


def test_each_thread_gets_a_physical_core_before_any_core_gets_two(tmp_path: Path) -> None:
    siblings = {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}
    cpu = "sys/devices/system/cpu"
    write(tmp_path, {f"{cpu}/cpu{n}/topology/thread_siblings_list": s for n, s in siblings.items()})
    assert best_cpus({0, 1, 2, 3}, 2, tmp_path) == [1, 0]
    assert best_cpus({0, 1, 2, 3}, 3, tmp_path) == [1, 0, 3]
    assert best_cpus({2, 3}, 2, tmp_path) == [3, 2]


def test_big_cores_come_before_little_ones(tmp_path: Path) -> None:
    capacity = {0: "1024", 1: "1024", 2: "400", 3: "400"}
    cpu = "sys/devices/system/cpu"
    write(tmp_path, {f"{cpu}/cpu{n}/cpu_capacity": text for n, text in capacity.items()})
    assert best_cpus({0, 1, 2, 3}, 3, tmp_path) == [1, 0, 3]


def test_kernel_cpu_lists() -> None:
    assert cpu_list("0-2,5,7-8") == [0, 1, 2, 5, 7, 8]
