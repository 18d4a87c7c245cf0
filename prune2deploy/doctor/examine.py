"""What works here, what does not, and the command that changes it."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass
from pathlib import Path

from prune2deploy import __version__
from prune2deploy.doctor.machine import Machine, examine_machine
from prune2deploy.doctor.packages import Package, find_packages


@dataclass(frozen=True)
class Ability:
    """Something that prune2deploy may use here."""

    name: str
    usable: bool
    detail: str


@dataclass(frozen=True)
class Diagnosis:
    """Everything `prune2deploy doctor` tells."""

    version: str
    python: str
    machine: Machine
    packages: tuple[Package, ...]
    runtimes: tuple[Ability, ...]
    targets: tuple[Ability, ...]

    @property
    def healthy(self) -> bool:
        """Whether all that is always needed works."""
        return all(package.usable for package in self.packages if package.extra is None)

    @property
    def remedies(self) -> tuple[tuple[str, str], ...]:
        """What is wrong or left out, and the command that brings it."""
        return tuple(
            (_why_not(package), _remedy(package, self.machine))
            for package in self.packages
            if not package.usable and (package.name != "tensorrt" or self.machine.gpus)
        )


def examine(root: Path = Path("/")) -> Diagnosis:
    """Look at this Python, its packages and this machine; nothing is changed.

    Args:
        root: where proc, sys and etc are.
    """
    machine = examine_machine(root)
    packages = tuple(find_packages())
    runtimes = runtimes_of({package.name: package for package in packages}, machine)
    local = next(runtime for runtime in runtimes if runtime.name == "ONNX Runtime")
    return Diagnosis(
        version=__version__,
        python=f"{platform.python_version()} at {sys.executable}",
        machine=machine,
        packages=packages,
        runtimes=runtimes,
        targets=(
            Ability(
                "local",
                local.usable,
                "this machine" if local.usable else "needs ONNX Runtime to measure",
            ),
        ),
    )


def runtimes_of(packages: dict[str, Package], machine: Machine) -> tuple[Ability, ...]:
    """Return what can compute here, from the packages and the machine."""
    return (
        _torch_cpu(packages["torch"]),
        _torch_gpu(packages["torch"], machine),
        _onnxruntime(packages["onnxruntime"]),
        _tensorrt(packages["tensorrt"], machine),
    )


def _torch_cpu(torch: Package) -> Ability:
    if not torch.usable:
        return Ability("PyTorch on the CPU", False, _why_not(torch))
    facts = torch.facts
    return Ability(
        "PyTorch on the CPU", True, f"{facts['threads']} threads, {facts['instructions']}"
    )


def _torch_gpu(torch: Package, machine: Machine) -> Ability:
    name = "PyTorch on a GPU"
    if not torch.usable:
        return Ability(name, False, _why_not(torch))
    if torch.facts["gpus"]:
        return Ability(name, True, ", ".join(torch.facts["gpus"]))
    if not machine.gpus:
        return Ability(name, False, "no GPU was found")
    gpus = ", ".join(machine.gpus)
    if torch.facts["cuda_build"] is None:
        return Ability(name, False, f"{gpus}: this build of PyTorch has no CUDA; install one")
    return Ability(
        name, False, f"{gpus}: CUDA {torch.facts['cuda_build']} does not start; check the driver"
    )


def _onnxruntime(package: Package) -> Ability:
    if not package.usable:
        return Ability("ONNX Runtime", False, _why_not(package))
    # Azure sends the work to a service; it is part of every build and computes nothing here.
    here = [name for name in package.facts["providers"] if not name.startswith("Azure")]
    names = [name.removesuffix("ExecutionProvider") for name in here]
    return Ability("ONNX Runtime", True, ", ".join(names))


def _tensorrt(package: Package, machine: Machine) -> Ability:
    if package.usable:
        return Ability("TensorRT", True, f"version {package.version}")
    if not machine.gpus:
        return Ability("TensorRT", False, "no NVIDIA GPU was found")
    return Ability("TensorRT", False, _why_not(package))


def _remedy(package: Package, machine: Machine) -> str:
    if package.name == "tensorrt" and machine.is_jetson:
        return "comes with JetPack: python3 -m venv --system-site-packages .venv"
    again = " --force-reinstall" if package.version else ""
    return f"{sys.executable} -m pip install{again} '{package.name}{package.wanted}'"


def _why_not(package: Package) -> str:
    return f"{package.name} {package.problem or 'is not installed'}"
