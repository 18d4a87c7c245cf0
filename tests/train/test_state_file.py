"""A state comes back as it was, or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from prune2deploy.train.checkpoint import Checkpoint
from prune2deploy.train.state_file import DamagedError, read_state, write_state

VALUE = {
    "weights": {"a": torch.randn(3, 4), "b": torch.arange(5)},
    1: [1, 2.5, None, "text", True, (1, (2,), [])],
    "array": np.arange(6.0).reshape(2, 3),
    "nan": float("inf"),
    "half": torch.ones(2, dtype=torch.bfloat16),
    "scalar": torch.tensor(3.0),
    "empty": torch.zeros(0),
}


def same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        assert isinstance(other, torch.Tensor)
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return bool(np.array_equal(one, other))  # type: ignore[arg-type]
    if isinstance(one, dict):
        assert isinstance(other, dict)
        return list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    return type(one) is type(other) and one == other


def test_a_value_comes_back(tmp_path: Path) -> None:
    write_state(tmp_path / "state", VALUE)
    assert same(VALUE, read_state(tmp_path / "state"))
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


def test_shared_memory_is_no_trouble(tmp_path: Path) -> None:
    one = torch.arange(4.0)
    write_state(tmp_path / "state", [one, one[1:], one.t()])
    first, second, _ = read_state(tmp_path / "state")
    assert second.tolist() == first[1:].tolist() == [1, 2, 3]


def test_a_value_that_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="no object"):
        write_state(tmp_path / "state", {"x": object()})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("at", [0, 8, 40, 48, 60, 200, -1])
def test_every_changed_byte_is_seen(tmp_path: Path, at: int) -> None:
    path = tmp_path / "state"
    write_state(path, VALUE)
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DamagedError):
        read_state(path)


def test_every_cut_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_state(path, VALUE)
    raw = path.read_bytes()
    for length in range(0, len(raw), 37):
        path.write_bytes(raw[:length])
        with pytest.raises(DamagedError):
            read_state(path)


def test_the_state_of_another_training_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = Checkpoint(tmp_path / "training", "one")
    assert one.read() is None
    one.write({"step": 3})
    assert one.read() == {"step": 3}
    assert Checkpoint(tmp_path / "training", "two").read() is None
    assert "starts anew" in caplog.text
