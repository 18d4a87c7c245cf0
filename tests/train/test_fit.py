import pytest
import torch
from hooks import Quiet
from torch import nn

from prune2deploy import progress
from prune2deploy.errors import TrainingError
from prune2deploy.train import (
    Classification,
    Distillation,
    TrainSettings,
    evaluate,
    fit,
)

TASK = Classification()


def settings(**changes):
    return TrainSettings(
        **{"epochs": 2, "lr": 0.1, "batch_size": 16, "precision": "fp32"} | changes
    )


def same_state(one, other):
    first, second = one.state_dict(), other.state_dict()
    return all(torch.equal(first[name], second[name]) for name in first)


def plain_training(model, data, made, seed, extra=lambda model: 0.0):
    """SGD written out, one batch after the other."""
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=made.lr,
        momentum=made.momentum,
        nesterov=made.nesterov,
        weight_decay=made.weight_decay,
    )
    model.train()
    for epoch in range(int(made.epochs)):
        loader = data.loader(
            "train", batch_size=made.batch_size, shuffle=True, augment=True, seed=seed, epoch=epoch
        )
        for images, targets in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), targets) + extra(model)
            loss.backward()
            optimizer.step()
    return model.eval()


def test_training_learns(net, corners):
    model, data = net(), corners(train=128)
    before = evaluate(model, TASK, data.loader("test", batch_size=32))["top1"]
    history = fit(model, TASK, data, settings(epochs=4))
    assert before < 60
    assert evaluate(model, TASK, data.loader("test", batch_size=32))["top1"] > 95
    assert history.epochs[-1].loss < history.epochs[0].loss


def test_training_is_what_sgd_written_out_gives(net, corners):
    data, made = corners(), settings(schedule="constant")
    expected = plain_training(net(), data, made, seed=4)
    model = net()
    fit(model, TASK, data, made, seed=4)
    for (name, ours), theirs in zip(
        model.state_dict().items(), expected.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=name)


def test_same_seed_gives_the_same_weights_bit_by_bit(net, corners):
    data, models = corners(), []
    for seed, noise in ((1, 10), (1, 11), (2, 10)):
        torch.manual_seed(noise)
        models.append(net(dropout=0.3))
        fit(models[-1], TASK, data, settings(), seed=seed)
    assert same_state(models[0], models[1])
    assert not same_state(models[0], models[2])


def test_training_does_not_move_torchs_own_generator(net, corners):
    data = corners()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    fit(net(dropout=0.3), TASK, data, settings())
    assert torch.equal(torch.rand(3), expected)


def test_epochs_may_be_fractions(net, corners):
    history = fit(net(), TASK, corners(), settings(epochs=1.5))
    assert [(record.epoch, record.steps) for record in history.epochs] == [(1, 4), (2, 2)]
    # Of four steps, rounded, and one at the least.
    for epochs, steps in ((0.3, 1), (0.45, 2), (0.01, 1)):
        assert fit(net(), TASK, corners(), settings(epochs=epochs)).epochs[0].steps == steps


def test_history_says_what_happened(net, corners):
    seen = []
    data = corners(val=0.25)
    history = fit(net(), TASK, data, settings(), on_epoch=seen.append)
    assert seen == history.epochs
    assert history.precision == "fp32"
    assert not history.stopped_early
    # Six steps: the last of each epoch is step 2 and step 5.
    assert [r.lr for r in history.epochs] == pytest.approx([0.075, 0.1 * (1 - 3**0.5 / 2) / 2])
    assert all(r.images_per_s > 0 and r.val.keys() >= {"top1"} for r in history.epochs)
    assert history.as_dict()["epochs"][1]["steps"] == 3


def test_first_loss_is_that_of_the_untrained_model(net, corners):
    data = corners(train=16)
    (images, targets) = next(iter(data.loader("train", batch_size=16)))
    with torch.no_grad():
        expected = nn.functional.cross_entropy(net().train()(images), targets)
    history = fit(net(), TASK, data, settings(epochs=1))
    assert history.epochs[0].loss == pytest.approx(float(expected), rel=1e-4)


