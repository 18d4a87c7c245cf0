from __future__ import annotations

from pathlib import Path

import pytest

from prune2deploy.doctor.machine import examine_machine, features_of, memory_limit

PI5 = """\
processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1

Model\t\t: Raspberry Pi 5 Model B Rev 1.0
"""
SERVER = """\
processor\t: 0
model name\t: Some Xeon
flags\t\t: fpu avx avx2 avx512f avx512_vnni amx_tile amx_bf16
"""


def files(root: Path, contents: dict[str, str]) -> Path:
    for name, text in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_features_of_an_arm_board() -> None:
    assert features_of(PI5) == {
        "NEON": True,
        "FP16": True,
        "dotprod": True,
        "i8mm": False,
        "BF16": False,
        "SVE": False,
    }


def test_features_of_a_server() -> None:
    assert features_of(SERVER) == {
        "AVX2": True,
        "AVX-512": True,
        "VNNI": True,
        "AVX512_BF16": False,
        "AMX": True,
    }


def test_a_system_without_cpuinfo_has_no_known_features() -> None:
    assert features_of("") == {}


def test_an_arm_board_is_named_by_its_cores(tmp_path: Path) -> None:
    root = files(
        tmp_path,
        {"proc/cpuinfo": PI5, "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0"},
    )
    machine = examine_machine(root)
    assert machine.cpu == "Cortex-A76"
    assert machine.board == "Raspberry Pi 5 Model B Rev 1.0"


def test_big_and_little_cores_are_both_named(tmp_path: Path) -> None:
    text = PI5 + PI5.replace("0xd0b", "0xd05") + PI5.replace("0xd0b", "0xfff")
    machine = examine_machine(files(tmp_path, {"proc/cpuinfo": text}))
    assert machine.cpu == "Cortex-A76 + Cortex-A55 + Arm core 0xfff"


def test_what_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    machine = examine_machine(tmp_path)
    assert machine.cpu is None
    assert machine.board is None
    assert machine.memory_bytes is None
    assert machine.memory_limit_bytes is None
    assert machine.core_quota is None


def test_limits_of_a_container(tmp_path: Path) -> None:
    root = files(
        tmp_path,
        {
            "proc/cpuinfo": SERVER,
            "proc/meminfo": "MemTotal:  16000000 kB\n",
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/memory.max": "4000000000\n",
        },
    )
    machine = examine_machine(root)
    assert machine.cpu == "Some Xeon"
    assert machine.core_quota == 1.5
    assert machine.memory_bytes == 16_000_000 * 1024
    assert machine.memory_limit_bytes == 4_000_000_000


def test_a_jetson_is_known_by_its_release_file(tmp_path: Path) -> None:
    machine = examine_machine(files(tmp_path, {"etc/nv_tegra_release": "# R36"}))
    assert machine.is_jetson
    assert machine.gpus == ("the Jetson's own",)


@pytest.mark.parametrize(
    ("contents", "limit"),
    [
        ({}, None),
        # The smallest limit of all groups above counts.
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/memory.max": "max\n",
                "sys/fs/cgroup/a/memory.max": "1000\n",
                "sys/fs/cgroup/a/b/memory.max": "2000\n",
            },
            1000,
        ),
        # Version 1: its own group, and a number that means "none".
        (
            {
                "proc/self/cgroup": "4:memory:/x\n1:cpu,cpuacct:/y\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "5000\n",
            },
            5000,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/x\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            },
            None,
        ),
    ],
)
def test_memory_limits(tmp_path: Path, contents: dict[str, str], limit: int | None) -> None:
    assert memory_limit(files(tmp_path, contents)) == limit
