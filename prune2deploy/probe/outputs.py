"""What a model makes of given inputs, to compare machines, precisions and runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .job import Refusal
from .placing import place_threads
from .runtimes import prepared, runtime_of

SUFFIX = ".outputs.npz"


def outputs(job: dict[str, Any]) -> dict[str, Any]:
    """Run the model on every sample of a file; answer where the outputs are.

    The file is an .npz with one array per input, named by position ("0", "1", …), the samples
    along the first dimension. The outputs are written beside it in the same form.
    """
    import numpy as np

    job = {**job, "models": [job["model"]], "seed": 0}
    model = prepared(job)[0]
    runtime = runtime_of(job)
    versions = runtime.versions()
    given = _samples(job["inputs"])
    session = runtime(model, job, place_threads(job))
    session.open()
    if len(given) != len(session.inputs):
        raise Refusal(
            "bad_job", f"{len(given)} inputs were given, and the model has {len(session.inputs)}"
        )
    batch = session.inputs[0]["shape"][0] if session.inputs[0]["shape"] else 1
    found: dict[str, list[Any]] = {}
    count = len(given[0])
    for start in range(0, count, batch):
        values = []
        for array, wanted in zip(given, session.inputs):
            chunk = array[start : start + batch]
            _check(chunk, wanted)
            # The last batch is filled up with its last sample, whose answers are dropped.
            chunk = chunk.take(range(batch), axis=0, mode="clip")
            values.append(np.ascontiguousarray(chunk, wanted["dtype"]))
        for name, value in session.predict(values):
            found.setdefault(name, []).append(value[: count - start])
    target = job["inputs"] + SUFFIX
    with Path(target).open("wb") as file:
        joined: dict[str, Any] = {str(n): np.concatenate(p) for n, p in enumerate(found.values())}
        np.savez(file, **joined)
    return {"outputs": target, "names": list(found), "samples": count, "versions": versions}


def _samples(path: str) -> list[Any]:
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as held:
            arrays = [held[str(number)] for number in range(len(held.files))]
    except (OSError, ValueError, KeyError) as err:
        raise Refusal("bad_job", f"{path} holds no samples: {err}") from err
    if not arrays or min(array.ndim for array in arrays) == 0:
        raise Refusal("bad_job", f"{path} holds no samples")
    if len({len(array) for array in arrays}) != 1 or not len(arrays[0]):
        raise Refusal("bad_job", f"the inputs in {path} are not equally many")
    return arrays


def _check(chunk: Any, wanted: dict[str, Any]) -> None:
    if list(chunk.shape[1:]) != list(wanted["shape"][1:]):
        raise Refusal(
            "bad_job",
            f"samples have the shape {list(chunk.shape[1:])}, input '{wanted['name']}' takes "
            f"{list(wanted['shape'][1:])}",
        )
