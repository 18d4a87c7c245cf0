from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from prune2deploy.errors import ModelError
from prune2deploy.models import check_forward


class Wrong(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.ones(5, 5)  # the line that the message must show


class Pair(nn.Module):
    def forward(self, x: Tensor) -> OrderedDict[str, object]:
        return OrderedDict(out=x, rest=[x.mean(), None])


def test_a_failing_forward_is_reported_with_its_own_line() -> None:
    with pytest.raises(ModelError) as caught:
        check_forward(Wrong(), (3, 8, 8))
    message = str(caught.value)
    assert "(2, 3, 8, 8)" in message
    assert "test_forward.py" in message
    assert "return x @ torch.ones(5, 5)" in message


def test_structures_are_described_and_have_no_class_count() -> None:
    info = check_forward(Pair(), (1, 2, 2))
    assert info.description == "{out: float32 (2, 1, 2, 2), rest: [float32 (), NoneType]}"
    assert info.classes is None


def test_the_mode_of_every_layer_is_restored_and_statistics_untouched() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 4))
    model.train()
    model[1].eval()
    assert check_forward(model, (3, 2, 2)).classes == 4
    assert [m.training for m in model] == [True, False, True, True]
    assert model[0].running_mean.abs().sum() == 0
