from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from typer.testing import CliRunner

import prune2deploy.doctor
from prune2deploy.cli import app
from prune2deploy.doctor import Diagnosis, Machine, Package
from prune2deploy.doctor.examine import runtimes_of

MACHINE = Machine(
    cpu="Some [fast] CPU",
    board=None,
    architecture="x86_64",
    kernel="6.1",
    features={"AVX2": True, "AMX": False},
    cores=4,
    core_quota=1.5,
    memory_bytes=16_000_000_000,
    memory_limit_bytes=4_000_000_000,
    disk_free_bytes=9_000_000_000,
    gpus=(),
    is_jetson=False,
)
CPU_TORCH = {"threads": 4, "instructions": "AVX2", "cuda_build": None, "gpus": []}


def package(name: str, version: str | None = "1.0", **changes: Any) -> Package:
    return replace(Package(name, ">=1", None, version), **changes)


def packages(**changes: Package) -> dict[str, Package]:
    usual = {
        "torch": package("torch", facts=CPU_TORCH),
        "onnxruntime": package(
            "onnxruntime", facts={"providers": ["AzureExecutionProvider", "CPUExecutionProvider"]}
        ),
        "tensorrt": package("tensorrt", None, extra="tensorrt"),
    }
    return {**usual, **changes}


def runtime(name: str, machine: Machine = MACHINE, **changes: Package) -> tuple[bool, str]:
    found = {one.name: one for one in runtimes_of(packages(**changes), machine)}
    return found[name].usable, found[name].detail


GPU = replace(MACHINE, gpus=("RTX 1",))


def test_a_plain_machine_computes_on_the_cpu() -> None:
    assert runtime("PyTorch on the CPU") == (True, "4 threads, AVX2")
    assert runtime("PyTorch on a GPU") == (False, "no GPU was found")
    assert runtime("ONNX Runtime") == (True, "CPU")
    assert runtime("TensorRT") == (False, "no NVIDIA GPU was found")


def test_a_gpu_that_this_pytorch_cannot_use_is_explained() -> None:
    assert "no CUDA" in runtime("PyTorch on a GPU", GPU)[1]
    torch = package("torch", facts={**CPU_TORCH, "cuda_build": "13.0"})
    assert "check the driver" in runtime("PyTorch on a GPU", GPU, torch=torch)[1]
    torch = package("torch", facts={**CPU_TORCH, "cuda_build": "13.0", "gpus": ["RTX 1"]})
    assert runtime("PyTorch on a GPU", GPU, torch=torch) == (True, "RTX 1")


def test_a_broken_package_is_not_usable_and_says_why() -> None:
    broken = package("onnxruntime", problem="importing it ends Python with SIGILL")
    assert runtime("ONNX Runtime", onnxruntime=broken) == (
        False,
        "onnxruntime importing it ends Python with SIGILL",
    )
    assert runtime("PyTorch on the CPU", torch=package("torch", None)) == (
        False,
        "torch is not installed",
    )


def diagnosis(machine: Machine = MACHINE, **changes: Package) -> Diagnosis:
    found = packages(**changes)
    return Diagnosis(
        version="9.9",
        python="3.11.0 at /python",
        machine=machine,
        packages=tuple(found.values()),
        runtimes=runtimes_of(found, machine),
        targets=(),
    )


def test_remedies_are_commands_for_what_is_missing_and_wanted() -> None:
    assert diagnosis().remedies == ()
    (only,) = diagnosis(torch=package("torch", None)).remedies
    assert only[0] == "torch is not installed"
    assert only[1].endswith("-m pip install 'torch>=1'")
    (only,) = diagnosis(torch=package("torch", problem="too old: >=1 is needed")).remedies
    assert "--force-reinstall" in only[1]


def test_tensorrt_is_offered_where_there_is_a_gpu_for_it() -> None:
    (only,) = diagnosis(GPU).remedies
    assert only[1].endswith("pip install 'tensorrt>=1'")
    (only,) = diagnosis(replace(GPU, is_jetson=True)).remedies
    assert "JetPack" in only[1]


def test_only_what_is_always_needed_makes_it_unhealthy() -> None:
    assert diagnosis().healthy
    assert not diagnosis(torch=package("torch", None)).healthy


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch) -> Callable[[Diagnosis], tuple[int, str]]:
    def run(found: Diagnosis) -> tuple[int, str]:
        monkeypatch.setattr(prune2deploy.doctor, "examine", lambda: found)
        result = CliRunner().invoke(app, ["doctor"])
        return result.exit_code, result.stdout

    return run


def test_the_command_prints_everything(doctor: Callable[[Diagnosis], tuple[int, str]]) -> None:
    code, text = doctor(diagnosis())
    assert code == 0
    for shown in (
        "prune2deploy 9.9, Python 3.11.0",
        "Some [fast] CPU",
        "4, limited to 1.5 by a cgroup",
        "16.0 GB, limited to 4.0 GB by a cgroup",
        "yes  fp32 and int8 inference",
        "not installed (optional: tensorrt)",
        "All that is needed works.",
    ):
        assert shown in text


def test_something_missing_gives_exit_code_1_and_the_command(
    doctor: Callable[[Diagnosis], tuple[int, str]],
) -> None:
    code, text = doctor(diagnosis(torch=package("torch", problem="[Errno 2] no libgomp")))
    assert code == 1
    assert "[Errno 2] no libgomp" in text
    assert "pip install --force-reinstall 'torch>=1'" in text
    assert "Something needed is missing." in text