def test_model_ends_in_eval_mode_and_in_plain_memory(corners):
    # The second convolution has several inputs: only there the memory formats differ.
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.Flatten()
    model = nn.Sequential(*layers, nn.Linear(16, 4)).train()
    fit(model, TASK, corners(), settings(epochs=0.5))
    assert not any(module.training for module in model.modules())
    assert all(tensor.is_contiguous() for tensor in model.state_dict().values())
    assert all(parameter.grad is None for parameter in model.parameters())


class Recorder(Quiet):
    """Hooks that write down the order of events."""

    def __init__(self, model):
        self.model = model
        self.events, self.steps = [], []

    def extra_loss(self):
        self.events.append("loss")
        return 0.5 * self.model[0].weight.square().sum()

    def after_backward(self):
        self.events.append("backward")
        assert self.model[0].weight.grad is not None
        self.before = self.model[0].weight.detach().clone()

    def after_step(self, step):
        self.events.append("step")
        self.steps.append(step)
        assert not torch.equal(self.before, self.model[0].weight)


def test_hooks_come_in_their_order_once_per_step(net, corners):
    model = net()
    hooks = Recorder(model)
    fit(model, TASK, corners(train=32), settings(epochs=1), hooks=hooks)
    assert hooks.events == ["loss", "backward", "step"] * 2


def test_hooks_are_told_where_the_training_stands(net, corners):
    model = net()
    hooks = Recorder(model)
    # Two steps in an epoch, and half an epoch at the end.
    made = settings(epochs=1.5, schedule="step", milestones=(0.5,), gamma=0.1, lr=0.2)
    fit(model, TASK, corners(train=32), made, hooks=hooks)
    assert [(s.number, s.total, s.ends_epoch) for s in hooks.steps] == [
        (1, 3, False),
        (2, 3, True),
        (3, 3, True),
    ]
    assert [s.lr for s in hooks.steps] == pytest.approx([0.2, 0.2, 0.02])
    assert hooks.steps[1].progress == pytest.approx(2 / 3)


def test_penalty_is_part_of_the_loss(net, corners):
    data, made = corners(), settings(schedule="constant", epochs=1)
    expected = plain_training(
        net(), data, made, seed=0, extra=lambda model: 0.5 * model[0].weight.square().sum()
    )
    model = net()
    fit(model, TASK, data, made, hooks=Recorder(model))
    torch.testing.assert_close(model[0].weight, expected[0].weight, rtol=1e-4, atol=1e-5)


def test_hooks_may_edit_gradients_and_weights(net, corners):
    class Freeze(Quiet):
        def __init__(self, model):
            self.model = model

        def after_backward(self):
            self.model[6].weight.grad.zero_()

        def after_step(self, step):
            with torch.no_grad():
                self.model[0].weight[3] = 0

    model = net()
    linear = model[6].weight.detach().clone()
    fit(model, TASK, corners(), settings(weight_decay=0), hooks=Freeze(model))
    assert torch.equal(model[6].weight, linear)
    assert model[0].weight[3].abs().sum() == 0
    assert model[0].weight[2].abs().sum() > 0


def test_gradients_are_clipped_after_the_hooks(net, corners):
    class Explode(Quiet):
        def __init__(self, model):
            self.parameters = list(model.parameters())

        def after_backward(self):
            for parameter in self.parameters:
                parameter.grad.mul_(1e6)

        def after_step(self, step):
            pass

    model = net()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    plain = settings(epochs=0.25, momentum=0, nesterov=False, weight_decay=0, grad_clip=0.5, lr=0.1)
    fit(model, TASK, corners(), plain, hooks=Explode(model))
    moved = sum(
        float((old - new.detach()).square().sum())
        for old, new in zip(before, model.parameters(), strict=True)
    )
    # One step of length lr * grad_clip.
    assert moved**0.5 == pytest.approx(0.05, rel=1e-3)


