"""From facts that a device might tell to sentences. What it does not tell is never found."""

from __future__ import annotations

import re
from typing import Any

import pytest

from prune2deploy.devices import LocalSettings, SshSettings
from prune2deploy.devices.check import Check, check_facts
from prune2deploy.devices.settings import CommonSettings

ORT = {"versions": {"onnxruntime": "1.31.1", "numpy": "2.1"}, "signal": None, "message": None}
NO_TORCH = {
    "versions": None,
    "signal": None,
    "message": "/usr/bin/python3 cannot import the runtime (No module named 'torch'). Install it "
    "with: /usr/bin/python3 -m pip install torch",
}
NO_TENSORRT = {"versions": None, "signal": None, "message": "cannot import TensorRT"}

PI = {
    "kind": "raspberry_pi",
    "board": "Raspberry Pi 5 Model B",
    "architecture": "aarch64",
    "kernel": "6.6.20",
    "cpu_parts": ["0xd0b"],
    "cpu_count": 4,
    "cpu_flags": ["fp", "asimd", "asimddp"],
    "cpus_allowed": [0, 1, 2, 3],
    "memory_bytes": 8245000 * 1024,
    "os": "Debian 12",
}
JETSON = {
    "kind": "jetson",
    "board": "NVIDIA Jetson Orin Nano",
    "architecture": "aarch64",
    "cpu_parts": ["0xd42"],
    "cpu_count": 6,
    "l4t": "36.4.3",
    "jetpack": "6.2",
    "power_modes": [
        {"name": "15W", "id": 0, "default": True},
        {"name": "MAXN_SUPER", "id": 2, "default": False},
    ],
}
X86 = {
    "kind": "x86",
    "cpu_model": "Intel(R) Xeon(R)",
    "cpu_flags": ["avx2", "avx512f", "avx512_vnni", "amx_tile"],
    "cpu_count": 8,
    "cpus_allowed": [2, 3],
    "memory_bytes": 16_000_000_000,
}
SSH = SshSettings(kind="ssh", host="board")


def facts(machine: dict[str, Any], **state: Any) -> dict[str, Any]:
    return {
        "python": "3.11.2",
        "executable": "/usr/bin/python3",
        "machine": machine,
        "state": state,
        "runtimes": {"onnxruntime": ORT, "torch": NO_TORCH},
        "disk_free_bytes": 20_000_000_000,
    }


def check(told: dict[str, Any], settings: CommonSettings = SSH) -> Check:
    return check_facts("board", settings, told)


def only_finding(told: dict[str, Any], settings: CommonSettings = SSH) -> tuple[str, str]:
    """Return what is said of the only finding, and its commands."""
    (finding,) = check(told, settings).findings
    assert finding.why
    return f"{finding.found} {finding.advice}", "\n".join(finding.commands)


@pytest.mark.parametrize(
    ("machine", "state", "expected"),
    [
        (
            PI,
            {},
            "Raspberry Pi 5 Model B, 4 x Cortex-A76, dotprod, 8 GB memory, Debian 12",
        ),
        (
            JETSON,
            {"power_mode": {"name": "15W", "id": 0}, "jetson_clocks": "free"},
            "Jetson Orin Nano, JetPack 6.2 (L4T 36.4.3), power mode 15W, clocks free, "
            "6 x Cortex-A78AE",
        ),
        (
            {**JETSON, "jetpack": None, "l4t": "99.1"},
            {},
            "Jetson Orin Nano, L4T 99.1, power mode unknown, 6 x Cortex-A78AE",
        ),
        (
            X86,
            {},
            "x86: Intel(R) Xeon(R), AVX-512, VNNI, AMX, 2 of 8 CPUs, 15 GB memory",
        ),
        (
            {**X86, "cpu_flags": ["avx2"], "gpu": "RTX 3060", "cpus_allowed": None},
            {},
            "x86: Intel(R) Xeon(R), AVX2, 8 CPUs, GPU RTX 3060, 15 GB memory",
        ),
        (
            {"kind": "arm", "cpu_parts": ["0xd05", "0xd0b"], "cpu_count": 8},
            {},
            "8 CPUs (Cortex-A55 + Cortex-A76)",
        ),
        ({"kind": "x86"}, {}, "x86: unknown processor, number of CPUs unknown"),
        ({"architecture": "riscv64", "cpu_count": 1}, {}, "riscv64, 1 CPU, 1 CPU"),
    ],
    ids=["pi", "jetson", "new jetson", "server", "pc", "big.LITTLE", "nothing known", "other"],
)
def test_a_device_is_told_in_one_line(
    machine: dict[str, Any], state: dict[str, Any], expected: str
) -> None:
    assert check(facts(machine, **state)).description == expected


