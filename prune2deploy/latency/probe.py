"""Measure ONNX models on the machine this file runs on: one JSON job in, one JSON answer out.

    python probe.py < job.json        (or: python probe.py job.json)

It stands alone, and is one long file, so that the same file runs here and on a board that has only
Python >= 3.8, numpy and a runtime. A job is "models", a list of {"name", "path"}, and any key of
`DEFAULTS`. Standard output carries the answer and nothing else. Standard error carries one JSON
object {"stage", "model", "done"} per line for whoever shows progress, among what the runtime logs.
The answer's "status" is "ok", "interrupted" or "error"; "error" then holds kind, message, model and
signal.

What happens, in this order:
  alone    Each model in a child process of its own: load, first run, peak memory. No model is
           disturbed by another there, and a crash of the runtime names the model.
  warmup   All models loaded side by side; each runs for a time *and* until its median settles.
  measure  A block gives every model two turns in mirrored order (A B B A), which cancels linear
           drift. Blocks come in pairs, the second in reverse (B A A B), so that no model has the
           outer turns more often; the order of each pair is drawn. A turn starts with untimed
           runs, because the caches still hold the model before it. The calls per turn are fixed
           after the warm-up: they must not depend on what is being measured.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import json
import os
import platform
import random
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Callable  # noqa: UP035  (Python 3.8)

FORMAT = 1
DEFAULTS = {
    "format": FORMAT,
    "runtime": "onnxruntime",
    "threads": 1,
    "pin": "auto",  # "auto", a list of one CPU per thread, or null: not pinned
    "spinning": True,  # worker threads wait for work in a busy loop
    "batch": None,  # replaces a dynamic first dimension; a static one must equal it
    "seed": 0,
    "min_time_s": 5.0,  # of timed runs, for each model
    "min_samples": 100,
    "min_blocks": 20,
    "turn_s": 0.05,
    "settle_s": 0.002,  # untimed runs at the start of a turn: one at least, and this long
    "warmup_min_s": 0.5,
    "warmup_max_s": 10.0,
    "warmup_tolerance": 0.02,  # relative spread of the last three windows' medians
    "limit_s": None,  # after this the probe ends itself, even inside a hung call
}
MIN_CALLS = 3  # per turn and per warm-up window, so that one outlier is not the median
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


class Refusal(Exception):
    """What was asked cannot be measured; `kind` is for programs, the message for people."""

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
    unknown = sorted(set(given) - set(DEFAULTS) - {"models"})
    if unknown:
        raise Refusal("bad_job", f"unknown keys in the job: {', '.join(unknown)}")
    job = {**DEFAULTS, **given}
    if job["format"] != FORMAT:
        raise Refusal("bad_job", f"job format {job['format']}, this probe reads {FORMAT}")
    if job["runtime"] not in RUNTIMES:
        known = ", ".join(sorted(RUNTIMES))
        raise Refusal("bad_job", f"no runtime named '{job['runtime']}'; known: {known}")
    if not job.get("models") or job["threads"] < 1:
        raise Refusal("bad_job", "a job needs at least one model and one thread")
    return job


# The state of the machine. Whatever cannot be read is None, never 0.


def read(path: Path) -> str | None:
    """Return a small text file without its line end, or None where it cannot be read."""
    try:
        return path.read_text(errors="replace").strip("\0\n ") or None
    except OSError:
        return None


def read_each(root: Path, pattern: str, key: Callable[[Path], str]) -> dict[str, str] | None:
    """Return {key: text} of the readable files that match, or None when there are none."""
    found = {key(path): read(path) for path in sorted(root.glob(pattern))}
    return {name: text for name, text in found.items() if text is not None} or None


def numbers(texts: dict[str, str] | None, scale: float = 1) -> dict[str, float] | None:
    return None if texts is None else {name: int(text) * scale for name, text in texts.items()}


def field(text: str | None, name: str) -> str | None:
    """Return the value of a 'name: value' line, as in /proc/self/status."""
    for line in (text or "").splitlines():
        label, colon, value = line.partition(":")
        if colon and label.strip() == name:
            return value.strip()
    return None


def cpu_quota(root: Path) -> dict[str, Any] | None:
    """Return {"cores": share of CPU time allowed, None for no limit}, or None where unknown."""
    groups = (read(root / "proc/self/cgroup") or "").splitlines()
    own = next((line[3:].strip("/") for line in groups if line.startswith("0::")), "")
    for folder in (own, ""):
        text = read(root / "sys/fs/cgroup" / folder / "cpu.max")
        if text:
            quota, period = text.split()
            return {"cores": None if quota == "max" else int(quota) / int(period)}
    quota_us = read(root / "sys/fs/cgroup/cpu/cpu.cfs_quota_us")
    period_us = read(root / "sys/fs/cgroup/cpu/cpu.cfs_period_us")
    if quota_us is None or period_us is None:
        return None
    return {"cores": None if int(quota_us) < 0 else int(quota_us) / int(period_us)}


def machine(root: Path = Path("/")) -> dict[str, Any]:
    """Return what does not change during a measurement."""
    cpuinfo = read(root / "proc/cpuinfo")
    cpu = root / "sys/devices/system/cpu"
    no_turbo = read(cpu / "intel_pstate/no_turbo")
    boost = read(cpu / "cpufreq/boost")
    memory = field(read(root / "proc/meminfo"), "MemTotal")
    return {
        "cpu_model": field(cpuinfo, "model name") or field(cpuinfo, "Model"),
        "board": read(root / "proc/device-tree/model"),
        "architecture": platform.machine(),
        "kernel": platform.release(),
        "cpus_allowed": sorted(os.sched_getaffinity(0)) if CAN_PIN else None,
        "cpu_quota": cpu_quota(root),
        "turbo": no_turbo == "0" if no_turbo else boost == "1" if boost else None,
        "memory_bytes": int(memory.split()[0]) * 1024 if memory else None,
    }


def state(root: Path = Path("/")) -> dict[str, Any]:
    """Return what could disturb a measurement, as it is now."""
    cpu = root / "sys/devices/system/cpu"
    own = read(root / "proc/self/status")
    switches = [field(own, kind + "_ctxt_switches") for kind in ("voluntary", "nonvoluntary")]
    waited = read(root / "proc/self/schedstat")
    load = read(root / "proc/loadavg")
    ticks = read(root / "proc/stat")  # cpu user nice system idle iowait irq softirq steal
    policies = "cpufreq/policy*/"
    return {
        "time_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "clock_khz": numbers(read_each(cpu, policies + "scaling_cur_freq", parent)),
        "governor": read_each(cpu, policies + "scaling_governor", parent),
        "temperature_c": numbers(read_each(root, "sys/class/thermal/*/temp", zone), 0.001),
        "throttle_count": numbers(
            read_each(cpu, "cpu*/thermal_throttle/core_throttle_count", lambda p: p.parts[-3])
        ),
        "load_average": [float(part) for part in load.split()[:3]] if load else None,
        # Of the measuring thread: forced off its CPU, and how long it then waited for one.
        "switches_voluntary": int(switches[0]) if switches[0] else None,
        "switches_forced": int(switches[1]) if switches[1] else None,
        "waited_for_cpu_ns": int(waited.split()[1]) if waited else None,
        # Time the hypervisor gave to somebody else, over all CPUs of this machine.
        "stolen_ticks": int(ticks.split()[8]) if ticks else None,
    }


def parent(path: Path) -> str:
    return path.parent.name


def zone(path: Path) -> str:
    return f"{path.parent.name} {read(path.parent / 'type') or ''}"


# Threads and where they run


CAN_PIN = hasattr(os, "sched_setaffinity")


def cpu_list(text: str) -> list[int]:
    """Return the CPUs in a kernel list such as '0-2,5'."""
    cpus: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        cpus += range(int(first), int(last or first) + 1)
    return cpus


def best_cpus(allowed: set[int], count: int, root: Path = Path("/")) -> list[int]:
    """Choose CPUs: a physical core each while they last, then the faster, then the higher number.

    CPU 0 serves most interrupts, so it is the noisiest of its kind.
    """

    def rank(cpu: int) -> tuple[int, int, int]:
        folder = root / f"sys/devices/system/cpu/cpu{cpu}"
        siblings = read(folder / "topology/thread_siblings_list") or str(cpu)
        same_core = [other for other in cpu_list(siblings) if other in allowed]
        speed = int(read(folder / "cpu_capacity") or 0)
        return same_core.index(cpu), -speed, -cpu

    return sorted(allowed, key=rank)[:count]


def place_threads(job: dict[str, Any]) -> list[int] | None:
    """Pin the calling thread; return one CPU per thread, or None when nothing is pinned."""
    if job["pin"] is None:
        return None
    if not CAN_PIN:
        raise Refusal("not_as_asked", "this system cannot pin threads; set pin to null")
    allowed, threads = os.sched_getaffinity(0), job["threads"]
    cpus = best_cpus(allowed, threads) if job["pin"] == "auto" else list(job["pin"])
    if not len(cpus) == len(set(cpus)) == threads or not allowed.issuperset(cpus):
        raise Refusal(
            "not_as_asked",
            f"{threads} thread(s) need as many different CPUs, pin is {job['pin']} and this "
            f"process may use CPUs {sorted(allowed)}. Ask for fewer threads, name other CPUs, or "
            "set pin to null (None)",
        )
    os.sched_setaffinity(0, {cpus[0]})
    if os.sched_getaffinity(0) != {cpus[0]}:
        raise Refusal("not_as_asked", f"the calling thread did not stay on CPU {cpus[0]}")
    return cpus


def thread_affinities() -> dict[str, str | None]:
    """Return {thread id: list of CPUs it may run on} of this process; empty where unknown."""
    found = Path("/proc/self/task").glob("*/status")
    return {path.parent.name: field(read(path), "Cpus_allowed_list") for path in found}


# Runtimes: small classes of one shape (open, check, run, outputs)


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
        before = set(thread_affinities())
        try:
            self.session = onnxruntime.InferenceSession(
                self.model["path"], options, providers=["CPUExecutionProvider"]
            )
        except Exception as err:  # the binding's own types differ between versions
            raise self._load_refusal(err) from err
        self.own_threads = set(thread_affinities()) - before
        self._bind()

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
            if dtype.kind == "f":
                value = np.asarray(rng.standard_normal(shape), dtype)
            else:
                # Wide integers and booleans are mostly indices and masks, where only 0 and 1 are
                # always in range; bytes are pixels.
                top = 2 if dtype.itemsize > 1 or dtype.kind == "b" else 128
                value = np.asarray(rng.randint(0, top, size=shape), dtype)
            binding.bind_ortvalue_input(node.name, onnxruntime.OrtValue.ortvalue_from_numpy(value))
            self.inputs.append({"name": node.name, "dtype": str(dtype), "shape": shape})
        for node in self.session.get_outputs():
            binding.bind_output(node.name, "cpu")
        self.binding = binding
        self.run = functools.partial(self.session.run_with_iobinding, binding)

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
            "providers": ["CPUExecutionProvider"],
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
        """Return facts about the last run's outputs, to compare machines and repetitions."""
        import numpy as np

        facts = []
        names = [node.name for node in self.session.get_outputs()]
        for index, value in enumerate(self.binding.copy_outputs_to_cpu()):
            array = np.ascontiguousarray(value)
            wide = array.astype(np.float64)
            facts.append(
                {
                    "name": names[index],
                    "dtype": str(array.dtype),
                    "shape": list(array.shape),
                    "sha256": hashlib.sha256(array.tobytes()).hexdigest(),
                    "finite": bool(np.isfinite(wide).all()),
                    "mean": float(wide.mean()) if np.isfinite(wide).all() and wide.size else None,
                }
            )
        return facts