def test_distillation_copies_the_teacher(net, corners):
    data = corners(train=128)
    teacher, student = net(seed=1), net(seed=2)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    teacher.train()
    made = settings(epochs=12, distill=Distillation(temperature=2, alpha=1.0), weight_decay=0)
    fit(student, TASK, data, made, teacher=teacher)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert teacher.training
    teacher.eval()
    images, _ = next(iter(data.loader("train", batch_size=128)))
    with torch.no_grad():
        wanted, found = teacher(images).softmax(1), student(images).softmax(1)
    assert float((wanted - found).abs().mean()) < 0.03
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_distillation_weighs_both_parts(net, corners):
    data = corners(train=16)
    model, teacher = net(seed=1), net(seed=2)
    images, targets = next(iter(data.loader("train", batch_size=16)))
    with torch.no_grad():
        student_logits, teacher_logits = net(seed=1).train()(images), teacher(images)
    p, q = (teacher_logits / 3).softmax(1), (student_logits / 3).softmax(1)
    divergence = float((p * (p / q).log()).sum(1).mean())
    entropy = float(nn.functional.cross_entropy(student_logits, targets))
    made = settings(epochs=1, distill=Distillation(temperature=3, alpha=0.7))
    history = fit(model, TASK, data, made, teacher=teacher)
    expected = 0.3 * entropy + 0.7 * 9 * divergence
    assert history.epochs[0].loss == pytest.approx(expected, rel=1e-4)


def test_label_smoothing_reaches_the_loss(net, corners):
    data = corners(train=16)
    images, targets = next(iter(data.loader("train", batch_size=16)))
    with torch.no_grad():
        logits = net().train()(images)
    expected = nn.functional.cross_entropy(logits, targets, label_smoothing=0.3)
    history = fit(net(), TASK, data, settings(epochs=1, label_smoothing=0.3))
    assert history.epochs[0].loss == pytest.approx(float(expected), rel=1e-4)


def test_lone_last_image_does_not_stop_a_batch_norm(corners):
    # 17 images in batches of 16, and a batch norm that sees one value per image.
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.BatchNorm1d(4))
    history = fit(model, TASK, corners(train=17), settings(epochs=1))
    assert history.epochs[0].steps == 1


class Scripted:
    """A task whose val metric follows a script."""

    metric = "score"
    loss, outputs, agreement = TASK.loss, TASK.outputs, TASK.agreement

    def __init__(self, values, higher_is_better=True):
        self.values = iter(values)
        self.higher_is_better = higher_is_better

    def evaluate(self, predict, loader):
        return {"score": next(self.values)}


def test_early_stopping_brings_the_best_weights_back(net, corners):
    data, model = corners(val=0.25), net()
    weights = []
    history = fit(
        model,
        Scripted([10.0, 30.0, 20.0, 29.0]),
        data,
        settings(epochs=9, early_stop_patience=2),
        on_epoch=lambda record: weights.append(model[0].weight.detach().clone()),
    )
    assert len(history.epochs) == 4
    assert history.stopped_early
    assert history.best_epoch == 2
    assert torch.equal(model[0].weight, weights[1])
    assert not torch.equal(weights[1], weights[3])


def test_lower_may_be_better(net, corners):
    task = Scripted([3.0, 2.0, 2.5], higher_is_better=False)
    history = fit(net(), task, corners(val=0.25), settings(epochs=3, early_stop_patience=5))
    assert history.best_epoch == 2
    assert not history.stopped_early


def test_without_early_stopping_the_last_weights_stay(net, corners):
    history = fit(net(), Scripted([30.0, 10.0]), corners(val=0.25), settings())
    assert history.best_epoch is None
    assert len(history.epochs) == 2


def test_views_across_channels_train_without_channels_last(corners):
    class Views(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3)
            self.linear = nn.Linear(64, 4)

        def forward(self, x):
            return self.linear(self.conv(x).view(x.shape[0], 64))

    model, data = Views(), corners()
    history = fit(model, TASK, data, settings(epochs=1))
    assert history.epochs[0].steps == 4
    loader = data.loader("test", batch_size=8)
    with torch.no_grad():
        hits = sum(int((model(x).argmax(1) == y).sum()) for x, y in loader)
    assert evaluate(model, TASK, loader)["top1"] == 100 * hits / 32


