"""Whole machines, as fake trees: what the probe says that they are, and how they are."""

from __future__ import annotations

import json
import os
import select
import time
from pathlib import Path

import pytest
from fake_machines import CPU, jetson_orin_nano, raspberry_pi_5, says, write, x86_box

from prune2deploy.probe import tools
from prune2deploy.probe.machine import cpu_count, kind_of, machine, os_name
from prune2deploy.probe.state import cgroup_throttled, pressure, state
from prune2deploy.probe.tools import find_tool, first_line, tool_output


@pytest.fixture(autouse=True)
def _first_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_a_raspberry_pi_5(tmp_path: Path) -> None:
    facts = machine(raspberry_pi_5(tmp_path))
    assert facts["kind"] == "raspberry_pi"
    assert facts["board"] == "Raspberry Pi 5 Model B Rev 1.0"
    assert facts["os"] == "Debian GNU/Linux 12 (bookworm)"
    assert facts["cpu_count"] == 4
    assert facts["cpu_flags"] == ["fp", "asimd", "asimddp"]
    assert facts["cpu_parts"] == ["0xd0b"]
    assert facts["available_governors"] == {"policy0": ["ondemand", "performance"]}
    assert facts["max_clock_khz"] == {"policy0": 2400000}
    assert (facts["l4t"], facts["jetpack"], facts["gpu"], facts["power_modes"]) == (None,) * 4


def test_the_state_of_a_raspberry_pi_5(tmp_path: Path) -> None:
    now = state(raspberry_pi_5(tmp_path))
    assert now["pi_throttled"] == 0x50005
    assert now["pi_clock_hz"] == 2400033792
    assert now["pi_temperature_c"] == 62.3
    assert now["pi_core_volts"] == 0.86
    assert now["cooling_state"] == {"cooling_device0 pwm-fan": 2}
    assert now["pressure"] == {"cpu": 1.25, "memory": None, "io": 0.5}
    assert now["swap_pages"] == {"in": 3, "out": 17}
    assert now["memory_available_bytes"] == 7_000_000 * 1024
    for absent in ("power_mode", "jetson_clocks", "overcurrent_count", "gpu_state", "gpu_clock_hz"):
        assert now[absent] is None


def test_a_jetson_orin_nano(tmp_path: Path) -> None:
    facts = machine(jetson_orin_nano(tmp_path))
    assert facts["kind"] == "jetson"
    assert facts["board"] == "NVIDIA Jetson Orin Nano Developer Kit"
    assert (facts["l4t"], facts["jetpack"]) == ("36.4.3", "6.2")
    assert facts["gpu"] is None
    assert facts["power_modes"] == [
        {"name": "15W", "id": 0, "default": True},
        {"name": "MAXN_SUPER", "id": 2, "default": False},
    ]


def test_the_state_of_a_jetson_orin_nano(tmp_path: Path) -> None:
    root = jetson_orin_nano(tmp_path)
    now = state(root)
    assert now["power_mode"] == {"name": "MAXN_SUPER", "id": 2}
    assert now["jetson_clocks"] == "pinned"
    assert now["gpu_clock_hz"] == 1_020_000_000
    assert now["overcurrent_count"] == {"oc1": 0, "oc3": 41}
    assert now["gpu_state"] is None
    assert now["pi_throttled"] is None
    skipped = state(root, skip=("power_mode", "jetson_clocks"))
    assert (skipped["power_mode"], skipped["jetson_clocks"]) == (None, None)


def test_clocks_of_a_jetson_are_read_from_files_where_the_program_wants_root(
    tmp_path: Path,
) -> None:
    root = jetson_orin_nano(tmp_path)
    write(root, {"usr/bin/jetson_clocks": "#!/bin/sh\necho run as root\nexit 1\n"})
    assert state(root)["jetson_clocks"] == "free"
    write(root, {f"{CPU}/cpufreq/policy0/scaling_min_freq": "1728000\n"})
    assert state(root)["jetson_clocks"] == "free", "the GPU's clock is not pinned yet"
    write(root, {"sys/class/devfreq/17000000.gpu/min_freq": "1020000000\n"})
    assert state(root)["jetson_clocks"] == "pinned"
    (root / "sys/class/devfreq/17000000.gpu/min_freq").unlink()
    assert state(root)["jetson_clocks"] is None


def test_an_x86_box(tmp_path: Path) -> None:
    facts = machine(x86_box(tmp_path))
    assert facts["kind"] == "x86"
    assert facts["cpu_flags"] == ["fpu", "avx2", "avx_vnni"]
    assert facts["cpu_parts"] is None
    assert facts["cpu_count"] == 2
    assert facts["gpu"] == "NVIDIA GeForce RTX 3060"