def test_a_quiet_device_has_no_findings() -> None:
    quiet = check(
        facts(
            {**PI, "turbo": None, "cpu_quota": {"cores": None}},
            governor={"policy0": "performance"},
            temperature_c={"thermal_zone0 cpu-thermal": 48.0},
            cooling_state={"cooling_device0 pwm-fan": 3, "cooling_device1 cpufreq-cpu0": 0},
            pi_throttled=0,
            overcurrent_count={"oc1": 0},
            load_average=[0.4, 3.0, 3.0],
            memory_available_bytes=7_000_000_000,
            swap_pages={"in": 5, "out": 9},
            pressure={"cpu": 1.0, "memory": 0.0, "io": None},
        )
    )
    assert quiet.findings == ()
    assert quiet.can_measure


@pytest.mark.parametrize("machine", [PI, JETSON, X86, {}], ids=["pi", "jetson", "x86", "none"])
def test_what_is_not_told_is_not_found(machine: dict[str, Any]) -> None:
    names = "governor temperature_c pi_throttled power_mode jetson_clocks pressure swap_pages"
    told = {**facts(machine, **dict.fromkeys(names.split())), "disk_free_bytes": None}
    assert check(told).findings == ()
    assert check(facts(machine)).findings == ()


UNDER_VOLTAGE, CAPPED, SOFT_LIMIT = 1, 2, 8


@pytest.mark.parametrize(
    ("machine", "state", "said", "command"),
    [
        (PI, {"pi_throttled": UNDER_VOLTAGE}, "voltage is too low now", "vcgencmd get_throttled"),
        (PI, {"pi_throttled": UNDER_VOLTAGE << 16}, "too low at some time since", "vcgencmd"),
        (PI, {"pi_throttled": CAPPED}, "clock capped now", "sudo reboot"),
        (PI, {"pi_throttled": SOFT_LIMIT << 16}, "temperature limit reached since", "reboot"),
        (PI, {"temperature_c": {"z cpu": 76.0}}, "hot: 76 °C at z cpu; at about 80 °C", ""),
        (PI, {"temperature_c": {"z": 50.0}, "pi_temperature_c": 81.2}, "hot: 81 °C", ""),
        (X86, {"temperature_c": {"z pkg": 86.0}}, "hot: 86 °C", ""),
        (X86, {"cooling_state": {"cooling_device0 Processor": 2}}, "slows the processor down", ""),
        (
            PI,
            {"governor": {"policy0": "ondemand"}},
            "governor is ondemand, not performance",
            "echo performance | sudo tee /sys/devices/system/cpu/cpufreq/policy*/scaling_governor",
        ),
        (
            X86,
            {"governor": {"cpu0": "performance", "cpu1": "powersave"}},
            "governor is powersave on cpu1",
            "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor",
        ),
        (
            {**PI, "available_governors": {"policy0": ["ondemand"]}},
            {"governor": {"policy0": "ondemand"}},
            "has no governor 'performance'",
            "",
        ),
        (
            {**X86, "turbo": True},
            {},
            "Turbo is on",
            "echo 1 | sudo tee /sys/devices/system/cpu/intel_pstate/no_turbo",
        ),
        (
            {**X86, "turbo": True, "cpu_model": "AMD EPYC"},
            {},
            "Turbo is on",
            "echo 0 | sudo tee /sys/devices/system/cpu/cpufreq/boost",
        ),
        (X86, {"load_average": [4.5, 0, 0]}, "a load of 4.5 in the last minute on 8 CPUs", "top"),
        (
            X86,
            {"memory_available_bytes": 300_000_000, "swap_pages": {"in": 1, "out": 77}},
            "0.3 GB of memory are free, 77 pages were swapped out",
            "sudo swapoff -a && sudo swapon -a",
        ),
        (X86, {"pressure": {"memory": 2.5}}, "waited for memory in 2.5 %", "free -m"),
        ({**X86, "cpu_quota": {"cores": 1.5}}, {}, "1.5 CPUs' worth.*--cpuset-cpus", ""),
        (JETSON, {"jetson_clocks": "free"}, "clocks are free", "sudo jetson_clocks"),
        (JETSON, {"overcurrent_count": {"oc1": 2, "oc3": 41}}, "current 43 times", ""),
        (
            {**PI, "architecture": "armv7l"},
            {},
            "32-bit one .armv7l.*Raspberry Pi Imager",
            "",
        ),
    ],
)
def test_what_disturbs_is_found_with_what_mends_it(
    machine: dict[str, Any], state: dict[str, Any], said: str, command: str
) -> None:
    text, commands = only_finding(facts(machine, **state))

    assert re.search(said, text), text
    assert command in commands
    assert bool(command) == bool(commands)


