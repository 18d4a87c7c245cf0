"""What a job may hold, and how to refuse one."""

from __future__ import annotations

import json
import os
from typing import Any

FORMAT = 2
# Of a TensorRT engine, with their defaults.
BUILD_OPTIONS: dict[str, Any] = {
    "precision": "fp32",  # fp16 and int8 are in the ONNX file; before 11 fp16 may be made of fp32
    "folder": "~/.cache/prune2deploy/engines",  # where engines are kept
    "workspace_mb": None,  # the most memory a layer may take; null: all there is
    "batch": None,  # {"min", "opt", "max"} for a dynamic first dimension
    "dla": None,  # core of the deep learning accelerator
    "sparse": False,  # use 2:4 kernels where the weights have the pattern
    "optimization_level": None,  # 0 to 5, from 8.6 on; null: the library's own
    "capabilities": [],  # of TensorRT-RTX: ["SM86", ...]; none: portable
    "min_share": 0.5,  # of convolutions and matrix products, to compute in the precision
}
# What may be asked, and the keys of each with their defaults.
ASKS: dict[str, dict[str, Any]] = {
    "measure": {
        "models": None,  # a list of {"name", "path"}
        "runtime": "onnxruntime",
        "provider": "CPUExecutionProvider",  # of ONNX Runtime
        "threads": 1,
        "pin": "auto",  # "auto", a list of one CPU per thread, or null: not pinned
        "spinning": True,  # worker threads wait for work in a busy loop
        "batch": None,  # replaces a dynamic first dimension; a static one must equal it
        "engine": None,  # BUILD_OPTIONS for TensorRT; a model's own "engine" comes first
        "seed": 0,
        "min_time_s": 5.0,  # of timed runs, for each model
        "min_samples": 100,
        "min_blocks": 20,
        "turn_s": 0.05,
        "settle_s": 0.002,  # untimed runs at the start of a turn: one at least, and this long
        "warmup_min_s": 0.5,
        "warmup_max_s": 10.0,
        "power_mode": None,  # name of the one that a Jetson must be in
        "energy_s": 3.0,  # that each model runs alone while its power is read; 0: not at all
        "warmup_tolerance": 0.02,  # relative spread of the last three windows' medians
    },
    "layers": {  # what is not explained here is as above
        "models": None,
        "runtime": "onnxruntime",
        "provider": "CPUExecutionProvider",
        "threads": 1,
        "pin": "auto",
        "spinning": True,
        "batch": None,
        "seed": 0,
        "runs": 50,  # at least, plain ones and profiled ones each
        "min_time_s": 1.0,  # of each kind; very many events end it earlier
        "warmup_runs": 5,  # of the profiled session, after the plain one's warm-up
        "warmup_min_s": 0.5,
        "warmup_max_s": 10.0,
        "warmup_tolerance": 0.02,
        "folder": None,  # the child's for its files; the probe makes and removes it
    },
    "outputs": {  # what is not explained here is as above
        "model": None,  # {"name", "path"}
        "inputs": None,  # an .npz with an array per input, named "0", "1", …
        "runtime": "onnxruntime",
        "provider": "CPUExecutionProvider",
        "threads": 1,
        "pin": None,
        "spinning": True,
        "batch": None,
        "engine": None,
    },
    "build": {
        "model": None,  # {"name", "path"}
        "runtime": "tensorrt",
        **BUILD_OPTIONS,
    },
    "facts": {},
    "files": {"paths": []},
    "setup": {  # of a virtual environment
        "folder": "~/.cache/prune2deploy/venv",
        "packages": [],
        "system_site": False,  # it sees the system's packages too, as TensorRT's on a Jetson
    },
    "lock": {},  # try to take it
}
COMMON: dict[str, Any] = {
    "format": FORMAT,
    "ask": "measure",
    "sysroot": "/",  # where proc, sys and the tools are: another tree in tests
    "lock": os.environ.get(
        "PRUNE2DEPLOY_LOCK", "/tmp/prune2deploy.lock"
    ),  # of all measurements on this machine; null: none
    "lock_wait_s": 600.0,
    "limit_s": None,  # after this the probe ends itself, even inside a hung call
}


class Refusal(Exception):
    """What was asked cannot be done; `kind` is for programs, the message for people."""

    def __init__(
        self, kind: str, message: str, model: str | None = None, signal: int | None = None
    ) -> None:
        super().__init__(message)
        self.facts = {"kind": kind, "message": message, "model": model, "signal": signal}


def read_job(text: str) -> dict[str, Any]:
    """Return the job with every default filled in; raises Refusal for what it does not know."""
    try:
        given = json.loads(text)
    except ValueError as err:
        raise Refusal("bad_job", f"the job is not JSON ({err})") from err
    job = {**COMMON, **given}
    if job["format"] != FORMAT:
        raise Refusal("bad_job", f"job format {job['format']}, this probe reads {FORMAT}")
    if job["ask"] not in ASKS:
        raise Refusal("bad_job", f"nothing is called '{job['ask']}'; known: {', '.join(ASKS)}")
    known = {**COMMON, **ASKS[job["ask"]]}
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise Refusal("bad_job", f"unknown keys in the job: {', '.join(unknown)}")
    job = {**known, **given}
    if "models" in job and (not job["models"] or job.get("threads", 1) < 1):
        raise Refusal("bad_job", "a job needs at least one model and one thread")
    return job
