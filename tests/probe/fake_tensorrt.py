"""Stand-ins for the TensorRT module of each version, that have exactly the names it has.

A name that is not in `tensorrt_names.SINCE` for a version raises AttributeError, when read and when
set. Beyond names the stand-ins hold what the versions are known to refuse: typed networks with
precision flags, fp16 tensors and quantizing operators without the flag for them, a missing explicit
batch. An engine is its ONNX file with a note; running it is ONNX Runtime.
"""

from __future__ import annotations

import ctypes
import enum
import json
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from inspector_texts import inspector_text
from tensorrt_names import SINCE, has

from prune2deploy.probe.onnx_types import held_precision


class Member(enum.IntEnum):
    """Printed like those of the library: "BuilderFlag.FP16"."""

    __str__ = enum.Enum.__str__


class Strict:
    """An object with the public names of its class in one version, and no others."""

    def __init__(self, trt: Any) -> None:
        object.__setattr__(self, "_trt", trt)

    def _name(self, name: str) -> None:
        full = f"{type(self).__name__}.{name}"
        if not name.startswith("_") and not has(self._trt._version, full):
            raise AttributeError(f"TensorRT {self._trt.__version__} has no {full}")

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_"):
            self._name(name)
        return object.__getattribute__(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._name(name)
        object.__setattr__(self, name, value)


class _Bytes:
    """Like IHostMemory: no bytes itself, but they can be made of it."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __bytes__(self) -> bytes:
        return self._content


class Builder(Strict):
    num_DLA_cores = 2

    def __init__(self, trt: Any, logger: Any) -> None:
        super().__init__(trt)
        self._logger = logger

    def create_network(self, flags: int) -> Network:
        names = [f.name for f in self._trt.NetworkDefinitionCreationFlag if flags >> int(f) & 1]
        if flags and not names:
            raise ValueError(f"unknown network flags {flags}")
        if self._trt._version < (10,) and names != ["EXPLICIT_BATCH"]:
            raise ValueError("implicit batch")
        self._trt.done["network"] = names
        return Network(self._trt, "STRONGLY_TYPED" in names or self._trt._version >= (11,))

    def create_builder_config(self) -> Config:
        return Config(self._trt)

    def create_optimization_profile(self) -> Profile:
        return Profile(self._trt)

    def build_serialized_network(self, network: Network, config: Config) -> _Bytes | None:
        held, flags = network._held, config._flags
        self._trt.done["flags"] = sorted(flags)
        self._trt.done["config"] = config
        wrong = self._trt.refuses(network._typed)
        if network._typed and flags & {"FP16", "INT8"}:
            wrong = "precision flags with a strongly typed network"
        if not network._typed and held["half_tensors"] and "FP16" not in flags:
            wrong = "fp16 tensors, and FP16 is not allowed"
        if not network._typed and held["precision"] == "int8" and "INT8" not in flags:
            wrong = "quantizing operators, and INT8 is not allowed"
        dynamic = any(t.shape[0] < 0 for t in network._inputs)
        if dynamic and not config._profiles:
            wrong = "a dynamic input needs a profile"
        if wrong:
            self._logger.log(self._trt.Logger.Severity.ERROR, f"Error Code 4: {wrong}")
            return None
        built = held["precision"]
        if "FP16" in flags and built == "fp32" and not self._trt.ignores_flags:
            built = "fp16"
        note = {
            "version": self._trt.__version__,
            "precision": built,
            "verbosity": getattr(config, "profiling_verbosity", None) == 2,
            "profile": config._profiles,
            "onnx": network._content.hex(),
        }
        return _Bytes(json.dumps(note).encode())


class Config(Strict):
    def __init__(self, trt: Any) -> None:
        super().__init__(trt)
        self._flags: set[str] = {"TF32"}
        self._profiles: list[Any] = []
        self._cache: Any = None

    def set_flag(self, flag: Any) -> None:
        self._flags.add(flag.name)

    def get_flag(self, flag: Any) -> bool:
        return flag.name in self._flags

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        assert pool.name == "WORKSPACE"
        self._trt.done["workspace"] = size

    def add_optimization_profile(self, profile: Profile) -> int:
        self._profiles.append(profile._shapes)
        return len(self._profiles) - 1

    def create_timing_cache(self, content: bytes) -> Cache:
        return Cache(self._trt, content)

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        sound = cache._content in (b"", b"timings " + self._trt.__version__.encode())
        if sound:
            self._cache = cache
        return sound

    def get_timing_cache(self) -> Cache:
        return Cache(self._trt, b"timings " + self._trt.__version__.encode())


class Cache(Strict):
    def __init__(self, trt: Any, content: bytes) -> None:
        super().__init__(trt)
        self._content = content

    def serialize(self) -> _Bytes:
        return _Bytes(self._content)


class Profile(Strict):
    def __init__(self, trt: Any) -> None:
        super().__init__(trt)
        self._shapes: dict[str, Any] = {}

    def set_shape(self, name: str, small: Any, usual: Any, large: Any) -> None:
        self._shapes[name] = (small, usual, large)


class Tensor(Strict):
    def __init__(self, trt: Any, info: Any) -> None:
        super().__init__(trt)
        dims = info.type.tensor_type.shape.dim
        self.name = info.name
        self.shape = tuple(-1 if dim.dim_param else dim.dim_value for dim in dims)


class Network(Strict):
    def __init__(self, trt: Any, typed: bool) -> None:
        super().__init__(trt)
        self._typed = typed
        self._inputs: list[Any] = []
        self._content = b""
        self._held: dict[str, Any] = {}

    @property
    def num_inputs(self) -> int:
        return len(self._inputs)

    def get_input(self, index: int) -> Any:
        return self._inputs[index]


class ParserError(Strict):
    def desc(self) -> str:
        return "No importer registered for op: Frobnicate"


class OnnxParser(Strict):
    num_errors = 0

    def __init__(self, trt: Any, network: Network, logger: Any) -> None:
        super().__init__(trt)
        self._network, self._logger = network, logger

    def parse_from_file(self, path: str) -> bool:
        content = Path(path).read_bytes()
        model = onnx.load_from_string(content)
        self._network._content = content
        self._network._held = held_precision(content)
        self._network._inputs = [Tensor(self._trt, info) for info in model.graph.input]
        if any(node.op_type == "Frobnicate" for node in model.graph.node):
            text = 'ModelImporter.cpp:729: While parsing node number 1 [Frobnicate -> "r"]:'
            self._logger.log(self._trt.Logger.Severity.ERROR, text)
            object.__setattr__(self, "num_errors", 1)
            return False
        return True

    def get_error(self, index: int) -> ParserError:
        return ParserError(self._trt)


class Runtime(Strict):
    def __init__(self, trt: Any, logger: Any) -> None:
        super().__init__(trt)
        self._logger = logger

    def deserialize_cuda_engine(self, content: bytes) -> Engine | None:
        note = json.loads(bytes(content))
        if note["version"] != self._trt.__version__:
            text = (
                "The engine plan file is not compatible with this version of TensorRT, expecting "
                f"library version {self._trt.__version__} got {note['version']}, please rebuild."
            )
            self._logger.log(self._trt.Logger.Severity.ERROR, text)
            return None
        return Engine(self._trt, note)


class Engine(Strict):
    def __init__(self, trt: Any, note: dict[str, Any]) -> None:
        super().__init__(trt)
        self._note = note
        self._session = onnxruntime.InferenceSession(bytes.fromhex(note["onnx"]))
        self._in = {node.name: node for node in self._session.get_inputs()}
        self._io = {**self._in, **{node.name: node for node in self._session.get_outputs()}}

    @property
    def num_io_tensors(self) -> int:
        return len(self._io)

    def get_tensor_name(self, index: int) -> str:
        return list(self._io)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return self._trt.TensorIOMode.INPUT if name in self._in else self._trt.TensorIOMode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(d if isinstance(d, int) else -1 for d in self._io[name].shape)

    def get_tensor_dtype(self, name: str) -> Any:
        half = self._io[name].type == "tensor(float16)"
        return self._trt.DataType.HALF if half else self._trt.DataType.FLOAT

    def create_execution_context(self) -> Context:
        return Context(self._trt, self)

    def create_engine_inspector(self) -> Inspector:
        return Inspector(self._trt, self)


class Context(Strict):
    def __init__(self, trt: Any, engine: Engine) -> None:
        super().__init__(trt)
        self._engine = engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self.profiler: Any = None

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        for profile in self._engine._note["profile"]:
            small, _, large = profile[name]
            if not small[0] <= shape[0] <= large[0]:
                return False
        self._shapes[name] = shape
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        shape = self._engine.get_tensor_shape(name)
        batch = next(iter(self._shapes.values()))[0]
        return tuple(batch if size < 0 else size for size in shape)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        if set(self._addresses) != set(self._engine._io) or not stream:
            return False
        feeds = {}
        for name, shape in self._shapes.items():
            half = self._engine._io[name].type == "tensor(float16)"
            array = np.empty(shape, np.float16 if half else np.float32)
            ctypes.memmove(array.ctypes.data, self._addresses[name], array.nbytes)
            feeds[name] = array
        names = [name for name in self._engine._io if name not in self._shapes]
        for name, array in zip(names, self._engine._session.run(names, feeds), strict=True):
            array = np.ascontiguousarray(array)
            ctypes.memmove(self._addresses[name], array.ctypes.data, array.nbytes)
        if self.profiler is not None:
            self.profiler.report_layer_time("conv", 0.25)
            self.profiler.report_layer_time("pool", 0.125)
        return True


class Inspector(Strict):
    execution_context: Any = None

    def __init__(self, trt: Any, engine: Engine) -> None:
        super().__init__(trt)
        self._engine = engine

    def get_engine_information(self, form: Any) -> str:
        assert form.name == "JSON"
        note = self._engine._note
        dynamic = bool(note["profile"]) and self.execution_context is None
        return inspector_text(
            self._trt._version, note["precision"], detailed=note["verbosity"], dynamic=dynamic
        )


def fake_tensorrt(version: str) -> Any:
    """Return a module `tensorrt` of this version. `done` tells what was asked of it last."""
    trt: Any = types.ModuleType("tensorrt")
    trt.__version__ = version
    trt._version = tuple(int(part) for part in version.split("."))
    trt.done = {}
    trt.ignores_flags = False  # a builder may: its flags only allow
    trt.refuses = lambda typed: None

    def members(name: str, values: dict[str, int]) -> Any:
        there = {key: at for key, at in values.items() if has(trt._version, f"{name}.{key}")}
        return Member(name, there)

    class ILogger:
        class Severity(enum.Enum):
            INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    class IProfiler:
        pass

    trt.ILogger, trt.Logger, trt.IProfiler = ILogger, ILogger, IProfiler
    trt.NetworkDefinitionCreationFlag = members(
        "NetworkDefinitionCreationFlag", {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}
    )
    flags = [name.partition(".")[2] for name in SINCE if name.startswith("BuilderFlag.")]
    trt.BuilderFlag = members("BuilderFlag", {name: at for at, name in enumerate(flags)})
    for name, keys in {
        "MemoryPoolType": "WORKSPACE",
        "ProfilingVerbosity": "LAYER_NAMES_ONLY NONE DETAILED",
        "LayerInformationFormat": "ONELINE JSON",
        "TensorIOMode": "NONE INPUT OUTPUT",
        "DataType": "FLOAT HALF INT8 INT32 BOOL",
        "DeviceType": "GPU DLA",
    }.items():
        setattr(trt, name, Member(name, keys.split(), start=0))
    trt.Builder = lambda logger: Builder(trt, logger)
    trt.OnnxParser = lambda network, logger: OnnxParser(trt, network, logger)
    trt.Runtime = lambda logger: Runtime(trt, logger)
    return trt