def test_a_disk_that_is_almost_full() -> None:
    text, commands = only_finding({**facts(PI), "disk_free_bytes": 120_000_000})
    assert "120 MB are free" in text
    assert "du -sh ~/.cache/prune2deploy" in commands


def test_a_32_bit_system_under_a_64_bit_kernel() -> None:
    text, _ = only_finding({**facts(PI), "python_bits": 32})
    assert "32-bit one (aarch64 kernel, 32-bit Python)" in text


def test_a_64_bit_system_is_no_finding() -> None:
    assert check({**facts(PI), "python_bits": 64}).findings == check(facts(PI)).findings


MAXN = {"name": "MAXN_SUPER", "id": 2}
LOW = {"name": "15W", "id": 0}


@pytest.mark.parametrize(
    ("mode", "wanted", "said", "command"),
    [
        (LOW, None, "15W, which is not its fastest", "sudo nvpmodel -m 2"),
        (MAXN, "15W", "is MAXN_SUPER; devices.yaml asks for 15W", "sudo nvpmodel -m 0"),
        (LOW, "25W", "asks for 25W. Ids differ", "nvpmodel -p --verbose\nsudo nvpmodel -m ID"),
        (None, "15W", "asks for power mode 15W, and the device does not tell", "nvpmodel -q"),
    ],
)
def test_a_power_mode_that_is_not_the_wanted_one(
    mode: dict[str, Any] | None, wanted: str | None, said: str, command: str
) -> None:
    settings = SSH.model_copy(update={"power_mode": wanted})
    text, commands = only_finding(facts(JETSON, power_mode=mode), settings)
    assert said in text
    assert commands == command


@pytest.mark.parametrize(("mode", "wanted"), [(MAXN, None), (LOW, "15W")])
def test_the_wanted_power_mode_is_no_finding(mode: dict[str, Any], wanted: str | None) -> None:
    settings = SSH.model_copy(update={"power_mode": wanted})
    assert check(facts(JETSON, power_mode=mode), settings).findings == ()


def test_on_a_jetson_the_clocks_are_told_of_and_not_the_governor() -> None:
    told = facts(JETSON, jetson_clocks="pinned", governor={"policy0": "schedutil"})
    assert check(told).findings == ()


def runtimes(machine: dict[str, Any], **found: Any) -> dict[str, Any]:
    return {**facts(machine), "runtimes": found}


def test_runtimes_have_versions_or_how_to_get_them() -> None:
    first, second = check(facts(PI)).runtimes
    assert (first.versions, first.advice) == ("onnxruntime 1.31.1, numpy 2.1", None)
    assert second.versions is None
    assert "pip install torch" in str(second.advice)


@pytest.mark.parametrize(
    ("machine", "name", "found", "advice"),
    [
        (PI, "tensorrt", NO_TENSORRT, "needs an NVIDIA GPU"),
        (JETSON, "tensorrt", NO_TENSORRT, "comes with JetPack.*devices setup board"),
        (JETSON, "tensorrt_rtx", NO_TENSORRT, "exists for x86"),
        ({**X86, "gpu": "RTX"}, "tensorrt", NO_TENSORRT, "cannot import TensorRT"),
        (PI, "torch", {"versions": None, "signal": 4, "message": "it crashed"}, "signal SIGILL"),
    ],
)
def test_a_missing_runtime(machine: dict[str, Any], name: str, found: Any, advice: str) -> None:
    (runtime,) = check(runtimes(machine, **{name: found})).runtimes

    assert re.search(advice, str(runtime.advice)), runtime.advice


def test_without_its_runtime_nothing_can_be_measured() -> None:
    told = runtimes(PI, onnxruntime=NO_TORCH, torch=ORT)
    found = check(told)
    (text,) = found.obstacles
    assert not found.can_measure
    assert "ONNX Runtime is missing" in text
    assert "Install it with: prune2deploy devices setup board" in text
    assert "pip install" not in text
    assert "Or set `runtime: torch`" in text
    (text,) = check(told, LocalSettings()).obstacles
    assert "-m pip install" in text


@pytest.mark.parametrize(
    ("python", "can"), [("3.6.9", False), ("3.7.17", False), ("3.8.0", True), ("3.12.1", True)]
)
def test_an_old_python(python: str, can: bool) -> None:
    found = check({**facts(PI), "python": python})
    assert found.can_measure == can
    assert all(f"Python {python} is too old" in text for text in found.obstacles)