RUNTIMES = {"onnxruntime": OnnxRuntime}


def fixed_shape(name: str, shape: list[Any], batch: int | None, first: bool) -> list[int]:
    """Return the shape with a dynamic first dimension filled in; refuse any other unknown size."""
    fixed = list(shape)
    if fixed and not is_size(fixed[0]):
        fixed[0] = batch
    if not all(is_size(dim) for dim in fixed):
        raise Refusal(
            "dynamic_shape",
            f"input '{name}' has shape {shape}; a measurement needs fixed sizes. Give a batch size "
            "for the first dimension, and export with fixed sizes for the others",
        )
    if first and batch is not None and shape and fixed[0] != batch:
        raise Refusal(
            "not_as_asked",
            f"batch {batch} was asked for, input '{name}' is fixed to {shape}. Export with that "
            "batch size, or leave the batch out",
        )
    return fixed


def is_size(dim: Any) -> bool:
    return isinstance(dim, int) and dim > 0


# Measuring


class Progress:
    """Tells on standard error how far the whole job is, in 0..1."""

    def __init__(self, job: dict[str, Any]) -> None:
        shares = {
            "alone": 1.0,  # about what starting a process with a runtime takes
            "warmup": job["warmup_min_s"],
            "measure": max(job["min_time_s"], job["min_blocks"] * 2 * job["turn_s"]),
        }
        total = sum(shares.values())
        self.shares = {stage: share / total for stage, share in shares.items()}

    def tell(self, stage: str, done: float, model: str | None = None) -> None:
        """done: share of this stage in 0..1, over all models."""
        stages = list(self.shares)
        before = sum(self.shares[name] for name in stages[: stages.index(stage)])
        overall = before + self.shares[stage] * min(done, 1.0)
        line = json.dumps({"stage": stage, "model": model, "done": round(overall, 4)})
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


