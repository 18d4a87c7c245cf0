"""One build: the ONNX file parsed, the builder told what to do, the engine's bytes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from .engine_files import write_whole
from .inputs import is_size
from .job import Refusal
from .tensorrt_versions import (
    logger_of,
    member_name,
    network_flags,
    precision_flags,
    said,
)


class Plan:
    """An engine's bytes.

    facts: what the build did, for its record. shapes: the usual shape of each dynamic input.
    """

    def __init__(self, content: bytes, facts: dict[str, Any], shapes: dict[str, Any]) -> None:
        self.content, self.facts, self.shapes = content, facts, shapes


def built(
    trt: Any,
    path: str,
    options: dict[str, Any],
    route: str,
    half_tensors: bool,
    timing_cache: Path | None,
) -> Plan:
    """Build an engine from an ONNX file.

    Args:
        options: all of job.BUILD_OPTIONS.
        route: of `tensorrt_versions.routes`.
        half_tensors: whether the file has fp16 tensors.
        timing_cache: file of this version and GPU, read and written; None: none is used.

    Raises:
        Refusal: "unsupported_operator", "bad_model", "dynamic_shape", "not_as_asked" or
            "build_failed".
    """
    logger = logger_of(trt)
    builder = _builder(trt, logger)
    network = builder.create_network(network_flags(trt, route))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(path):
        raise _parse_refusal(trt, parser, logger.messages)
    config = builder.create_builder_config()
    # Without it the inspector knows names alone, and nothing shows what was built.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options["workspace_mb"] is not None:
        size = int(options["workspace_mb"]) << 20
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, size)
    flags = _flags(trt, builder, config, options, route, half_tensors)
    if options["optimization_level"] is not None:
        config.builder_optimization_level = options["optimization_level"]
    if options["capabilities"]:
        _set_capabilities(trt, config, options["capabilities"])
    shapes = _add_profile(builder, network, config, options["batch"])
    cache = _timing_cache(config, timing_cache) if timing_cache else None
    plan = builder.build_serialized_network(network, config)
    if plan is None:  # it does not raise
        raise Refusal(
            "build_failed",
            f"no engine could be built: {said(logger.messages)}. If it lacks memory, close other "
            "programs or set workspace_mb",
        )
    if timing_cache:
        write_whole(timing_cache, bytes(config.get_timing_cache().serialize()))
    facts = {
        "flags": [member_name(flag) for flag in flags],
        "tf32": bool(config.get_flag(trt.BuilderFlag.TF32)),
        "timing_cache": cache,
        "warnings": logger.messages[-20:],
    }
    return Plan(bytes(plan), facts, shapes)


def _flags(
    trt: Any, builder: Any, config: Any, options: dict[str, Any], route: str, half_tensors: bool
) -> list[Any]:
    """Set what the precision and the options need, and return these flags."""
    flags = precision_flags(trt, route, options["precision"], half_tensors)
    if options["sparse"]:
        flags.append(trt.BuilderFlag.SPARSE_WEIGHTS)
    if options["dla"] is not None:
        _use_dla(trt, builder, config, options["dla"])
        flags.append(trt.BuilderFlag.GPU_FALLBACK)
    for flag in flags:
        config.set_flag(flag)
    return flags


def _builder(trt: Any, logger: Any) -> Any:
    try:
        builder = trt.Builder(logger)
    except TypeError as err:  # how the binding says that it got nothing
        raise Refusal(
            "build_failed", f"TensorRT cannot start here: {said(logger.messages)}"
        ) from err
    return builder


def _parse_refusal(trt: Any, parser: Any, messages: list[str]) -> Refusal:
    texts = [parser.get_error(index).desc() for index in range(parser.num_errors)]
    # The parser's errors do not name the operator; what it logs does.
    where = [m.partition("While ")[2].rstrip(":") for m in messages if "While parsing node" in m]
    text = "; ".join(" ".join(part.split()) for part in dict.fromkeys(where + texts))
    unknown = re.search(r"Plugin not found|No importer registered|[Uu]nsupported", text)
    kind = "unsupported_operator" if unknown else "bad_model"
    advice = (
        "Replace that operator in the model, or use a newer version"
        if unknown
        else "Check the file with onnx.checker and export it again"
    )
    return Refusal(
        kind, f"{trt.__name__} {trt.__version__} cannot read it: {text or said(messages)}. {advice}"
    )


def _use_dla(trt: Any, builder: Any, config: Any, core: int) -> None:
    count = builder.num_DLA_cores
    if not 0 <= core < count:
        raise Refusal("not_as_asked", f"DLA core {core} was asked for; this device has {count}")
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core


def _set_capabilities(trt: Any, config: Any, names: list[str]) -> None:
    known = [name for name in trt.ComputeCapability.__members__ if name != "NONE"]
    wrong = [name for name in names if name not in known]
    if wrong:
        raise Refusal(
            "not_as_asked",
            f"{trt.__name__} {trt.__version__} does not build for {', '.join(wrong)}; it knows "
            f"{', '.join(known)}",
        )
    config.num_compute_capabilities = len(names)  # first: the others are set at their index
    for index, name in enumerate(names):
        if not config.set_compute_capability(getattr(trt.ComputeCapability, name), index):
            raise Refusal("not_as_asked", f"{name} cannot be set as a target of the engine")


def _add_profile(
    builder: Any, network: Any, config: Any, batch: dict[str, int] | None
) -> dict[str, tuple[int, ...]]:
    """Give dynamic inputs their range of batch sizes; return the usual shape of each."""
    if batch is not None:
        sizes: list[Any] = [batch.get(key) for key in ("min", "opt", "max")]
        if not (all(map(is_size, sizes)) and sizes[0] <= sizes[1] <= sizes[2]):
            raise Refusal(
                "bad_job", f'batch is {batch}; expected {{"min", "opt", "max"}}, rising, above 0'
            )
    shapes, profile = {}, builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = list(tensor.shape)
        dynamic = [at for at, size in enumerate(shape) if size < 0]
        if not dynamic:
            if batch is not None and index == 0 and shape[:1] * 3 != sizes:
                raise Refusal(
                    "not_as_asked",
                    f"batches {sizes} were asked for, input '{tensor.name}' is fixed to {shape}. "
                    "Export with a dynamic batch size, or leave the batch out",
                )
            continue
        if dynamic != [0] or batch is None:
            raise Refusal(
                "dynamic_shape",
                f"input '{tensor.name}' has shape {shape}. Give a range of batch sizes for the "
                "first dimension, and export with fixed sizes for the others",
            )
        small, usual, large = ((size, *shape[1:]) for size in sizes)
        profile.set_shape(tensor.name, small, usual, large)
        shapes[tensor.name] = usual
    if shapes and config.add_optimization_profile(profile) < 0:
        raise Refusal("build_failed", f"TensorRT takes no profile for batches {batch}")
    return shapes


def _timing_cache(config: Any, path: Path) -> str:
    """Use what earlier builds measured; return "new", "used" or "refused"."""
    try:
        old = path.read_bytes()
    except OSError:
        old = b""
    # The second argument would let the cache of another GPU through, for slow or wrong engines.
    cache = config.create_timing_cache(old)
    if old and cache is not None and config.set_timing_cache(cache, False):
        return "used"
    config.set_timing_cache(config.create_timing_cache(b""), False)
    return "refused" if old else "new"
