"""Which names TensorRT's Python module has in which version."""

from __future__ import annotations

VERSIONS = ("8.5.3.1", "8.6.1.6", "10.3.0.26", "10.16.1.11", "11.1.0.2")

_ALL = ((8, 5), None)
_TILL_10 = ((8, 5), (11,))
_TILL_8 = ((8, 5), (10,))
# From which version on and up to which (not included) each name is there. Names that the probe
# must not use are here as well, for the test that the stand-ins bite.
SINCE: dict[str, tuple[tuple[int, ...], tuple[int, ...] | None]] = {
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH": _TILL_10,
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED": ((10,), None),
    "BuilderFlag.FP16": _TILL_10,
    "BuilderFlag.INT8": _TILL_10,
    "BuilderFlag.TF32": _ALL,
    "BuilderFlag.SPARSE_WEIGHTS": _ALL,
    "BuilderFlag.GPU_FALLBACK": _ALL,
    "BuilderFlag.ERROR_ON_TIMING_CACHE_MISS": ((10,), None),
    "Builder.create_network": _ALL,
    "Builder.create_builder_config": _ALL,
    "Builder.create_optimization_profile": _ALL,
    "Builder.build_serialized_network": _ALL,
    "Builder.num_DLA_cores": _ALL,
    "Builder.build_engine": _TILL_8,
    "Builder.platform_has_fast_fp16": _TILL_10,
    "Config.profiling_verbosity": _ALL,
    "Config.set_memory_pool_limit": _ALL,
    "Config.set_flag": _ALL,
    "Config.get_flag": _ALL,
    "Config.builder_optimization_level": ((8, 6), None),
    "Config.default_device_type": _ALL,
    "Config.DLA_core": _ALL,
    "Config.add_optimization_profile": _ALL,
    "Config.create_timing_cache": _ALL,
    "Config.set_timing_cache": _ALL,
    "Config.get_timing_cache": _ALL,
    "Config.max_workspace_size": _TILL_8,
    "Config.int8_calibrator": _TILL_10,
    "Profile.set_shape": _ALL,
    "Cache.serialize": _ALL,
    "Network.num_inputs": _ALL,
    "Network.get_input": _ALL,
    "Tensor.name": _ALL,
    "Tensor.shape": _ALL,
    "Tensor.dynamic_range": _TILL_10,
    "OnnxParser.parse_from_file": _ALL,
    "OnnxParser.num_errors": _ALL,
    "OnnxParser.get_error": _ALL,
    "OnnxParser.supports_model": _TILL_10,
    "ParserError.desc": _ALL,
    "Runtime.deserialize_cuda_engine": _ALL,
    "Engine.num_io_tensors": _ALL,
    "Engine.get_tensor_name": _ALL,
    "Engine.get_tensor_mode": _ALL,
    "Engine.get_tensor_shape": _ALL,
    "Engine.get_tensor_dtype": _ALL,
    "Engine.create_execution_context": _ALL,
    "Engine.create_engine_inspector": _ALL,
    "Engine.num_bindings": _TILL_8,
    "Engine.device_memory_size": _TILL_10,
    "Engine.device_memory_size_v2": ((10, 1), None),
    "Context.set_input_shape": _ALL,
    "Context.get_tensor_shape": _ALL,
    "Context.set_tensor_address": _ALL,
    "Context.execute_async_v3": _ALL,
    "Context.profiler": _ALL,
    "Context.execute_async_v2": _TILL_8,
    "Inspector.execution_context": _ALL,
    "Inspector.get_engine_information": _ALL,
}


def has(version: tuple[int, ...], name: str) -> bool:
    first, end = SINCE.get(name, ((99,), None))
    return version >= first and (end is None or version < end)
