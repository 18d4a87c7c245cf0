"""PyTorch itself, for programs that torch.export wrote (.pt2)."""

from __future__ import annotations

import os
import sys
from typing import Any, Callable

from .inputs import fixed_shape, output_facts, random_array
from .job import Refusal
from .placing import thread_affinities


class TorchRuntime:
    """One exported program in PyTorch on the CPU. After open(), run() is one inference."""

    def __init__(self, model: dict[str, str], job: dict[str, Any], cpus: list[int] | None) -> None:
        self.model, self.job, self.cpus = model, job, cpus
        self.run: Callable[[], None]

    @staticmethod
    def versions() -> dict[str, str]:
        try:
            import numpy
            import torch
        except ImportError as err:
            raise Refusal(
                "no_runtime",
                f"{sys.executable} cannot import the runtime ({err}). Install it with: "
                f"{sys.executable} -m pip install torch",
            ) from err
        return {"torch": str(torch.__version__), "numpy": numpy.__version__}

    def open(self) -> None:
        """Load the program and prepare one fixed random input; run it with run()."""
        import torch

        if not self.job["spinning"]:
            raise Refusal("not_as_asked", "PyTorch has no setting for spinning; leave it out")
        torch.set_num_threads(self.job["threads"])
        before = set(thread_affinities())
        try:
            program = torch.export.load(self.model["path"])
            module = program.module()
        except Exception as err:  # of many kinds, as versions and archives differ
            text = str(err).strip().splitlines()[0] if str(err).strip() else type(err).__name__
            raise Refusal(
                "bad_model",
                f"PyTorch cannot load it: {text}. Expected a file of torch.export.save, written "
                f"by a version not newer than {torch.__version__}",
            ) from err
        arguments = self._arguments(program)

        def run() -> None:
            with torch.inference_mode():
                self.result = module(*arguments)

        self.module = module
        run()  # its threads are started by the first parallel piece of work
        self.own_threads = sorted(set(thread_affinities()) - before)
        if self.cpus is not None:
            # OpenMP's threads inherit the one CPU of the caller; each gets its own.
            for thread, cpu in zip(self.own_threads, self.cpus[1:]):
                os.sched_setaffinity(int(thread), {cpu})
        self.run = run

    def _arguments(self, program: Any) -> list[Any]:
        import numpy as np
        import torch

        rng = np.random.RandomState(self.job["seed"])
        wanted = set(program.graph_signature.user_inputs)
        found: list[Any] = []
        self.inputs = []
        for node in program.graph.nodes:
            if node.op != "placeholder" or node.name not in wanted:
                continue
            value = node.meta["val"]
            if not isinstance(value, torch.Tensor):
                raise Refusal("bad_model", f"input '{node.name}' is not a tensor")
            sizes = [size if isinstance(size, int) else str(size) for size in value.shape]
            shape = fixed_shape(node.name, sizes, self.job["batch"], not found)
            dtype = torch.empty(0, dtype=value.dtype).numpy().dtype
            found.append(torch.from_numpy(random_array(rng, dtype, shape)))
            self.inputs.append({"name": node.name, "dtype": str(dtype), "shape": shape})
        return found

    def check(self) -> dict[str, Any]:
        """Return the settings as PyTorch reports them; refuse when they are not as asked."""
        import torch

        now = thread_affinities()
        found = {
            "threads": torch.get_num_threads(),
            "worker_cpus": sorted(now.get(thread) or "?" for thread in self.own_threads),
        }
        wanted = {
            "threads": self.job["threads"],
            "worker_cpus": sorted(str(cpu) for cpu in self.cpus[1:]) if self.cpus else None,
        }
        # A program without parallel work starts no thread, and none is missed.
        if self.cpus is None or not self.own_threads:
            wanted["worker_cpus"] = found["worker_cpus"]
        wrong = [key for key in wanted if wanted[key] != found[key]]
        if wrong:
            raise Refusal(
                "not_as_asked",
                "; ".join(f"{k}: asked {wanted[k]}, got {found[k]}" for k in wrong),
                self.model["name"],
            )
        return {**found, "workers": len(self.own_threads)}

    def outputs(self) -> list[dict[str, Any]]:
        """Return facts about the last run's outputs."""
        result = self.result if isinstance(self.result, (tuple, list)) else [self.result]
        return [output_facts(str(i), value.numpy()) for i, value in enumerate(result)]

    def predict(self, values: list[Any]) -> list[tuple[str, Any]]:
        """Return name and value of each output for these inputs."""
        import torch

        with torch.inference_mode():
            result = self.module(*(torch.from_numpy(value) for value in values))
        result = result if isinstance(result, (tuple, list)) else [result]
        return [(str(i), value.numpy()) for i, value in enumerate(result)]
