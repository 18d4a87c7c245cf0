"""Timing."""

from __future__ import annotations

import json
import random
import sys
import time
from typing import Any, Callable, Sequence

MIN_CALLS = 3  # per turn and per warm-up window, so that one outlier is not the median
LOOK_S = 0.02  # two ticks of a slow kernel, which counts a running thread's time at ticks only
RESTING = 0.1  # of a look, that threads use which wait for nothing
REST_LIMIT_S = 1.0


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


def rest(limit_s: float = REST_LIMIT_S) -> float | None:
    """Wait until no other thread of this process computes.

    After its last run a session's worker threads look for work in a busy loop for a while (ONNX
    Runtime's for some 60 ms), on the CPUs that the next session's workers need: its first runs
    take up to three times as long. This thread waits busily as well, so that its CPU keeps its
    clock.

    Returns:
        Seconds it took; None: they did not stop within the limit.
    """
    start = time.perf_counter()
    while True:
        before, look = time.process_time() - time.thread_time(), time.perf_counter()
        while time.perf_counter() < look + LOOK_S:
            pass
        if time.process_time() - time.thread_time() - before < RESTING * LOOK_S:
            return time.perf_counter() - start
        if time.perf_counter() - start > limit_s:
            return None


def median(values: Sequence[float]) -> float:
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
    """Return the turns in the order they were taken, each with its block, model and samples.

    rest_s is what a turn waited for the threads of the model before it; None: in vain.
    """
    rng = random.Random(job["seed"])
    turns: list[dict[str, Any]] = []
    blocks, told = 0, 0.0
    time_ns, samples_taken = [0] * len(runs), [0] * len(runs)
    last = None
    while True:
        drawn = rng.sample(range(len(runs)), len(runs))
        for order in (drawn, drawn[::-1]):
            for index in order + order[::-1]:
                # One thread has no workers, and a model's own are no harm to it.
                apart = job["threads"] > 1 and last not in (None, index)
                rest_s = rest() if apart else 0.0
                last = index
                settle_runs = len(run_for(runs[index], job["settle_s"], 1))
                samples = timed(runs[index], calls[index])
                time_ns[index] += sum(samples)
                samples_taken[index] += len(samples)
                turn = {"block": blocks, "model": index, "settle_runs": settle_runs}
                turns.append({**turn, "rest_s": rest_s, "samples_ns": samples})
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
