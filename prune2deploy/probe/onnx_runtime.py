"""ONNX Runtime."""

from __future__ import annotations

import functools
import sys
import time
from typing import Any, Callable

from .inputs import fixed_shape, output_facts, random_array
from .job import Refusal
from .placing import thread_affinities

NUMPY_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}

CPU = "CPUExecutionProvider"


class OnnxRuntime:
    """One model in ONNX Runtime on the CPU. After open(), run() is one inference."""

    def __init__(self, model: dict[str, str], job: dict[str, Any], cpus: list[int] | None) -> None:
        self.model, self.job, self.cpus = model, job, cpus
        self.run: Callable[[], None]

    @staticmethod
    def versions() -> dict[str, str]:
        try:
            import numpy
            import onnxruntime
        except ImportError as err:
            raise Refusal(
                "no_runtime",
                f"{sys.executable} cannot import the runtime ({err}). Install it with: "
                f"{sys.executable} -m pip install onnxruntime",
            ) from err
        return {"onnxruntime": onnxruntime.__version__, "numpy": numpy.__version__}

    def open(self) -> None:
        """Load the model and prepare one fixed random input; run it with run()."""
        import onnxruntime

        self.providers = self._providers(onnxruntime.get_available_providers())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.job["threads"]
        options.inter_op_num_threads = 1
        # ONNX Runtime takes unknown keys in silence: these two are checked against its source.
        self.config = {"session.intra_op.allow_spinning": str(int(self.job["spinning"]))}
        if self.cpus is not None and len(self.cpus) > 1:
            # The caller is not counted, and processor ids start at 1 there.
            places = ";".join(str(cpu + 1) for cpu in self.cpus[1:])
            self.config["session.intra_op_thread_affinities"] = places
        for key, value in self.config.items():
            options.add_session_config_entry(key, value)
        self.adjust(options)
        before = set(thread_affinities())
        try:
            self.session = onnxruntime.InferenceSession(
                self.model["path"], options, providers=self.providers
            )
        except Exception as err:  # the binding's own types differ between versions
            raise self._load_refusal(err) from err
        self.own_threads = set(thread_affinities()) - before
        self._bind()

    def adjust(self, options: Any) -> None:
        """For those who want further options: change them before the session is made."""

    def _providers(self, available: list[str]) -> list[str]:
        """What was asked for; an accelerator has the CPU behind it for what it cannot do."""
        wanted = self.job["provider"]
        if wanted not in available:
            # ONNX Runtime itself would only warn, and run on the CPU.
            raise Refusal(
                "not_as_asked",
                f"this build of ONNX Runtime has no {wanted}; it has {', '.join(available)}",
            )
        return [wanted] if wanted == CPU else [wanted, CPU]

    def _load_refusal(self, err: Exception) -> Refusal:
        text = str(err).strip().splitlines()[0]
        if "INVALID_PROTOBUF" in text or "No graph was found" in text:
            kind, advice = "not_onnx", "Expected an ONNX file; export the model again"
        elif "NOT_IMPLEMENTED" in text or "No Op registered" in text or "opset" in text.lower():
            kind = "unsupported_operator"
            advice = "Export with an older opset, or install a newer onnxruntime"
        else:
            kind, advice = "bad_model", "Check the file with onnx.checker and export it again"
        return Refusal(kind, f"ONNX Runtime cannot load it: {text}. {advice}")

    def _bind(self) -> None:
        import numpy as np
        import onnxruntime

        rng = np.random.RandomState(self.job["seed"])
        binding = self.session.io_binding()
        self.inputs = []
        for position, node in enumerate(self.session.get_inputs()):
            if node.type not in NUMPY_DTYPES:
                raise Refusal(
                    "bad_model", f"input '{node.name}' is a {node.type}; expected a tensor"
                )
            dtype = np.dtype(NUMPY_DTYPES[node.type])
            shape = fixed_shape(node.name, node.shape, self.job["batch"], position == 0)
            value = random_array(rng, dtype, shape)
            binding.bind_ortvalue_input(node.name, onnxruntime.OrtValue.ortvalue_from_numpy(value))
            self.inputs.append({"name": node.name, "dtype": str(dtype), "shape": shape})
        for node in self.session.get_outputs():
            binding.bind_output(node.name, "cpu")
        self.binding = binding
        self.run = functools.partial(self.session.run_with_iobinding, binding)

    def predict(self, values: list[Any]) -> list[tuple[str, Any]]:
        """Return name and value of each output for these inputs."""
        names = [given["name"] for given in self.inputs]
        outputs = self.session.run(None, dict(zip(names, values)))
        return list(zip([node.name for node in self.session.get_outputs()], outputs))

    def check(self) -> dict[str, Any]:
        """Return the settings as the session reports them; refuse when they are not as asked."""
        options = self.session.get_session_options()
        config = {key: options.get_session_config_entry(key) for key in self.config}
        expected = sorted(str(cpu) for cpu in self.cpus[1:]) if self.cpus else None
        # A worker sets its own affinity when it starts, a moment after the session is there.
        for _ in range(200):
            now = thread_affinities()
            workers = sorted(now.get(thread) or "?" for thread in self.own_threads)
            if expected is None or workers == expected:
                break
            time.sleep(0.01)
        found = {
            "providers": self.session.get_providers(),
            "threads": options.intra_op_num_threads,
            "workers": len(workers) if now else None,
            "worker_cpus": workers if expected is not None else None,
            "config": config,
        }
        wanted = {
            "providers": self.providers,
            "threads": self.job["threads"],
            "workers": self.job["threads"] - 1 if now else None,
            "worker_cpus": expected,
            "config": self.config,
        }
        wrong = [key for key in wanted if wanted[key] != found[key]]
        if wrong:
            raise Refusal(
                "not_as_asked",
                "; ".join(f"{k}: asked {wanted[k]}, got {found[k]}" for k in wrong),
                self.model["name"],
            )
        found["optimization"] = str(options.graph_optimization_level).rpartition(".")[2]
        found["execution"] = str(options.execution_mode).rpartition(".")[2]
        return found

    def outputs(self) -> list[dict[str, Any]]:
        """Return facts about the last run's outputs."""
        names = [node.name for node in self.session.get_outputs()]
        values = self.binding.copy_outputs_to_cpu()
        return [output_facts(name, value) for name, value in zip(names, values)]
