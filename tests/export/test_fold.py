import copy
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrizations
from torch.utils._pytree import tree_leaves
from torchvision import models
from torchvision.ops import FrozenBatchNorm2d

from prune2deploy.errors import ExportError
from prune2deploy.export import fold_batchnorm, remaining_batchnorms


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give all norms statistics and weights that no error could hide behind."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(like.shape, generator=generator) * (high - low) + low

    for module in model.modules():
        if isinstance(module, (_BatchNorm, FrozenBatchNorm2d)) and module.running_mean is not None:
            module.running_mean.copy_(uniform(module.running_mean, -1, 1))
            module.running_var.copy_(uniform(module.running_var, 0.3, 2))
            if module.weight is not None:
                with torch.no_grad():
                    module.weight.copy_(uniform(module.weight, -1.5, 1.5))
                    module.bias.copy_(uniform(module.bias, -1, 1))
    return model.eval()


def assert_same_function(model: nn.Module, folded: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        pairs = list(zip(tree_leaves(model(x)), tree_leaves(folded(x)), strict=True))
    for expected, found in pairs:
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def folded_both_ways(model: nn.Module, x: Tensor) -> list[nn.Module]:
    return [fold_batchnorm(model, x), fold_batchnorm(model)]


# What remains in DenseNet: norms in front of a ReLU. One of the two in each of its
# 6 + 12 + 24 + 16 layers, one in each of 3 transitions, and the last one.
@pytest.mark.parametrize(
    ("name", "remaining"),
    [
        ("resnet18", 0),
        ("mobilenet_v2", 0),
        ("shufflenet_v2_x1_0", 0),
        ("densenet121", 58 + 3 + 1),
        ("googlenet", 2),  # In the auxiliary heads, which eval mode never runs.
    ],
)
def test_torchvision_networks_compute_the_same(name: str, remaining: int) -> None:
    options = {"init_weights": False} if name == "googlenet" else {}
    model = randomised(models.get_model(name, weights=None, **options))
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    for folded in folded_both_ways(model, x):
        assert len(remaining_batchnorms(folded)) == remaining
        assert_same_function(model, folded, x)


PAIRS: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, ...]]] = {
    "conv": (lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)), (2, 3, 7, 7)),
    "conv without bias": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)),
        (2, 3, 7, 7),
    ),
    "grouped, strided, dilated, reflecting": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 6, 3, 2, 2, 2, groups=2, padding_mode="reflect"), nn.BatchNorm2d(6)
        ),
        (2, 4, 9, 9),
    ),
    "depthwise": (
        lambda: nn.Sequential(nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.BatchNorm2d(4)),
        (2, 4, 7, 7),
    ),
    "1-D": (lambda: nn.Sequential(nn.Conv1d(3, 5, 3), nn.BatchNorm1d(5)), (2, 3, 9)),
    "3-D": (lambda: nn.Sequential(nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3)), (2, 2, 4, 4, 4)),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(3, 5, 3, stride=2), nn.BatchNorm2d(5)),
        (2, 3, 4, 4),
    ),
    "transposed and grouped": (
        lambda: nn.Sequential(
            nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2, bias=False), nn.BatchNorm2d(6)
        ),
        (2, 4, 5, 5),
    ),
    "without affine": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6, affine=False, eps=0.3)),
        (2, 3, 4, 4),
    ),
    "frozen": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 1), FrozenBatchNorm2d(6)),
        (2, 3, 4, 4),
    ),
    "before an activation in place": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.ReLU(inplace=True)),
        (2, 3, 4, 4),
    ),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_a_norm_after_a_convolution_disappears(pair: str) -> None:
    build, shape = PAIRS[pair]
    model = randomised(build())
    x = torch.randn(shape)
    for folded in folded_both_ways(model, x):
        assert remaining_batchnorms(folded) == []
        assert isinstance(folded[1], nn.Identity)
        assert folded[0].bias is not None
        assert_same_function(model, folded, x)


def test_constants_go_into_weight_and_bias_as_worked_out_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=0.0)).eval()
    conv, norm = model
    with torch.no_grad():
        conv.weight.fill_(2.0)
        conv.bias.fill_(3.0)
        norm.running_mean.fill_(1.0)
        norm.running_var.fill_(4.0)
        norm.weight.fill_(6.0)
        norm.bias.fill_(5.0)
    folded = fold_batchnorm(model)
    # (2x + 3 - 1) / 2 * 6 + 5 = 6x + 11
    assert folded[0].weight.item() == 6.0
    assert folded[0].bias.item() == 11.0


def test_the_model_is_left_alone_and_the_copy_is_in_eval_mode() -> None:
    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())).train()
    before = copy.deepcopy(model.state_dict())
    for folded in folded_both_ways(model, torch.randn(2, 3, 5, 5)):
        assert not any(module.training for module in folded.modules())
    assert all(module.training for module in model.modules())
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model)


def test_half_precision_weights_stay_half_precision() -> None:
    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))).half()
    folded = fold_batchnorm(model)
    assert folded[0].weight.dtype == folded[0].bias.dtype == torch.float16


