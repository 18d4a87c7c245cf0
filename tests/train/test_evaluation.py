from collections import namedtuple

import pytest
import torch
from torch import nn

from prune2deploy.errors import DataError
from prune2deploy.train import Classification, evaluate, recalibrate_batchnorm
from prune2deploy.train.evaluation import map_tensors


def batches(count=4, size=8, channels=3, mean=5.0, deviation=2.0):
    generator = torch.Generator().manual_seed(0)
    return [
        (mean + deviation * torch.randn(size, channels, 4, 4, generator=generator), None)
        for _ in range(count)
    ]


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_evaluation_runs_in_eval_mode_and_changes_nothing(net, corners):
    model = net(dropout=0.5)
    model[0].train()
    before = state(model)
    loader = corners().loader("test", batch_size=7)
    first = evaluate(model, Classification(), loader)
    assert evaluate(model, Classification(), loader) == first
    assert model[0].training
    assert not model[5].training
    assert all(torch.equal(before[name], value) for name, value in state(model).items())


def test_evaluation_agrees_with_counting_by_hand(net, corners):
    model, loader = net(), corners().loader("test", batch_size=7)
    with torch.no_grad():
        hits = [int((model(x).argmax(1) == y).sum()) for x, y in loader]
    assert evaluate(model, Classification(), loader)["top1"] == 100 * sum(hits) / 32


def test_bf16_evaluation_hands_out_float32(net, corners):
    seen = []

    class Spy(Classification):
        def evaluate(self, predict, loader):
            seen.append(predict(torch.rand(2, 1, 6, 6)))
            return {}

    loader = corners().loader("test", batch_size=8)
    evaluate(net(), Spy(), loader, precision="fp32")
    evaluate(net(), Spy(), loader, precision="bf16")
    exact, rounded = seen
    assert rounded.dtype == torch.float32
    # float32 values that bf16 can hold: their lower 16 bits are zero.
    assert (rounded.view(torch.int32) & 0xFFFF).count_nonzero() == 0
    assert (exact.view(torch.int32) & 0xFFFF).count_nonzero() > 0


def test_structures_keep_their_form():
    Pair = namedtuple("Pair", ["a", "b"])
    value = {"x": [torch.tensor(1), "text"], "y": Pair(torch.tensor(2), (None,))}
    changed = map_tensors(value, lambda tensor: tensor + 1)
    assert changed == {"x": [torch.tensor(2), "text"], "y": Pair(torch.tensor(3), (None,))}
    assert type(changed["y"]) is Pair


def test_recalibration_finds_the_mean_and_variance_of_the_data():
    norm = nn.BatchNorm2d(3)
    assert recalibrate_batchnorm(norm, batches(), 4) == 4
    everything = torch.stack([x for x, _ in batches()])
    torch.testing.assert_close(norm.running_mean, everything.mean(dim=(0, 1, 3, 4)))
    # The mean of the four batches' own unbiased variances.
    variances = torch.stack([x.var(dim=(0, 2, 3)) for x, _ in batches()])
    torch.testing.assert_close(norm.running_var, variances.mean(0))


def test_recalibrated_network_is_as_good_as_one_set_by_hand():
    # EagleEye's constant shift: data of mean 5, statistics of mean 0.
    stale = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 4))
    by_hand = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 4))
    by_hand.load_state_dict(stale.state_dict())
    data = batches(count=8, size=32)
    by_hand[0].running_mean.fill_(5.0)
    by_hand[0].running_var.fill_(4.0)
    recalibrate_batchnorm(stale, data, 8)
    x = data[0][0]
    difference = stale.eval()(x) - by_hand.eval()(x)
    assert difference.abs().max() < 0.05


def test_recalibration_touches_statistics_only():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.Dropout(0.5))
    model[2].train()
    model[1].eval()
    before = state(model)
    recalibrate_batchnorm(model, batches(), 2)
    after = state(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert model[1].momentum == 0.3
    assert [module.training for module in model] == [True, False, True]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_dropout_does_not_disturb_the_statistics():
    plain, dropped = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    recalibrate_batchnorm(plain, batches(), 4)
    recalibrate_batchnorm(nn.Sequential(nn.Dropout(0.5), dropped).train(), batches(), 4)
    assert torch.equal(dropped.running_var, plain.running_var)


def test_only_so_many_batches_are_used():
    norm = nn.BatchNorm2d(3)
    assert recalibrate_batchnorm(norm, batches(count=5), 2) == 2
    expected = torch.stack([x for x, _ in batches(count=5)[:2]]).mean(dim=(0, 1, 3, 4))
    torch.testing.assert_close(norm.running_mean, expected)


def test_norm_that_the_forward_pass_does_not_reach_keeps_its_statistics():
    class Side(nn.Module):
        def __init__(self):
            super().__init__()
            self.main, self.side = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
            self.side.running_mean.fill_(7.0)

        def forward(self, x):
            return self.main(x)

    model = Side()
    recalibrate_batchnorm(model, batches(), 2)
    assert model.side.running_mean.tolist() == [7.0] * 3
    assert model.main.running_mean.min() > 4


def test_model_without_norms_needs_no_data():
    def fail():
        raise AssertionError("the loader was read")
        yield

    assert recalibrate_batchnorm(nn.Conv2d(3, 2, 1), fail(), 4) == 0
    assert recalibrate_batchnorm(nn.BatchNorm2d(3, track_running_stats=False), fail(), 4) == 0


def test_single_images_have_no_deviation():
    norm = nn.BatchNorm2d(3)
    norm.running_mean.fill_(7.0)
    with pytest.raises(DataError, match=r"at least 2 images.*batch_size"):
        recalibrate_batchnorm(norm, batches(size=1), 2)
    assert norm.running_mean.tolist() == [7.0] * 3
    assert recalibrate_batchnorm(norm, [*batches(size=1), *batches(count=1)], 2) == 1


def test_failed_forward_leaves_the_statistics():
    norm = nn.BatchNorm2d(3, momentum=0.2)
    norm.running_mean.fill_(7.0)
    with pytest.raises(RuntimeError):
        recalibrate_batchnorm(norm, [*batches(count=1), *batches(channels=4)], 2)
    assert norm.running_mean.tolist() == [7.0] * 3
    assert norm.momentum == 0.2
