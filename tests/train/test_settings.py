import math

import pytest

from prune2deploy.errors import TrainingError
from prune2deploy.train import Distillation, TrainSettings
from prune2deploy.train.schedule import learning_rate


def rates(total, warmup=0, **settings):
    made = TrainSettings(epochs=1, lr=0.8, **settings)
    return [learning_rate(step, total, warmup, made) for step in range(total)]


def test_cosine_falls_from_lr_towards_zero():
    assert rates(4) == pytest.approx(
        [0.8, 0.8 * (1 + math.sqrt(0.5)) / 2, 0.4, 0.8 * (1 - math.sqrt(0.5)) / 2]
    )


def test_step_multiplies_at_each_milestone():
    found = rates(8, schedule="step", milestones=(0.5, 0.75), gamma=0.1)
    assert found == pytest.approx([0.8] * 4 + [0.08] * 2 + [0.008] * 2)


def test_constant_stays():
    assert rates(3, schedule="constant") == [0.8] * 3


def test_warm_up_rises_in_a_straight_line_and_the_schedule_follows():
    found = rates(6, warmup=4)
    assert found[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert found[4:] == pytest.approx([0.8, 0.4])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, r"found epochs 0.*expected epochs above 0"),
        ({"lr": float("nan")}, "lr nan"),
        ({"batch_size": 0}, "batch_size of at least 1"),
        ({"schedule": "linear"}, "cosine, step or constant"),
        ({"warmup_epochs": 2}, "less than epochs"),
        ({"milestones": (0.5, 1.5)}, "between 0 and 1"),
        ({"gamma": 0}, "gamma"),
        ({"momentum": 1}, "momentum"),
        ({"momentum": 0}, "nesterov only with momentum"),
        ({"weight_decay": -1}, "weight_decay"),
        ({"label_smoothing": 1}, "label_smoothing"),
        ({"distill": Distillation(temperature=0)}, "temperature above 0"),
        ({"distill": Distillation(alpha=1.5)}, "alpha in"),
        ({"precision": "fp16"}, "auto, fp32 or bf16"),
        ({"early_stop_patience": 0}, "at least 1"),
        ({"grad_clip": 0}, "grad_clip above 0"),
    ],
)
def test_settings_without_sense_are_refused(wrong, message):
    with pytest.raises(TrainingError, match=message):
        TrainSettings(**{"epochs": 2, "lr": 0.1, **wrong})


def test_all_problems_are_named_at_once():
    with pytest.raises(TrainingError, match=r"epochs -1, lr 0.*epochs above 0; lr above 0"):
        TrainSettings(epochs=-1, lr=0)
