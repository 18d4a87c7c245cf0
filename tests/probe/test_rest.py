"""Worker threads of one model must not be in the way of the next one's."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnxruntime
import pytest
from tiny_onnx import ConvModel
from worker_threads import start_worker

from prune2deploy.probe.job import ASKS, COMMON
from prune2deploy.probe.measuring import LOOK_S, Progress, measure, rest

pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
DATA = np.zeros((1, 3, 16, 16), np.float32)


@contextmanager
def computing(seconds: float) -> Iterator[None]:
    """Have another thread compute for so long."""
    thread = start_worker(seconds)
    try:
        yield
    finally:
        thread.join()


def test_another_thread_is_waited_for_until_it_ends() -> None:
    with computing(0.3):
        waited = rest(limit_s=30)
    assert waited is not None
    assert waited > 0.15
    assert rest(limit_s=30) is not None


def test_a_thread_that_never_rests_is_told() -> None:
    with computing(1.0):
        assert rest(limit_s=0.1) is None


@pytest.mark.parametrize(("spinning", "long"), [("1", True), ("0", False)])
def test_the_runtimes_threads_that_look_for_work_are_seen(
    conv_model: ConvModel, spinning: str, long: bool
) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.add_session_config_entry("session.intra_op.allow_spinning", spinning)
    session = onnxruntime.InferenceSession(
        conv_model(8), options, providers=["CPUExecutionProvider"]
    )
    waits = []
    for _ in range(5):
        session.run(None, {"x": DATA})
        waits.append(rest(limit_s=30) or 0.0)
    assert (sorted(waits)[2] > 1.5 * LOOK_S) == long


def turns_of(count: int, threads: int) -> list[dict[str, Any]]:
    job = {**COMMON, **ASKS["measure"], "threads": threads}
    job |= {"min_time_s": 0.001, "min_samples": 3, "min_blocks": 4, "turn_s": 0.001}
    runs = [lambda: time.sleep(0.001)] * count
    return measure(runs, [3] * count, job, Progress(job))


def test_a_turn_waits_where_the_model_changes_and_has_workers() -> None:
    turns = turns_of(2, threads=2)
    for before, turn in itertools.pairwise(turns):
        if before["model"] == turn["model"]:
            assert turn["rest_s"] == 0
        else:
            assert turn["rest_s"] is None or turn["rest_s"] >= LOOK_S
    assert turns[0]["rest_s"] == 0
    assert all(turn["rest_s"] == 0 for turn in turns_of(2, threads=1))
    assert all(turn["rest_s"] == 0 for turn in turns_of(1, threads=2))
