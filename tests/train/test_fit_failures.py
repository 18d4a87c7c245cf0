import pytest
import torch
from hooks import Quiet
from torch import nn

from prune2deploy.errors import DataError, TrainingError
from prune2deploy.train import Classification, TrainSettings, fit

TASK = Classification()


def settings(**changes):
    return TrainSettings(
        **{"epochs": 3, "lr": 0.1, "batch_size": 16, "precision": "fp32"} | changes
    )


class NanAfter:
    """A task whose loss is NaN after a given number of steps."""

    metric, higher_is_better = TASK.metric, TASK.higher_is_better
    evaluate, outputs, agreement = TASK.evaluate, TASK.outputs, TASK.agreement

    def __init__(self, steps):
        self.left = steps

    def loss(self, output, target):
        self.left -= 1
        loss = TASK.loss(output, target)
        return loss * float("nan") if self.left < 0 else loss


def snapshots(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_diverged_loss_stops_with_advice(net, corners):
    with pytest.raises(
        TrainingError, match=r"no longer finite in epoch 2.*lower lr \(try 0\.01\).*warmup"
    ):
        fit(net(), NanAfter(5), corners(), settings())


def test_last_good_weights_are_those_from_the_start_of_the_epoch(net, corners):
    model, taken = net(), []
    with pytest.raises(TrainingError):
        fit(
            model,
            NanAfter(6),
            corners(),
            settings(),
            on_epoch=lambda record: taken.append(snapshots(model)),
        )
    assert len(taken) == 1
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in taken[0].items())
    assert not any(module.training for module in model.modules())


def test_weights_that_a_finite_loss_left_infinite_are_not_good(net, corners):
    """The last step of epoch 1 has a finite loss and breaks the weights."""
    model, taken = net(), []

    class Break(Quiet):
        def __init__(self):
            self.steps = 0

        def after_backward(self):
            pass

        def after_step(self, step):
            self.steps += 1
            if self.steps == 8:
                with torch.no_grad():
                    model[6].weight.fill_(float("inf"))

    with pytest.raises(TrainingError, match="epoch 3"):
        fit(
            model,
            TASK,
            corners(),
            settings(),
            hooks=Break(),
            on_epoch=lambda record: taken.append(snapshots(model)),
        )
    # The end of epoch 2 was infinite already, so it is that of epoch 1.
    assert torch.equal(model[6].weight, taken[0]["6.weight"])
    assert torch.isfinite(model[6].weight).all()


def test_last_step_may_not_leave_infinite_weights(net, corners):
    """Nothing follows it whose loss would show."""
    model = net()

    class Break(Quiet):
        def after_backward(self):
            pass

        def after_step(self, step):
            with torch.no_grad():
                model[6].bias.fill_(float("nan"))

    with pytest.raises(TrainingError, match="no longer finite"):
        fit(model, TASK, corners(train=16), settings(epochs=1), hooks=Break())
    assert torch.isfinite(model[6].bias).all()


def test_loss_that_is_never_finite_blames_checkpoint_and_data_first(net, corners):
    model = net()
    before = snapshots(model)
    with pytest.raises(TrainingError, match="check the checkpoint and the data"):
        fit(model, NanAfter(0), corners(), settings())
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in before.items())


def test_bf16_divergence_names_fp32(net, corners):
    with pytest.raises(TrainingError, match="precision: fp32"):
        fit(net(), NanAfter(2), corners(), settings(precision="bf16"))


def test_real_divergence_is_caught(net, corners):
    with pytest.raises(TrainingError, match="no longer finite"):
        fit(net(), TASK, corners(), settings(lr=1e30, epochs=20))


def test_too_few_outputs_for_the_classes(corners):
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    with pytest.raises(DataError, match="model has 3 outputs"):
        fit(model, TASK, corners(), settings())


def test_batch_of_one_for_a_batch_norm(corners):
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.BatchNorm1d(4))
    with pytest.raises(TrainingError, match=r"batch of 1 image.*data\.batch_size to at least 2"):
        fit(model, TASK, corners(), settings(batch_size=1))


def test_task_without_label_smoothing(net, corners):
    class Bare:
        metric, higher_is_better = "top1", True
        loss, evaluate = TASK.loss, TASK.evaluate
        outputs, agreement = TASK.outputs, TASK.agreement

    with pytest.raises(TrainingError, match="Bare has no with_label_smoothing"):
        fit(net(), Bare(), corners(), settings(label_smoothing=0.1))


def test_model_without_parameters(corners):
    with pytest.raises(TrainingError, match="no parameter to train"):
        fit(nn.Flatten(), TASK, corners(), settings())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accelerator": "tpuu"}, "cannot start with accelerator tpuu"),
        ({"strategy": "dpp", "accelerator": "cpu"}, "strategy dpp"),
        ({"strategy": "ddp_spawn", "accelerator": "cpu", "devices": 2}, "Use ddp"),
    ],
)
def test_devices_that_are_not_there(net, corners, changes, message):
    with pytest.raises(TrainingError, match=message):
        fit(net(), TASK, corners(), settings(**changes))
