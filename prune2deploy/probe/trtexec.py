"""TensorRT's own program, for a JetPack that has no Python bindings of the library.

Its numbers are not ours: it starts the next inference before it has the answer to the last one,
so what it calls latency is smaller than what a program that waits sees. And its defaults changed
with version 11. So the flags travel with the samples, and `why_not_comparable` says what must not
stand side by side.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from .job import Refusal
from .tensorrt_versions import OLDEST

# On JetPack it is not on PATH.
PLACES = ("/usr/src/tensorrt/bin/trtexec", "/opt/tensorrt/bin/trtexec")
# Keys of its times file, in ms.
_TIMES = ("h2dMs", "computeMs", "d2hMs", "latencyMs")


def find_trtexec(places: tuple[str, ...] = PLACES) -> str:
    """Return the program's path.

    Raises:
        Refusal: "no_runtime".
    """
    for place in (shutil.which("trtexec"), *places):
        if place and Path(place).is_file():
            return place
    raise Refusal(
        "no_runtime",
        f"there is no trtexec on PATH nor at {', '.join(places)}. On a Jetson it comes with "
        "JetPack, in the package libnvinfer-bin",
    )


def version_in(text: str) -> tuple[int, ...]:
    """Return the version that the program's first line tells: v8502 is 8.5.2, v100300 10.3.0.

    Raises:
        Refusal: "no_runtime", where there is none.
    """
    found = re.search(r"\[TensorRT v(\d+)\]", text)
    if not found:
        raise Refusal("no_runtime", "trtexec does not tell its version; expected [TensorRT vN]")
    number = int(found.group(1))
    # Two digits for each part from 10 on; before, one for the first two.
    if number < 10000:
        return number // 1000, number % 1000 // 100, number % 100
    return number // 10000, number % 10000 // 100, number % 100


def arguments_for(
    version: tuple[int, ...],
    *,
    onnx: str,
    engine: str,
    times: str | None,
    precision: str,
    held: str,
    workspace_mb: int | None = None,
    warm_up_ms: int = 500,
    duration_s: int = 5,
    iterations: int = 100,
) -> list[str]:
    """Return the arguments of a build and, with a times file, of a measurement after it.

    Transfers are left out and every run is started as one CUDA graph, on all versions: what 11
    does by itself, the others are told.

    Raises:
        Refusal: "not_as_asked", where this version cannot make an engine of this precision.
    """
    found = [f"--onnx={onnx}", f"--saveEngine={engine}", "--profilingVerbosity=detailed"]
    found += _precision(version, precision, held)
    if workspace_mb is not None:
        found.append(f"--memPoolSize=workspace:{workspace_mb}")
    if times is None:
        # Called --buildOnly before 8.6.
        return [*found, "--skipInference" if version >= (8, 6) else "--buildOnly"]
    found += [
        f"--warmUp={warm_up_ms}",
        f"--duration={duration_s}",
        f"--iterations={iterations}",
        f"--exportTimes={times}",
    ]
    if version < (11,):
        found += ["--noDataTransfers", "--useCudaGraph", "--useSpinWait"]
    return found


def _precision(version: tuple[int, ...], precision: str, held: str) -> list[str]:
    made = precision == "fp16" and held == "fp32" and version < (11,)
    if precision != held and not made:
        raise Refusal(
            "not_as_asked",
            f"{precision} was asked for, the ONNX file holds {held}, and trtexec "
            f"{'.'.join(map(str, version))} does not change that. Convert the file first",
        )
    if version >= (11,) or precision == "fp32":
        return []
    return [f"--{precision}"]


def samples_from(text: str) -> dict[str, list[int]]:
    """Return {"h2d_ns", "compute_ns", "d2h_ns", "latency_ns"} from a file of --exportTimes.

    "latency_ns" is the sum of the other three, as trtexec defines it.

    Raises:
        Refusal: "bad_times".
    """
    try:
        rows = json.loads(text)
        found = {f"{key[:-2]}_ns": [round(float(row[key]) * 1e6) for row in rows] for key in _TIMES}
    except (ValueError, TypeError, KeyError, AttributeError) as err:
        raise Refusal(
            "bad_times",
            f"the file of trtexec --exportTimes cannot be read ({type(err).__name__}: {err}). "
            f"Expected a JSON list of objects with {', '.join(_TIMES)}",
        ) from err
    if not found["compute_ns"]:
        raise Refusal("bad_times", "trtexec wrote no times; the engine did not run")
    return found


def run_trtexec(binary: str, *, limit_s: float | None = None, **request: Any) -> dict[str, Any]:
    """Build, and measure where a times file is asked for.

    Args:
        request: of `arguments_for`, without the version.

    Returns:
        program, version (numbers), flags (as given), samples (None without a times file).

    Raises:
        Refusal: "trtexec", with its last errors, and those of the other functions.
    """
    version = version_of(binary, limit_s)
    if version < OLDEST:
        found = ".".join(map(str, version))
        raise Refusal("no_runtime", f"trtexec {found} is too old; expected 8.5 or newer")
    flags = arguments_for(version, **request)
    code, text = _output([binary, *flags], limit_s)
    if code:
        errors = [line for line in text.splitlines() if "[E]" in line] or text.splitlines()
        last = " | ".join(line.strip() for line in errors[-3:]) or "no output"
        raise Refusal("trtexec", f"trtexec ended with code {code}: {last}")
    times = request["times"]
    try:
        samples = None if times is None else samples_from(Path(times).read_text())
    except OSError as err:
        raise Refusal("bad_times", f"trtexec wrote no times to {times}") from err
    return {"program": binary, "version": list(version), "flags": flags, "samples": samples}


def version_of(binary: str, limit_s: float | None = 60.0) -> tuple[int, ...]:
    """Return the version of a trtexec, as it tells it."""
    return version_in(_output([binary, "--help"], limit_s)[1])


def _output(command: list[str], limit_s: float | None) -> tuple[int, str]:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=limit_s,
        )
    except OSError as err:
        raise Refusal("no_runtime", f"{command[0]} cannot be started: {err.strerror}") from err
    except subprocess.TimeoutExpired as err:
        raise Refusal("trtexec", f"trtexec did not end within {limit_s:g} s") from err
    return done.returncode, done.stdout


def why_not_comparable(first: dict[str, Any], second: dict[str, Any]) -> str | None:
    """Return why two results of `run_trtexec` must not be compared, or None where they may be."""
    versions = [tuple(result["version"]) for result in (first, second)]
    names = [".".join(map(str, version)) for version in versions]
    if (versions[0] >= (11,)) != (versions[1] >= (11,)):
        return (
            f"one was measured by trtexec {names[0]}, the other by {names[1]}: 11 leaves out "
            "transfers, starts runs as CUDA graphs and waits in a busy loop by itself, so the "
            "same engine seems faster there. Measure both with one version"
        )
    changing = ("--onnx=", "--saveEngine=", "--exportTimes=")
    flags = [{f for f in r["flags"] if not f.startswith(changing)} for r in (first, second)]
    precisions = {"--fp16", "--int8"}
    different = sorted((flags[0] ^ flags[1]) - precisions)
    if different:
        return f"they were measured with different flags: {', '.join(different)}"
    return None
