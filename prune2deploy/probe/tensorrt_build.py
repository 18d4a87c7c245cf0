"""Engines of TensorRT 8.5 to 11 and TensorRT-RTX, built where they will run.

A build product and never an artifact: an engine is kept for one ONNX file, library, GPU, driver
and set of options, and built again when any of these has changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from .cuda import load_cuda
from .engine_files import engine_path, find_engine, keep_engine, ready_folder
from .inspector import inspection, shortfall
from .job import BUILD_OPTIONS, Refusal
from .lock import only_one
from .onnx_types import held_precision
from .tensorrt_network import Plan, built
from .tensorrt_versions import check_options, is_rtx, load_tensorrt, logger_of, routes, said

# What does not change the engine: where it is kept, and how it is judged.
_NOT_IN_THE_KEY = ("folder", "min_share")


def build(job: dict[str, Any]) -> dict[str, Any]:
    """Answer the job "build": have an engine for one model.

    Returns:
        versions: of the library. engine: what `engine_for` returns.
    """
    model = job["model"]
    if not isinstance(model, dict) or not {"name", "path"} <= set(model):
        raise Refusal("bad_job", 'a build needs "model", with "name" and "path"')
    options = {key: job[key] for key in BUILD_OPTIONS}
    trt = load_tensorrt(job["runtime"])
    with only_one(job):
        engine = engine_for(model, job["runtime"], options)
    return {"versions": {job["runtime"]: str(trt.__version__)}, "engine": engine}


def engine_for(model: dict[str, Any], runtime: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the record of an engine, reused where a sound one is there and built otherwise.

    Args:
        model: {"name", "path" of the ONNX file}.
        runtime: "tensorrt" or "tensorrt_rtx".
        options: any of job.BUILD_OPTIONS.

    Returns:
        path, sha256, size_bytes, facts (all that the engine depends on), route, flags, fallback,
        tf32, build_s, timing_cache, inspected, inspected_reason, inspection, warnings; and
        reused, with the reason where it is False.

    Raises:
        Refusal: with a kind, as all of the probe's errors.
    """
    unknown = sorted(set(options) - set(BUILD_OPTIONS))
    if unknown:
        raise Refusal("bad_job", f"unknown options of an engine: {', '.join(unknown)}")
    options = {**BUILD_OPTIONS, **options}
    trt = load_tensorrt(runtime)
    check_options(trt, options)
    try:
        content = Path(model["path"]).read_bytes()
    except OSError as err:
        text = f"cannot read {model['path']}: {err.strerror}"
        raise Refusal("missing", text, model["name"]) from err
    held = held_precision(content)
    ways = routes(trt, options["precision"], held["precision"], options["dla"] is not None)
    facts = {
        "onnx_sha256": hashlib.sha256(content).hexdigest(),
        "runtime": runtime,
        "version": str(trt.__version__),
        **_device(trt),
        "precision": options["precision"],
        "options": {
            key: value
            for key, value in sorted(options.items())
            if key not in (*_NOT_IN_THE_KEY, "precision")
        },
    }
    folder = Path(os.path.expanduser(options["folder"]))
    record, reason = find_engine(folder, facts)
    if record is None:
        record = _built_and_kept(trt, model, folder, facts, options, ways, held["half_tensors"])
    _judge(record, options, model["name"])
    return {
        **record,
        "path": str(engine_path(folder, facts)),
        "reused": not reason,
        "reason": reason or None,
    }


def _device(trt: Any) -> dict[str, Any]:
    """Facts about the GPU; None each where TensorRT-RTX builds ahead of time without one."""
    try:
        return load_cuda().device()
    except Refusal as err:
        if not is_rtx(trt) or err.facts["kind"] != "no_gpu":
            raise
        return dict.fromkeys(("gpu", "compute_capability", "sm_count", "driver"))


def _built_and_kept(
    trt: Any,
    model: dict[str, Any],
    folder: Path,
    facts: dict[str, Any],
    options: dict[str, Any],
    ways: list[str],
    half_tensors: bool,
) -> dict[str, Any]:
    line = json.dumps({"stage": "build", "model": model["name"], "done": 0.0})
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
    ready_folder(folder)
    cache = None if is_rtx(trt) else timing_cache_path(folder, facts)
    fallback = None
    for position, route in enumerate(ways):
        start = time.perf_counter()
        try:
            plan = built(trt, model["path"], options, route, half_tensors, cache)
            break
        except Refusal as err:
            if position == len(ways) - 1:
                raise
            fallback = f"no engine by the route '{route}': {err}"
    build_s = time.perf_counter() - start
    made = {"route": route, "fallback": fallback, "build_s": build_s, **plan.facts}
    return keep_engine(folder, facts, plan.content, {**made, **_inspected(trt, plan, options)})


def timing_cache_path(folder: Path, facts: dict[str, Any]) -> Path:
    """Return where the timing cache of this version and GPU is; no other may read it."""
    place = [facts[key] for key in ("version", "gpu", "compute_capability", "sm_count", "driver")]
    digest = hashlib.sha256(json.dumps(place).encode()).hexdigest()
    return folder / f"timing-{facts['version']}-{digest[:16]}.cache"


def _inspected(trt: Any, plan: Plan, options: dict[str, Any]) -> dict[str, Any]:
    """Read back what was built. Only the library itself can, and only where the engine opens."""
    logger = logger_of(trt)
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(plan.content)
    if engine is None:
        if not is_rtx(trt):
            raise Refusal(
                "build_failed", f"the engine just built cannot be opened: {said(logger.messages)}"
            )
        reason = f"the engine cannot be opened here: {said(logger.messages)}"
        return {"inspected": False, "inspected_reason": reason, "inspection": None}
    inspector = engine.create_engine_inspector()
    if plan.shapes:
        # Without sizes the inspector gives no formats for an engine of dynamic shapes.
        context = engine.create_execution_context()
        for name, shape in plan.shapes.items():
            context.set_input_shape(name, shape)
        inspector.execution_context = context
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    try:
        found = inspection(text, options["precision"])
    except ValueError as err:
        return {"inspected": False, "inspected_reason": str(err), "inspection": None}
    return {"inspected": True, "inspected_reason": None, "inspection": found}


def _judge(record: dict[str, Any], options: dict[str, Any], name: str) -> None:
    """Refuse an engine that is not what was asked for."""
    if not record["inspected"]:
        # A typed graph leaves no choice. With flags the builder may have ignored them.
        if record["route"] == "flags":
            raise Refusal(
                "not_as_asked",
                f"nothing shows whether the engine computes in {options['precision']}: "
                f"{record['inspected_reason']}",
                name,
            )
        return
    wrong = shortfall(record["inspection"], options["precision"], options["min_share"])
    if wrong:
        raise Refusal("not_as_asked", wrong, name)


def read_plan(record: dict[str, Any]) -> bytes:
    """Return the engine's bytes.

    Raises:
        Refusal: "missing".
    """
    with contextlib.suppress(OSError):
        return Path(record["path"]).read_bytes()
    raise Refusal("missing", f"the engine {record['path']} is gone; build it again")