def test_bf16_training_keeps_float32_weights(net, corners):
    model, data = net(), corners(train=128)
    history = fit(model, TASK, data, settings(epochs=4, precision="bf16"))
    assert history.precision == "bf16"
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert evaluate(model, TASK, data.loader("test", batch_size=32))["top1"] > 90


def test_progress_is_shown(net, corners):
    class Listener:
        def __init__(self):
            self.done = {}

        def open(self, label, total):
            self.done[label] = 0.0
            listener = self

            class Shown:
                def advance(self, steps=1, info=None):
                    listener.done[label] += steps

            return Shown()

        def close(self, task):
            pass

    listener = Listener()
    with progress.use(listener):
        fit(net(), TASK, corners(val=0.25), settings(epochs=2), label="Fine-tuning")
    assert listener.done["Fine-tuning"] == 6
    assert listener.done["Validating"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"early_stop_patience": 1}, r"needs a val set.*data\.val"),
        ({"distill": Distillation()}, "a teacher"),
    ],
)
def test_settings_that_do_not_fit_the_run(net, corners, changes, message):
    with pytest.raises(TrainingError, match=message):
        fit(net(), TASK, corners(), settings(**changes))


def test_teacher_without_distillation_is_refused(net, corners):
    with pytest.raises(TrainingError, match="both, or neither"):
        fit(net(), TASK, corners(), settings(), teacher=net())


def test_parameters_of_a_method_are_left_to_it(net, corners):
    model = net()
    start = model[0].weight.detach().clone()

    class Own(Quiet):
        def own_parameters(self):
            return (model[0].weight,)

    fit(model, TASK, corners(), settings(epochs=1), hooks=Own())
    assert torch.equal(model[0].weight, start)
    assert model[0].weight.grad is not None


def test_a_method_may_own_everything(net, corners):
    model = net()
    before = [p.detach().clone() for p in model.parameters()]

    class Own(Quiet):
        def own_parameters(self):
            return tuple(model.parameters())

    fit(model, TASK, corners(), settings(epochs=1), hooks=Own())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_method_may_replace_the_loss(net, corners):
    model = net()
    before = [p.detach().clone() for p in model.parameters()]
    seen = []

    class Nothing(Quiet):
        def whole_loss(self, loss, images, output):
            seen.append((loss.dim(), len(images), len(output)))
            return loss * 0

    fit(model, TASK, corners(), settings(epochs=1, weight_decay=0.0), hooks=Nothing())
    assert seen[0] == (0, 16, 16)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("first", [2, 6])
def test_a_run_that_goes_on_has_the_images_and_rates_of_what_is_left(net, corners, first):
    """Four steps an epoch: within the first one, and within the second."""

    class Watching(Quiet):
        def __init__(self):
            self.seen = []

        def whole_loss(self, loss, images, output):
            self.images = images.clone()
            return loss

        def after_step(self, step):
            self.seen.append((step.number, step.lr, step.ends_epoch, self.images))

    data, whole, rest = corners(), Watching(), Watching()
    fit(net(), TASK, data, settings(epochs=3, warmup_epochs=1), hooks=whole)
    going_on = settings(epochs=3, warmup_epochs=1, first_step=first)
    history = fit(net(), TASK, data, going_on, hooks=rest)
    assert [epoch.epoch for epoch in history.epochs] == list(range(first // 4 + 1, 4))
    assert len(rest.seen) == 12 - first
    for found, expected in zip(rest.seen, whole.seen[first:], strict=True):
        assert found[:3] == expected[:3]
        assert torch.equal(found[3], expected[3])


def test_a_run_cannot_go_on_from_beyond_its_end(net, corners):
    with pytest.raises(TrainingError, match=r"first_step is 8, and the run has 8 steps"):
        fit(net(), TASK, corners(), settings(first_step=8))