def test_the_state_of_an_x86_box_with_an_older_driver(tmp_path: Path) -> None:
    now = state(x86_box(tmp_path))
    assert now["throttle_count"] == {"cpu0": 2}
    assert now["package_throttle_count"] == {"cpu0": 9}
    assert now["cgroup_throttled"] == {"periods": 4, "time_us": 120_000}
    assert now["gpu_state"] == {
        "name": "NVIDIA GeForce RTX 3060",
        "clock_mhz": 1837,
        "memory_clock_mhz": 7300,
        "temperature_c": 54,
        "power_w": None,
        "throttle_reasons": "0x0000000000000004",
    }
    assert now["jetson_clocks"] is None


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({"proc/device-tree/compatible": "nvidia,p3767\0nvidia,tegra234\0"}, "jetson"),
        ({"proc/cpuinfo": "Model\t: Raspberry Pi 4 Model B Rev 1.1\n"}, "raspberry_pi"),
        (
            {"proc/device-tree/model": "Radxa ROCK 5B\0", "proc/cpuinfo": "CPU implementer : 1"},
            "arm",
        ),
    ],
)
def test_kinds_of_machines(tmp_path: Path, files: dict[str, str], kind: str) -> None:
    assert kind_of(write(tmp_path, files)) == kind


@pytest.mark.parametrize(
    ("architecture", "kind"), [("aarch64", "arm"), ("i686", "x86"), ("riscv64", "other")]
)
def test_without_files_the_architecture_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, kind: str
) -> None:
    monkeypatch.setattr("platform.machine", lambda: architecture)
    assert kind_of(tmp_path) == kind


def test_cores_that_are_off_are_not_counted(tmp_path: Path) -> None:
    write(tmp_path, {f"{CPU}/online": "0-1,4\n", "proc/cpuinfo": "processor : 0\n"})
    assert cpu_count(tmp_path) == 3


def test_the_name_of_the_system_may_have_no_quotes(tmp_path: Path) -> None:
    assert os_name(write(tmp_path, {"etc/os-release": "ID=a\nPRETTY_NAME=Arch Linux\n"})) == (
        "Arch Linux"
    )


def test_cgroups_of_version_1_count_in_nanoseconds(tmp_path: Path) -> None:
    stat = "nr_periods 10\nnr_throttled 3\nthrottled_time 5000000\n"
    write(
        tmp_path,
        {
            "proc/self/cgroup": "4:cpu,cpuacct:/docker/a\n1:name=systemd:/\n",
            "sys/fs/cgroup/cpu/docker/a/cpu.stat": stat,
            "sys/fs/cgroup/cpu/cpu.stat": "nr_throttled 0\nthrottled_time 0\n",
        },
    )
    assert cgroup_throttled(tmp_path) == {"periods": 3, "time_us": 5000}


def test_no_pressure_without_its_files(tmp_path: Path) -> None:
    assert pressure(write(tmp_path, {"proc/pressure/cpu": "unreadable\n"})) is None


def test_a_text_that_is_no_number_is_left_out(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            f"{CPU}/cpufreq/policy0/scaling_cur_freq": "<unsupported>\n",
            f"{CPU}/cpufreq/policy1/scaling_cur_freq": "1000\n",
        },
    )
    assert state(tmp_path)["clock_khz"] == {"policy1": 1000}


def test_switches_can_be_those_of_another_process(tmp_path: Path) -> None:
    write(tmp_path, {"proc/77/status": "voluntary_ctxt_switches:\t6\n"})
    assert state(tmp_path, process="77")["switches_voluntary"] == 6
    assert state(tmp_path)["switches_voluntary"] is None


def test_programs_are_looked_for_below_the_root_alone(tmp_path: Path) -> None:
    assert find_tool("sh", tmp_path) is None
    write(tmp_path, {"usr/sbin/probe": says({"-a b": "yes"}), "usr/bin/plain": "no program"})
    assert tool_output(tmp_path, "probe", "-a", "b") == "yes"
    assert tool_output(tmp_path, "probe", "-c") is None, "it failed"
    assert tool_output(tmp_path, "plain") is None, "it cannot be run"
    assert find_tool("sh") is not None


def test_a_program_that_hangs_is_ended_with_its_children_and_not_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tools, "_hung", set())
    fifo = tmp_path / "held"
    os.mkfifo(fifo)
    write(tmp_path, {"bin/slow": f"#!/bin/sh\nexec 9>{fifo}\nsleep 600\nsleep 600\n"})
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    start = time.monotonic()
    assert tool_output(tmp_path, "slow", limit_s=1) is None
    assert tool_output(tmp_path, "slow", limit_s=600) is None
    assert time.monotonic() - start < 60
    assert select.select([reader], [], [], 10)[0], "some process still holds the other end"
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_the_first_line_of_a_program_without_end(tmp_path: Path) -> None:
    write(tmp_path, {"bin/stats": "#!/bin/sh\necho one\necho two\nexec sleep 600\n"})
    assert first_line(tmp_path, "stats") == "one"


@pytest.mark.parametrize("make", [raspberry_pi_5, jetson_orin_nano, x86_box])
def test_what_is_read_can_be_sent(tmp_path: Path, make: object) -> None:
    assert callable(make)
    root = make(tmp_path)
    both = [machine(root), state(root)]
    assert json.loads(json.dumps(both)) == both
