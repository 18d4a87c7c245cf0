"""TensorRT and TensorRT-RTX: an engine on GPU 0, with its input already there."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

from .cuda import load_cuda
from .engine_files import write_whole
from .inputs import fixed_shape, output_facts, random_array
from .job import FORMAT, Refusal
from .program import PROGRAM
from .tensorrt_build import engine_for, read_plan
from .tensorrt_versions import is_rtx, load_tensorrt, logger_of, member_name, said

# Not the library's own `nptype`: that of 8.5 fails with numpy 1.24 and newer.
NUMPY_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "BOOL": "bool",
}


class TensorRT:
    """One engine. After open(), run() is one inference: started, and waited for.

    What is timed is neither the copy of the input to the GPU nor that of the output back.
    """

    NAME = "tensorrt"

    def __init__(self, model: dict[str, Any], job: dict[str, Any], cpus: list[int] | None) -> None:
        self.model, self.job, self.cpus = model, job, cpus
        self.run: Callable[[], None]

    @classmethod
    def versions(cls) -> dict[str, str]:
        trt = load_tensorrt(cls.NAME)
        try:
            import numpy
        except ImportError as err:
            raise Refusal(
                "no_runtime",
                f"{sys.executable} cannot import numpy ({err}). Install it with: "
                f"{sys.executable} -m pip install numpy",
            ) from err
        return {cls.NAME: str(trt.__version__), "numpy": numpy.__version__}

    @classmethod
    def prepare(cls, model: dict[str, Any], job: dict[str, Any]) -> dict[str, Any]:
        """Have the engine before anything is timed; return the model with "plan", its record.

        In a process of its own: a build needs much memory, and may crash.
        """
        options = _options(model, job)
        model = {key: value for key, value in model.items() if key != "engine"}
        request = {"format": FORMAT, "ask": "build", "model": model, "runtime": cls.NAME}
        request = {**request, **options, "lock": None, "limit_s": job["limit_s"]}
        child = subprocess.run(
            [sys.executable, PROGRAM, "--child"],
            input=json.dumps(request) + "\n",
            stdout=subprocess.PIPE,
            text=True,
        )
        if child.returncode < 0:
            text = "the build of an engine crashed"
            raise Refusal("crashed", text, model["name"], -child.returncode)
        try:
            answer = json.loads(child.stdout)
        except ValueError as err:
            text = f"the build of an engine ended with code {child.returncode} and no answer"
            raise Refusal("crashed", text, model["name"]) from err
        if answer["status"] == "interrupted":
            raise KeyboardInterrupt
        if answer["status"] == "error":
            raise Refusal(answer["error"]["kind"], answer["error"]["message"], model["name"])
        return {**model, "plan": answer["engine"]}

    def open(self) -> None:
        """Load the engine and prepare one fixed random input; run it with run().

        Without a "plan" in the model, the engine is built or reused first.
        """
        if self.job["threads"] != 1:
            raise Refusal(
                "not_as_asked",
                f"{self.job['threads']} threads were asked for; an engine runs on the GPU, and "
                "one thread waits for it",
            )
        self.trt = trt = load_tensorrt(self.NAME)
        self.cuda = load_cuda()
        self.cuda.schedule(self.job["spinning"])
        self.plan = self.model.get("plan") or engine_for(
            self.model, self.NAME, _options(self.model, self.job)
        )
        self.logger = logger_of(trt)
        content = read_plan(self.plan)
        self.library = trt.Runtime(self.logger)
        self.engine = self.library.deserialize_cuda_engine(content)
        if self.engine is None:
            raise Refusal(
                "bad_engine",
                f"the engine {self.plan['path']} cannot be opened: {said(self.logger.messages)}"
                f"{self._validity(content)}. Delete it, and it is built again",
            )
        self.context = self._context()
        if self.context is None:
            text = f"the engine does not fit on this GPU: {said(self.logger.messages)}"
            raise Refusal("bad_engine", text)
        self._bind()

    def _validity(self, content: bytes) -> str:
        """What TensorRT-RTX says about an engine without opening it; the others cannot."""
        if not is_rtx(self.trt):
            return ""
        header = content[: self.library.engine_header_size]
        validity, bits = self.library.get_engine_validity(header)
        members = self.trt.EngineInvalidityDiagnostics.__members__.items()
        named = [name for name, member in members if int(bits) & int(member)]
        return f" ({member_name(validity)}: {', '.join(named) or 'no diagnosis'})"

    def _context(self) -> Any:
        self.runtime_cache = None
        if not is_rtx(self.trt):
            return self.engine.create_execution_context()
        # The kernels for this GPU are compiled now or in the first run, unless they were kept.
        config = self.engine.create_runtime_config()
        self.kernels = config.create_runtime_cache()
        self.runtime_cache = "new"
        self.kernels_path = Path(self.plan["path"]).with_suffix(".kernels")
        if self.kernels_path.is_file():
            loaded = self.kernels.deserialize(self.kernels_path.read_bytes())
            self.runtime_cache = "used" if loaded else "refused"
        config.set_runtime_cache(self.kernels)
        return self.engine.create_execution_context(config)

    def _bind(self) -> None:
        import numpy as np

        rng = np.random.RandomState(self.job["seed"])
        self.stream = self.cuda.stream()
        self.inputs: list[dict[str, Any]] = []
        self.addresses: list[int] = []
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        is_input = [self.engine.get_tensor_mode(n) == self.trt.TensorIOMode.INPUT for n in names]
        values: list[Any] = []
        for name in (name for name, yes in zip(names, is_input) if yes):
            sizes = [size if size > 0 else None for size in self.engine.get_tensor_shape(name)]
            shape = fixed_shape(name, sizes, self.job["batch"], not values)
            dtype = self._dtype(name)
            if not self.context.set_input_shape(name, tuple(shape)):
                raise Refusal(
                    "not_as_asked",
                    f"the engine takes no input '{name}' of shape {shape}; it was built for "
                    f"batches {self.plan['facts']['options']['batch']}",
                )
            values.append(random_array(rng, dtype, shape))
            self._place(name, values[-1].nbytes)
            self.cuda.copy_in(self.addresses[-1], values[-1], self.stream)
            self.inputs.append({"name": name, "dtype": str(dtype), "shape": shape})
        self.results = []
        for name in (name for name, yes in zip(names, is_input) if not yes):
            shape = list(self.context.get_tensor_shape(name))
            if min(shape, default=1) < 0:
                raise Refusal("dynamic_shape", f"the size of output '{name}' depends on the data")
            array = np.empty(shape, self._dtype(name))
            self._place(name, array.nbytes)
            self.results.append((name, self.addresses[-1], array))
        self.cuda.synchronize(self.stream)
        self.run = functools.partial(self._run, self.context.execute_async_v3, self.stream)

    def _dtype(self, name: str) -> Any:
        import numpy as np

        kind = member_name(self.engine.get_tensor_dtype(name))
        if kind not in NUMPY_DTYPES:
            raise Refusal("bad_model", f"tensor '{name}' is of type {kind}, which numpy lacks")
        return np.dtype(NUMPY_DTYPES[kind])

    def _place(self, name: str, size: int) -> None:
        self.addresses.append(self.cuda.malloc(size))
        if not self.context.set_tensor_address(name, self.addresses[-1]):
            raise Refusal("bad_engine", f"the engine takes no memory for tensor '{name}'")

    def _run(self, execute: Callable[[int], bool], stream: int) -> None:
        if not execute(stream):
            raise Refusal("cuda", f"the engine did not run: {said(self.logger.messages)}")
        self.cuda.synchronize(stream)

    def check(self) -> dict[str, Any]:
        """Return what runs, as the library and CUDA report it; refuse what is not as asked."""
        spinning = self.cuda.spinning()
        if spinning != self.job["spinning"]:
            raise Refusal(
                "not_as_asked",
                f"spinning: asked {self.job['spinning']}, got {spinning}",
                self.model["name"],
            )
        self._keep_kernels()
        found = self.plan["inspection"]
        return {
            "threads": 1,
            "workers": 0,
            "worker_cpus": [],
            "spinning": spinning,
            "version": str(self.trt.__version__),
            "device": self.cuda.device(),
            "precision": self.plan["facts"]["precision"],
            "precision_share": found["computing"]["share"] if found else None,
            "inspected": self.plan["inspected"],
            "runtime_cache": self.runtime_cache,
            "engine": {key: self.plan[key] for key in ("path", "sha256", "route", "reused")},
        }

    def _keep_kernels(self) -> None:
        if self.runtime_cache is not None and self.runtime_cache != "used":
            write_whole(self.kernels_path, bytes(self.kernels.serialize()))

    def outputs(self) -> list[dict[str, Any]]:
        """Return facts about the last run's outputs."""
        self._keep_kernels()
        for _, address, array in self.results:
            self.cuda.copy_out(array, address, self.stream)
        self.cuda.synchronize(self.stream)
        return [output_facts(name, array) for name, _, array in self.results]

    def predict(self, values: list[Any]) -> list[tuple[str, Any]]:
        """Return name and value of each output for these inputs."""
        for address, value in zip(self.addresses, values):
            self.cuda.copy_in(address, value, self.stream)
        self.run()
        for _, address, array in self.results:
            self.cuda.copy_out(array, address, self.stream)
        self.cuda.synchronize(self.stream)
        return [(name, array.copy()) for name, _, array in self.results]

    def device_times_ns(self, runs: int) -> list[int]:
        """Return the time of each of these runs on the GPU's own clock.

        Apart from the timed runs, where recording the events would cost time itself.
        """
        first, last = self.cuda.event(), self.cuda.event()
        samples = []
        for _ in range(runs):
            self.cuda.record(first, self.stream)
            if not self.context.execute_async_v3(self.stream):
                raise Refusal("cuda", f"the engine did not run: {said(self.logger.messages)}")
            self.cuda.record(last, self.stream)
            self.cuda.synchronize(self.stream)
            samples.append(self.cuda.elapsed_ns(first, last))
        self.cuda.end_event(first)
        self.cuda.end_event(last)
        return samples

    def close(self) -> None:
        """Give the device's memory back."""
        for address in self.addresses:
            self.cuda.free(address)
        self.cuda.end_stream(self.stream)
        self.addresses = []


class TensorRTRTX(TensorRT):
    """The same of TensorRT-RTX."""

    NAME = "tensorrt_rtx"


def layer_times(session: TensorRT, runs: int) -> list[dict[str, Any]]:
    """Return [{"name", "samples_ns"}], the time of each layer in each run, in the engine's order.

    It waits after every layer, so the layers add up to more than a run takes: for shares, never
    for latency, and the session is not to be timed afterwards.
    """
    found: dict[str, list[int]] = {}

    class Profiler(session.trt.IProfiler):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            session.trt.IProfiler.__init__(self)

        def report_layer_time(self, name: str, ms: float) -> None:
            found.setdefault(name, []).append(round(ms * 1e6))

    profiler = Profiler()
    session.context.profiler = profiler
    for _ in range(runs):
        session.run()
    return [{"name": name, "samples_ns": samples} for name, samples in found.items()]


def _options(model: dict[str, Any], job: dict[str, Any]) -> dict[str, Any]:
    """The options of a model's engine: its own, or those of the job."""
    options = model.get("engine") or job["engine"]
    if not isinstance(options, dict):
        raise Refusal(
            "bad_job",
            'a measurement with TensorRT needs "engine": the options of its build, for example '
            '{"precision": "fp16"}',
        )
    return options
