"""What the boards' programs print, as recorded, and what is read from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fake_machines import JETSON_CLOCKS, PMIC, POWER_MODES, SMI_NEW, SMI_OLD, write

from prune2deploy.probe import jetson, nvidia, power
from prune2deploy.probe import raspberry_pi as pi


def test_vcgencmd() -> None:
    assert pi.parse_throttled("throttled=0x50005\n") == 0b0101_0000_0000_0000_0101
    assert pi.parse_throttled("throttled=0x0") == 0
    assert pi.parse_temperature("temp=62.3'C\n") == 62.3
    assert pi.parse_clock("frequency(48)=1800000000") == 1_800_000_000
    assert pi.parse_clock("frequency(0)=2400033792") == 2_400_033_792
    assert pi.parse_volts("volt=0.8600V") == 0.86
    rails = pi.parse_pmic(PMIC)
    assert rails == {
        "3V7_WL_SW": pytest.approx(0.37),
        "DDR_VDD2": pytest.approx(0.55),
        "VDD_CORE": pytest.approx(1.8),
    }


@pytest.mark.parametrize("text", [None, "", "VCHI initialization failed\n", "error=1"])
def test_what_vcgencmd_cannot_tell_is_none(text: str | None) -> None:
    parsers = (
        pi.parse_throttled,
        pi.parse_temperature,
        pi.parse_clock,
        pi.parse_volts,
        pi.parse_pmic,
    )
    assert [parse(text) for parse in parsers] == [None] * 5


@pytest.mark.parametrize(
    ("text", "l4t", "jetpack"),
    [
        ("# R32 (release), REVISION: 7.4, GCID: 33514132, BOARD: t210ref", "32.7.4", "4.6.x"),
        ("# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref", "35.4.1", "5.1.2"),
        ("# R36 (release), REVISION: 4.0, GCID: 37537400, BOARD: generic", "36.4.0", "6.1"),
        ("# R36 (release), REVISION: 4.7, GCID: 1, BOARD: generic", "36.4.7", "6.2.1"),
        ("# R39 (release), REVISION: 2.0, GCID: 1", "39.2.0", "7.2"),
        ("# R36 (release), REVISION: 4.99, GCID: 1", "36.4.99", None),
        ("something else", None, None),
    ],
)
def test_releases(text: str, l4t: str | None, jetpack: str | None) -> None:
    assert jetson.parse_release(text) == l4t
    assert jetson.jetpack(l4t) == jetpack


def test_nvpmodel() -> None:
    assert jetson.parse_power_mode("NV Power Mode: MAXN\n0") == {"name": "MAXN", "id": 0}
    warned = "NVPM WARN: fan mode is not set!\nNV Power Mode: MODE_15W_6CORE\n2\n"
    assert jetson.parse_power_mode(warned) == {"name": "MODE_15W_6CORE", "id": 2}
    assert jetson.parse_power_mode("NVPM ERROR: no config\n") is None
    assert jetson.parse_power_modes(POWER_MODES) == [
        {"name": "15W", "id": 0, "default": True},
        {"name": "MAXN_SUPER", "id": 2, "default": False},
    ]
    assert jetson.parse_power_modes("") is None


def test_jetson_clocks() -> None:
    units = jetson.parse_clocks(JETSON_CLOCKS)
    assert units is not None
    assert sorted(units) == ["EMC", "GPU", "cpu0", "cpu4"]
    assert units["cpu0"]["Governor"] == "schedutil"
    assert units["cpu0"]["CurrentFreq"] == 1_728_000
    assert units["GPU"]["MaxFreq"] == 1_020_000_000
    assert jetson.pinned(units) == "pinned", "cpu4 is off, EMC is held by its override"
    assert jetson.pinned(jetson.parse_clocks("Error: run as root")) is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("FreqOverride=1", "FreqOverride=0"),
        ("GPU MinFreq=1020000000", "GPU MinFreq=306000000"),
        ("cpu4: Online=0", "cpu4: Online=1"),
    ],
)
def test_one_free_clock_is_enough_to_be_free(old: str, new: str) -> None:
    assert old in JETSON_CLOCKS
    assert jetson.pinned(jetson.parse_clocks(JETSON_CLOCKS.replace(old, new))) == "free"


ORIN_6 = (
    "RAM 4722/7844MB (lfb 1x512kB) SWAP 12/3922MB (cached 1MB) CPU [23%@1510,off,0%@729] "
    "EMC_FREQ 2%@1866 GR3D_FREQ 10%@1300 NVDEC off APE 200 cpu@48.5C tj@-2.25C "
    "VDD_IN 3650mW/3700mW VDD_CPU_GPU_CV 480mW/490mW"
)
ORIN_7 = (
    "07-25-2026 09:08:28 RAM 20642/62817MB (lfb 1x2MB) CPU [23%@2201,10%@2201] "
    "EMC_FREQ 3%@3199 GR3D_FREQ 12%@[1300,1300] NVENC0 off APE 174 cpu@52.968C/52.968C "
    "gpu@47.625C/47.625C VDD_GPU_SOC 5139mW/5140mW/5141mW VDD_CPU_CV 3268mW/3268mW/3268mW "
    "VIN_SYS_5V0 5500mW/5500mW/5500mW"
)
NANO = (
    "RAM 1500/3964MB (lfb 2x4MB) IRAM 0/252kB(lfb 252kB) CPU [5%,0%,off,off] EMC_FREQ 0% "
    "GR3D_FREQ 37% PLL@25C CPU@28.5C PMIC@100C GPU@27C thermal@27.75C POM_5V_IN 3650/3660 "
    "POM_5V_GPU 120/130"
)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            ORIN_6,
            {
                "ram_mb": (4722, 7844),
                "swap_mb": (12, 3922),
                "cpus": [(23, 1510), None, (0, 729)],
                "emc": {"load": 2, "mhz": 1866},
                "gpu": {"load": 10, "mhz": [1300]},
                "temperature_c": {"cpu": 48.5, "tj": -2.25},
                "power_mw": {"VDD_IN": (3650, 3700), "VDD_CPU_GPU_CV": (480, 490)},
            },
        ),
        (
            ORIN_7,
            {
                "ram_mb": (20642, 62817),
                "swap_mb": None,
                "cpus": [(23, 2201), (10, 2201)],
                "emc": {"load": 3, "mhz": 3199},
                "gpu": {"load": 12, "mhz": [1300, 1300]},
                "temperature_c": {"cpu": 52.968, "gpu": 47.625},
                "power_mw": {
                    "VDD_GPU_SOC": (5139, 5140),
                    "VDD_CPU_CV": (3268, 3268),
                    "VIN_SYS_5V0": (5500, 5500),
                },
            },
        ),
        (
            NANO,
            {
                "ram_mb": (1500, 3964),
                "swap_mb": None,
                "cpus": [(5, None), (0, None), None, None],
                "emc": {"load": 0, "mhz": None},
                "gpu": {"load": 37, "mhz": None},
                "temperature_c": {"PLL": 25, "CPU": 28.5, "PMIC": 100, "GPU": 27, "thermal": 27.75},
                "power_mw": {"POM_5V_IN": (3650, 3660), "POM_5V_GPU": (120, 130)},
            },
        ),
        (
            "GR3D_FREQ @[1000,1000,1000]",  # Thor: no load
            {
                "ram_mb": None,
                "swap_mb": None,
                "cpus": None,
                "emc": None,
                "gpu": {"load": None, "mhz": [1000, 1000, 1000]},
                "temperature_c": None,
                "power_mw": None,
            },
        ),
    ],
    ids=["JetPack 6", "JetPack 7", "Nano", "Thor"],
)
def test_tegrastats(line: str, expected: dict[str, Any]) -> None:
    assert jetson.parse_tegrastats(line) == expected


def test_tegrastats_fields_are_found_in_any_order() -> None:
    parts = ["RAM 1/2MB (lfb 1x4MB)", "CPU [1%@9,off]", "EMC_FREQ 2%@3", "a@4C", "VDD_IN 5/6"]
    forward = jetson.parse_tegrastats(" ".join(parts))
    assert jetson.parse_tegrastats(" ".join(reversed(parts))) == forward
    assert forward["power_mw"] == {"VDD_IN": (5, 6)}


def test_tegrastats_gives_the_module_s_power(tmp_path: Path) -> None:
    write(tmp_path, {"usr/bin/tegrastats": f"#!/bin/sh\necho '{ORIN_6}'\nexec sleep 600\n"})
    assert jetson.tegrastats_watts(tmp_path) == 3.65
    write(tmp_path, {"usr/bin/tegrastats": f"#!/bin/sh\necho '{ORIN_7}'\nexec sleep 600\n"})
    assert jetson.tegrastats_watts(tmp_path) == pytest.approx(5.139 + 3.268 + 5.5)


def test_nvidia_smi_of_newer_and_older_drivers() -> None:
    (new,) = map(nvidia.gpu_facts, nvidia.parse_smi(SMI_NEW))
    assert new == {
        "name": "NVIDIA GeForce RTX 3060",
        "clock_mhz": 1837,
        "memory_clock_mhz": 7300,
        "temperature_c": 54,
        "power_w": 71.25,
        "throttle_reasons": "0x0000000000000004",
    }
    (old,) = map(nvidia.gpu_facts, nvidia.parse_smi(SMI_OLD))
    assert old == {**new, "power_w": None}
    units_left_out = SMI_NEW.replace("1837 MHz", "1837").replace("71.25 W", "71.25")
    assert [*map(nvidia.gpu_facts, nvidia.parse_smi(units_left_out))] == [new]
    message = 'Field "clocks_event_reasons.active" is not a valid field to query.'
    assert nvidia.parse_smi(message) == []
    assert nvidia.parse_smi(None) == []


def test_rapl_counters_that_wrap() -> None:
    before, after = {"package-0": 1_000_000, "dram": 900}, {"package-0": 3_500_000, "dram": 400}
    ranges = {"package-0": 10_000_000, "dram": 1_000}
    assert power.rapl_joules(before, after, ranges) == pytest.approx(2.5 + 500e-6)
    assert power.rapl_joules(before, after, {**ranges, "dram": None}) is None
    assert power.rapl_joules(before, {**after, "dram": None}, ranges) is None
    assert power.rapl_joules({}, {}, {}) is None


DEVICE = "sys/bus/i2c/devices/1-0040"


def rail(channel: int, label: str, volts: float, amps: float) -> dict[str, str]:
    folder = f"{DEVICE}/hwmon/hwmon3"
    return {
        f"{folder}/in{channel}_label": label + "\n",
        f"{folder}/in{channel}_input": f"{round(volts * 1000)}\n",
        f"{folder}/curr{channel}_input": f"{round(amps * 1000)}\n",
    }


def test_ina3221_of_jetpack_5_and_6_without_a_total(tmp_path: Path) -> None:
    files = {f"{DEVICE}/name": "ina3221\n", **rail(1, "VDD_GPU_SOC", 19, 0.5)}
    files |= rail(2, "VDD_NVENC", 5, 0.2) | rail(3, "NC", 5, 7) | rail(7, "sum", 5, 7)
    rails = power.ina3221_rails(write(tmp_path, files))
    assert rails == {"VDD_GPU_SOC": pytest.approx(9.5), "VDD_NVENC": pytest.approx(1.0)}
    assert power.total_watts(rails) == pytest.approx(10.5)
    (tmp_path / f"{DEVICE}/hwmon/hwmon3/curr2_input").unlink()
    assert power.ina3221_watts(tmp_path) is None, "a sum without one of its parts is no sum"


def test_ina3221_of_jetpack_4(tmp_path: Path) -> None:
    folder = f"{DEVICE}/iio:device0"
    files = {
        f"{DEVICE}/name": "ina3221x\n",
        f"{folder}/rail_name_0": "POM_5V_IN\n",
        f"{folder}/in_power0_input": "3650\n",
        f"{folder}/rail_name_1": "POM_5V_GPU\n",
        f"{folder}/in_power1_input": "120\n",
        "sys/bus/i2c/devices/2-0050/name": "eeprom\n",
    }
    root = write(tmp_path, files)
    assert power.ina3221_rails(root) == {"POM_5V_IN": 3.65, "POM_5V_GPU": 0.12}
    assert power.ina3221_watts(root) == 3.65


def test_no_rails_without_a_sensor(tmp_path: Path) -> None:
    write(tmp_path, {"sys/bus/i2c/devices/2-0050/name": "eeprom\n"})
    assert power.ina3221_rails(tmp_path) is None
    assert power.ina3221_watts(tmp_path) is None