def timed(run: Callable[[], Any], calls: int) -> list[int]:
    """Return the duration of each call in ns, around the call and nothing else."""
    clock = time.perf_counter_ns
    samples = [0] * calls
    for index in range(calls):
        start = clock()
        run()
        samples[index] = clock() - start
    return samples


def run_for(run: Callable[[], Any], seconds: float, calls: int) -> list[int]:
    """Run for at least this long and this often."""
    samples: list[int] = []
    end = time.perf_counter_ns() + seconds * 1e9
    while len(samples) < calls or time.perf_counter_ns() < end:
        samples += timed(run, 1)
    return samples


def median(values: list[int]) -> float:
    # Not the standard library's: with this file's folder on the path, that name is a neighbour's.
    ordered = sorted(values)
    return (ordered[len(ordered) // 2] + ordered[(len(ordered) - 1) // 2]) / 2


def warm_up(run: Callable[[], Any], job: dict[str, Any]) -> dict[str, Any]:
    """Run until the time is over and the running median has settled, or the limit is reached."""
    start = time.perf_counter_ns()
    windows: list[float] = []
    runs, elapsed_s, settled = 0, 0.0, False
    while elapsed_s < job["warmup_min_s"] or (not settled and elapsed_s < job["warmup_max_s"]):
        samples = run_for(run, job["warmup_min_s"] / 5, MIN_CALLS)
        runs += len(samples)
        windows.append(median(samples))
        last = windows[-3:]
        settled = len(last) == 3 and max(last) <= min(last) * (1 + job["warmup_tolerance"])
        elapsed_s = (time.perf_counter_ns() - start) / 1e9
    return {"runs": runs, "time_s": elapsed_s, "settled": settled, "window_medians_ns": windows}


def measure(
    runs: list[Callable[[], Any]], calls: list[int], job: dict[str, Any], progress: Progress
) -> list[dict[str, Any]]:
    """Return the turns in the order they were taken, each with its block, model and samples."""
    rng = random.Random(job["seed"])
    turns: list[dict[str, Any]] = []
    blocks, told = 0, 0.0
    time_ns, samples_taken = [0] * len(runs), [0] * len(runs)
    while True:
        drawn = rng.sample(range(len(runs)), len(runs))
        for order in (drawn, drawn[::-1]):
            for index in order + order[::-1]:
                settle_runs = len(run_for(runs[index], job["settle_s"], 1))
                samples = timed(runs[index], calls[index])
                time_ns[index] += sum(samples)
                samples_taken[index] += len(samples)
                turn = {"block": blocks, "model": index, "settle_runs": settle_runs}
                turns.append({**turn, "samples_ns": samples})
            blocks += 1
        done = min(
            min(time_ns) / 1e9 / job["min_time_s"],
            min(samples_taken) / job["min_samples"],
            blocks / job["min_blocks"],
        )
        if time.perf_counter() > told + 0.2 or done >= 1:
            progress.tell("measure", done)
            told = time.perf_counter()
        if done >= 1:
            return turns


def resident_kb(name: str) -> int | None:
    text = field(read(Path("/proc/self/status")), name)
    return int(text.split()[0]) if text else None


def run_alone(job: dict[str, Any]) -> dict[str, Any]:
    """Load and run the job's one model in this process, which has done nothing else."""
    cpus = place_threads(job)
    runtime = RUNTIMES[job["runtime"]]
    runtime.versions()  # imports it, so that loading the model is timed without that
    with contextlib.suppress(OSError):  # where not allowed, the peak may be that of the import
        Path("/proc/self/clear_refs").write_text("5")
    base_kb = resident_kb("VmRSS")
    session = runtime(job["models"][0], job, cpus)
    start = time.perf_counter_ns()
    session.open()
    loaded = time.perf_counter_ns()
    session.run()
    ran = time.perf_counter_ns()
    return {
        "load_ns": loaded - start,
        "first_run_ns": ran - loaded,
        "peak_memory_kb": resident_kb("VmHWM"),
        "base_memory_kb": base_kb,
        "inputs": session.inputs,
        "outputs": session.outputs(),
    }


def alone(model: dict[str, str], job: dict[str, Any]) -> dict[str, Any]:
    """Have a child process do `run_alone` for one model; a crash there becomes a Refusal."""
    name = model["name"]
    if not os.path.isfile(model["path"]):
        raise Refusal("missing", f"no file at {model['path']}", name)
    child = subprocess.run(
        [sys.executable, os.path.abspath(__file__), "--alone"],
        input=json.dumps({**job, "models": [model]}),
        stdout=subprocess.PIPE,
        text=True,
    )
    if child.returncode < 0:
        raise Refusal("crashed", "the runtime crashed with it", name, -child.returncode)
    try:
        answer: dict[str, Any] = json.loads(child.stdout)
    except ValueError as err:
        text = f"the runtime ended with code {child.returncode} and no answer"
        raise Refusal("crashed", text, name) from err
    if answer["status"] == "interrupted":
        raise KeyboardInterrupt
    if answer["status"] == "error":
        raise Refusal(answer["error"]["kind"], answer["error"]["message"], name)
    facts: dict[str, Any] = answer["alone"]
    return facts


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Measure all models of the job; return the answer's contents."""
    progress = Progress(job)
    unpinned = machine()
    count = len(job["models"])
    facts = []
    for index, model in enumerate(job["models"]):
        progress.tell("alone", index / count, model["name"])
        facts.append({**model, **alone(model, job)})
        content = Path(model["path"]).read_bytes()
        facts[-1]["size_bytes"] = len(content)
        facts[-1]["sha256"] = hashlib.sha256(content).hexdigest()
    runtime = RUNTIMES[job["runtime"]]
    versions = {"python": platform.python_version(), **runtime.versions()}
    cpus = place_threads(job)
    sessions, calls = [], []
    before = state()
    for index, model in enumerate(job["models"]):
        progress.tell("warmup", index / count, model["name"])
        session = runtime(model, job, cpus)
        session.open()
        session.run()
        facts[index]["setup"] = session.check()
        warm = facts[index]["warmup"] = warm_up(session.run, job)
        turn_calls = round(job["turn_s"] * 1e9 / warm["window_medians_ns"][-1])
        calls.append(max(MIN_CALLS, turn_calls))
        sessions.append(session)
    # A collection between two stamps would be counted as the model's time.
    gc.collect()
    gc.disable()
    warmed = state()
    turns = measure([session.run for session in sessions], calls, job, progress)
    return {
        "cpus": cpus,
        "versions": versions,
        "machine": unpinned,
        "state": {"start": before, "warm": warmed, "end": state()},
        "timer_ns": median(timed(lambda: None, 1000)),
        "models": facts,
        "turns": turns,
    }


def answer_to(arguments: list[str]) -> dict[str, Any]:
    """Do what the arguments and standard input ask; every outcome is an answer."""
    try:
        child = arguments[:1] == ["--alone"]
        from_file = arguments and not child
        job = read_job(Path(arguments[0]).read_text() if from_file else sys.stdin.read())
        if job["limit_s"] is not None:
            # The default action of the signal: no Python code runs while a call hangs.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, job["limit_s"])
        if child:
            return {"format": FORMAT, "status": "ok", "alone": run_alone(job)}
        return {"format": FORMAT, "status": "ok", "job": job, **run_job(job)}
    except Refusal as err:
        error = err.facts
    except (KeyboardInterrupt, BrokenPipeError):  # the pipe: nobody is listening any more
        return {"format": FORMAT, "status": "interrupted"}
    except Exception as err:
        traceback.print_exc()
        error = Refusal("internal", f"{type(err).__name__}: {err}").facts
    return {"format": FORMAT, "status": "error", "error": error}


def main() -> int:
    # Runtimes print to standard output when they feel like it; the answer has it for itself.
    answer_to_fd = os.dup(1)
    os.dup2(2, 1)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # The modules beside this file are not for the libraries imported from here on.
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != here]
    # Numpy's own threads have no work here, and would be counted.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    answer = answer_to(sys.argv[1:])
    with os.fdopen(answer_to_fd, "w") as stream:
        json.dump(answer, stream)
    return {"ok": 0, "error": 1, "interrupted": 130}[answer["status"]]


if __name__ == "__main__":
    sys.exit(main())