class Crossed(nn.Module):
    """Defined in an order that has nothing to do with how data flows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_a = nn.Conv2d(3, 4, 3)
        self.norm_b = nn.BatchNorm2d(4)
        self.norm_a = nn.BatchNorm2d(4)
        self.conv_b = nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm_b(self.conv_b(F.relu(self.norm_a(self.conv_a(x)))))


class AlsoUsedElsewhere(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + y


class AlsoReturned(AlsoUsedElsewhere):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x)
        return self.norm(y), y


class ConvWithTwoNorms(nn.Module):
    """As in detectors that share a head between scales and normalise each scale by itself."""

    def __init__(self, other_norm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.other = nn.BatchNorm2d(3) if other_norm else self.norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + self.other(self.conv(F.avg_pool2d(x, 3, 1, 1)))


class NormAfterTwoConvs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.a(x)) * self.norm(self.b(x))


class WeightReadElsewhere(AlsoUsedElsewhere):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) * self.conv.weight.abs().sum()


class InPlaceBetween(AlsoUsedElsewhere):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        F.relu_(y)
        return self.norm(y)


class CalledAroundItsHooks(AlsoUsedElsewhere):
    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return y + self.norm.forward(y)


class StandardisedConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


def tied() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3))
    model[2].weight = model[0].weight
    return model


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model[0].register_forward_hook(lambda module, args, output: output * 2)
    return model


STAYS: dict[str, Callable[[], nn.Module]] = {
    "activation between": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)),
    "norm first": lambda: nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3)),
    "other consumer": AlsoUsedElsewhere,
    "returned as well": AlsoReturned,
    "changed in place": InPlaceBetween,
    "one conv, two norms": lambda: ConvWithTwoNorms(other_norm=True),
    "weight read elsewhere": WeightReadElsewhere,
    "weight shared": tied,
    "weight of a formula": lambda: nn.Sequential(StandardisedConv(3, 4, 3), nn.BatchNorm2d(4)),
    "weight parametrized": lambda: nn.Sequential(
        parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)
    ),
    "hook between": hooked,
    "norm without statistics": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)
    ),
}


@pytest.mark.parametrize("case", STAYS)
def test_a_norm_that_no_layer_can_take_over_stays(case: str) -> None:
    model = randomised(STAYS[case]())
    x = torch.randn(2, 3, 6, 6)
    for folded in (fold_batchnorm(model, x), fold_batchnorm(model)):
        assert remaining_batchnorms(folded) == remaining_batchnorms(model) != []
        assert_same_function(model, folded, x)


def test_a_norm_that_is_also_called_around_its_hooks_stays() -> None:
    model = randomised(CalledAroundItsHooks())
    x = torch.randn(2, 3, 6, 6)
    folded = fold_batchnorm(model, x)
    assert remaining_batchnorms(folded) == ["norm"]
    assert_same_function(model, folded, x)


@pytest.mark.parametrize(
    "build", [Crossed, NormAfterTwoConvs, lambda: ConvWithTwoNorms(other_norm=False)]
)
def test_a_norm_is_folded_by_how_data_flows(build: Callable[[], nn.Module]) -> None:
    model = randomised(build())
    x = torch.randn(2, 3, 8, 8)
    for folded in folded_both_ways(model, x):
        assert remaining_batchnorms(folded) == []
        assert_same_function(model, folded, x)


def test_linear_layers_are_folded_where_their_shape_is_known() -> None:
    model = randomised(nn.Sequential(nn.Linear(5, 4, bias=False), nn.BatchNorm1d(4)))
    folded = fold_batchnorm(model, torch.randn(3, 5))
    assert remaining_batchnorms(folded) == []
    assert_same_function(model, folded, torch.randn(3, 5))
    assert remaining_batchnorms(fold_batchnorm(model)) == ["1"]


def test_linear_over_tokens_keeps_a_norm_over_the_tokens() -> None:
    # Four tokens and four features: only the axis tells them apart.
    model = randomised(nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)))
    x = torch.randn(3, 4, 5)
    folded = fold_batchnorm(model, x)
    assert remaining_batchnorms(folded) == ["1"]
    assert_same_function(model, folded, x)


class NormWithActivation(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.ndim == 4, "images")
        x = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )
        return F.leaky_relu(x, 0.2)


class NormWithShortcut(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return x + F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


def test_a_norm_with_an_activation_inside_keeps_the_activation() -> None:
    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 3), NormWithActivation(4)))
    x = torch.randn(2, 3, 6, 6)
    for folded in folded_both_ways(model, x):
        assert remaining_batchnorms(folded) == []
        assert_same_function(model, folded, x)


def test_a_norm_that_does_more_with_its_input_stays() -> None:
    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 3), NormWithShortcut(4)))
    x = torch.randn(2, 3, 6, 6)
    for folded in (fold_batchnorm(model, x), fold_batchnorm(model)):
        assert remaining_batchnorms(folded) == ["1"]
        assert_same_function(model, folded, x)


def test_timms_norms_with_activations_are_folded() -> None:
    timm = pytest.importorskip("timm")
    model = randomised(timm.create_model("mobilenetv3_small_050"))
    x = torch.randn(2, 3, 32, 32)
    folded = fold_batchnorm(model, x)
    assert remaining_batchnorms(folded) == []
    assert_same_function(model, folded, x)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) if x.sum() > 0 else self.norm(self.conv(-x))


def test_what_cannot_be_traced_is_folded_by_running_it() -> None:
    model = randomised(Branching())
    with pytest.raises(ExportError, match=r"test_fold\.py.*Give fold_batchnorm example_inputs"):
        fold_batchnorm(model)
    x = torch.randn(2, 3, 6, 6)
    folded = fold_batchnorm(model, x)
    assert remaining_batchnorms(folded) == []
    assert_same_function(model, folded, x)


def test_inputs_that_the_model_cannot_take_are_reported() -> None:
    with pytest.raises(ExportError, match="Check that the model runs"):
        fold_batchnorm(nn.Conv2d(3, 4, 3), torch.randn(1, 2, 5, 5))


def test_a_norm_that_is_not_finite_is_named() -> None:
    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    model[1].running_var[2] = -1.0
    with pytest.raises(ExportError, match="Batch norm '1' holds NaN"):
        fold_batchnorm(model)


def test_folding_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fold_batchnorm(randomised(Crossed()))
