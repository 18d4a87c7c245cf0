"""Results that are known without asking PyTorch must be what PyTorch would say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from prune2deploy.channels.observe import _bind
from prune2deploy.channels.shapes import known_result

aten = torch.ops.aten


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def norm(*extra: Any, training: bool, channels: int = 5) -> tuple[Any, ...]:
    vectors = [meta(channels) for _ in range(4)]
    return (aten.native_batch_norm.default, meta(2, 5, 4, 4), *vectors, training, 0.1, 1e-5)


CALLS = [
    (aten.relu.default, meta(2, 3, 4)),
    (aten.silu_.default, meta(2, 3)),
    (aten.add.Tensor, meta(2, 3, 4), meta(3, 1)),
    (aten.mul.Tensor, meta(2, 3, 4), 0.5),
    (aten.div.Tensor, meta(2, 3, 4), meta(4)),
    norm(training=False),
    norm(training=True),
    (aten._softmax.default, meta(2, 3, 4), -1, False),
    (aten._safe_softmax.default, meta(2, 3, 4), 1),
    (aten.native_layer_norm.default, meta(2, 3, 4), [4], meta(4), meta(4), 1e-5),
    (aten.native_layer_norm.default, meta(2, 3, 4), [3, 4], None, None, 1e-5),
    (aten.addmm.default, meta(5), meta(3, 4), meta(4, 5)),
    (aten.addmm.default, meta(5), meta(3, 4), meta(5, 4).t()),
]
# Broken or unusual calls are PyTorch's to answer, by an error or by promotion.
OTHERS = [
    (aten.add.Tensor, meta(3, 1), meta(2, 3, 4)),
    (aten.add.Tensor, meta(3), meta(3, dtype=torch.float64)),
    norm(training=False, channels=4),
    (aten.native_layer_norm.default, meta(2, 3, 4), [3], None, None, 1e-5),
    (aten.native_layer_norm.default, meta(2, 3, 4), [4], meta(3), None, 1e-5),
    (aten.native_layer_norm.default, meta(2, 4, 3).transpose(1, 2), [4], None, None, 1e-5),
    (aten.addmm.default, meta(4), meta(3, 4), meta(4, 5)),
    (aten.addmm.default, meta(5), meta(3, 3), meta(4, 5)),
]


def known(call: tuple[Any, ...]) -> Any:
    function, *args = call
    name = str(function._schema.name).replace("::", ".")
    return known_result(name, _bind(function, args, {}))


@pytest.mark.parametrize("call", CALLS, ids=lambda call: str(call[0]))
def test_known_results_are_those_of_pytorch(call: tuple[Any, ...]) -> None:
    found = known(call)
    function, *args = call
    wanted = function(*args)
    assert found is not None
    pairs = [(found, wanted)] if isinstance(found, Tensor) else zip(found, wanted, strict=True)
    for mine, theirs in pairs:
        assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)
        assert mine.stride() == theirs.stride()


@pytest.mark.parametrize("call", OTHERS, ids=lambda call: str(call[0]))
def test_what_is_unusual_is_left_to_pytorch(call: tuple[Any, ...]) -> None:
    assert known(call) is None
