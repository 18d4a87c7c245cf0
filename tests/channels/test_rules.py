"""Which channels each operator ties together: groups by hand, and every cut exact."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from networks import Net, assert_groups, conv, randomize_norms
from torch import Tensor, nn

from prune2deploy.channels import Role, cut, trace
from prune2deploy.channels.rules.shapes import matching_blocks

OUTPUT = "reaches the model's output"


def test_convolutions_in_a_row_have_one_group_each(image: Tensor) -> None:
    model = nn.Sequential(
        conv(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        conv(8, 6, 3, bias=False),
        nn.Tanh(),
        conv(6, 4),
    )
    graph = assert_groups(model, image, {"0": 8, "3": 6}, {"5": OUTPUT})
    slots = {(s.tensor, s.dim): s.role for s in graph.groups[0].slots}
    assert slots == {
        ("0.weight", 0): Role.PRODUCER,
        ("0.bias", 0): Role.PRODUCER,
        ("1.weight", 0): Role.SCALE,
        ("1.bias", 0): Role.SHIFT,
        ("1.running_mean", 0): Role.STATISTIC,
        ("1.running_var", 0): Role.STATISTIC,
        ("3.weight", 1): Role.CONSUMER,
    }


def test_a_residual_addition_couples_both_sides(image: Tensor) -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        x = net.stem(x)
        return net.head(F.relu(x + net.norm(net.second(F.relu(net.first(x))))))

    model = Net(
        forward,
        stem=conv(3, 8),
        first=conv(8, 5, 3, padding=1),
        second=conv(5, 8, 3, padding=1),
        norm=nn.BatchNorm2d(8),
        head=conv(8, 4),
    )
    graph = assert_groups(model, image, {"stem": 8, "first": 5})
    assert graph.groups[0].layers == ["stem", "first", "second", "norm", "head"]


def test_concatenated_channels_stay_separate(image: Tensor) -> None:
    model = Net(
        lambda net, x: net.head(F.relu(net.norm(torch.cat([net.a(x), x, net.b(x)], 1)))),
        a=conv(3, 8),
        b=conv(3, 6),
        norm=nn.BatchNorm2d(17),
        head=conv(17, 4),
    )
    graph = assert_groups(model, image, {"a": 8, "b": 6})
    second = next(g for g in graph.groups if g.name == "b")
    where = next(s for s in second.slots if s.tensor == "head.weight")
    assert where.index.ravel().tolist() == list(range(11, 17))


def test_a_depthwise_convolution_follows_the_layer_before_it(image: Tensor) -> None:
    model = nn.Sequential(
        conv(3, 8), nn.ReLU6(), conv(8, 8, 3, groups=8), nn.BatchNorm2d(8), conv(8, 4)
    )
    graph = assert_groups(model, image, {"0": 8})
    small = cut(model, graph.plan([[1, 4, 5]]))
    assert (small[2].groups, small[2].in_channels, small[2].out_channels) == (3, 3, 3)


def test_a_depthwise_convolution_with_a_multiplier_removes_its_copies(image: Tensor) -> None:
    model = nn.Sequential(conv(3, 8), conv(8, 24, 3, groups=8), nn.BatchNorm2d(24), conv(24, 4))
    graph = assert_groups(model, image, {"0": 8})
    small = cut(model, graph.plan([[0, 7]]))
    assert (small[1].groups, small[1].in_channels, small[1].out_channels) == (2, 2, 6)
    torch.testing.assert_close(small[1].weight, model[1].weight[[0, 1, 2, 21, 22, 23]])


def test_many_small_convolution_groups_go_as_a_whole(image: Tensor) -> None:
    # 4 groups of 2 inputs: 4 whole groups leave more to choose from than 2 positions.
    model = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 12, 3, groups=4), nn.ReLU(), conv(12, 4))
    graph = assert_groups(model, image, {"0": 4})
    small = cut(model, graph.plan([[0, 2]]))
    assert (small[2].groups, small[2].in_channels, small[2].out_channels) == (2, 4, 6)


def test_few_large_convolution_groups_lose_the_same_position_each(image: Tensor) -> None:
    # 2 groups of 8 inputs: 8 positions are more than 2 groups; 6 positions of outputs.
    model = nn.Sequential(conv(3, 16), nn.ReLU(), conv(16, 12, 3, groups=2), conv(12, 4))
    graph = assert_groups(model, image, {"0": 8, "2": 6})
    small = cut(model, graph.plan([[0, 2, 3], [5]]))
    assert (small[2].groups, small[2].in_channels, small[2].out_channels) == (2, 6, 2)
    torch.testing.assert_close(small[2].weight, model[2].weight[[5, 11]][:, [0, 2, 3]])


def test_a_grouped_convolution_of_the_image_loses_output_positions() -> None:
    model = nn.Sequential(conv(4, 16, 1, groups=2), nn.ReLU(), conv(16, 4))
    assert_groups(model, torch.randn(2, 4, 5, 5), {"0": 8})


def test_transposed_convolutions_have_inputs_first(image: Tensor) -> None:
    model = nn.Sequential(
        conv(3, 12),
        nn.ConvTranspose2d(12, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        conv(8, 4),
    )
    graph = assert_groups(model, image, {"0": 12, "1": 8})
    small = cut(model, graph.plan([range(5), range(3)]))
    assert (small[1].in_channels, small[1].out_channels) == (5, 3)


@pytest.mark.parametrize(
    ("outputs", "groups", "sizes"),
    [(12, 4, {"0": 4}), (8, 2, {"0": 6, "1": 4}), (2, 2, {"0": 6})],
)
def test_grouped_transposed_convolutions(
    image: Tensor, outputs: int, groups: int, sizes: dict[str, int]
) -> None:
    model = nn.Sequential(
        conv(3, 12),
        nn.ConvTranspose2d(12, outputs, 3, groups=groups),
        nn.BatchNorm2d(outputs),
        conv(outputs, 4),
    )
    assert_groups(model, image, sizes)


@pytest.mark.parametrize("bias", [True, False])
def test_a_channel_owns_its_columns_after_a_flatten(image: Tensor, bias: bool) -> None:
    model = nn.Sequential(
        conv(3, 8, 3, bias=bias),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(200, 10, bias=bias),
        nn.ReLU(),
        nn.Linear(10, 4, bias=bias),
    )
    graph = assert_groups(model, image, {"0": 8, "3": 10}, {"5": OUTPUT})
    columns = next(s for s in graph.groups[0].slots if s.tensor == "3.weight")
    assert columns.index.tolist() == [list(range(25 * c, 25 * c + 25)) for c in range(8)]
    small = cut(model, graph.plan([[2, 3], [1]]))
    assert (small[3].in_features, small[3].out_features) == (50, 1)


def test_an_unflatten_gives_the_channels_back(image: Tensor) -> None:
    # 144 pixels are more than 8 channels, and the channels are what comes out all the same.
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        x = net.stem(x)
        return net.head(x.flatten(1).view(len(x), x.shape[1], -1).mean(2))

    model = Net(forward, stem=conv(3, 8), head=nn.Linear(8, 4))
    assert_groups(model, image, {"stem": 8})


def test_squeeze_and_excitation_has_a_width_of_its_own(image: Tensor) -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        x = F.silu(net.norm(net.stem(x)))
        gate = net.expand(F.relu(net.squeeze(F.adaptive_avg_pool2d(x, 1))))
        return net.head(x * torch.sigmoid(gate))

    model = Net(
        forward,
        stem=conv(3, 8, 3),
        norm=nn.BatchNorm2d(8),
        squeeze=conv(8, 3),
        expand=conv(3, 8),
        head=conv(8, 4),
    )
    assert_groups(model, image, {"stem": 8, "squeeze": 3})


def test_a_channel_shuffle_ties_what_it_interleaves(image: Tensor) -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        x = net.stem(x)
        n, c, h, w = x.shape
        shuffled = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return net.head(F.relu(shuffled))

    model = Net(forward, stem=conv(3, 12), head=conv(12, 4))
    graph = assert_groups(model, image, {"stem": 6})
    rows = next(s for s in graph.groups[0].slots if s.tensor == "stem.weight")
    assert rows.index.tolist() == [[c, c + 6] for c in range(6)]


def test_a_parameter_used_directly_follows_its_channels(image: Tensor) -> None:
    model = Net(
        lambda net, x: net.head(
            net.stem(x) * net.scale.view(1, -1, 1, 1) + net.shift[:, None, None]
        ),
        stem=conv(3, 8),
        scale=nn.Parameter(torch.randn(8)),
        shift=torch.randn(8),
        head=conv(8, 4),
    )
    graph = assert_groups(model, image, {"stem": 8})
    small = cut(model, graph.plan([[1, 6]]))
    torch.testing.assert_close(small.scale, model.scale[[1, 6]])
    torch.testing.assert_close(small.shift, model.shift[[1, 6]])


def test_a_functional_convolution_needs_no_module(image: Tensor) -> None:
    model = Net(
        lambda net, x: net.head(F.conv2d(net.stem(x), 2 * net.kernel, net.offset)),
        stem=conv(3, 8),
        kernel=nn.Parameter(torch.randn(6, 8, 3, 3)),
        offset=nn.Parameter(torch.randn(6)),
        head=conv(6, 4),
    )
    assert_groups(model, image, {"stem": 8, "kernel": 6})


def test_a_module_called_twice_is_cut_once(image: Tensor) -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        return net.head(net.twice(F.relu(net.twice(net.stem(x)))))

    model = Net(forward, stem=conv(3, 8), twice=conv(8, 8), head=conv(8, 4))
    graph = assert_groups(model, image, {"stem": 8})
    # 144 pixels: 3 → 8, twice 8 → 8, 8 → 4.
    assert graph.cost.macs(graph.full) == 144 * (24 + 64 + 64 + 32)
    assert graph.cost.params(graph.full) == 24 + 8 + 64 + 8 + 32 + 4


@pytest.mark.parametrize("groups", [1, 8])
def test_a_weight_of_two_layers_is_cut_in_both(image: Tensor, groups: int) -> None:
    model = Net(
        lambda net, x: net.head(net.b(F.relu(net.a(net.stem(x))))),
        stem=conv(3, 8),
        a=conv(8, 8, 3, padding=1, groups=groups),
        b=conv(8, 8, 3, padding=1, groups=groups),
        head=conv(8, 4),
    )
    model.b.weight = model.a.weight
    graph = assert_groups(model, image, {"stem": 8})
    small = cut(model, graph.plan([[0, 3, 4]]))
    assert small.b.weight is small.a.weight
    assert (small.b.in_channels, small.b.out_channels) == (3, 3)
    assert small.b.groups == (3 if groups == 8 else 1)


def test_layers_over_space_count_the_channels_they_run_along(image: Tensor) -> None:
    # A linear layer over the pixels of each channel: its cost falls with the channels.
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        x = net.stem(x)
        return net.head(net.mix(x.flatten(2)).sum(2))

    model = Net(forward, stem=conv(3, 8), mix=nn.Linear(144, 10), head=nn.Linear(8, 4))
    graph = trace(model, image)
    stem = next(n for n, g in enumerate(graph.groups) if g.name == "stem")
    kept = graph.full
    assert graph.cost.macs(kept) == 144 * 24 + 8 * 144 * 10 + 8 * 4
    kept = kept.copy()
    kept[stem] = 5
    assert graph.cost.macs(kept) == 144 * 15 + 5 * 144 * 10 + 5 * 4


def test_one_filter_for_every_channel_ties_nothing(image: Tensor) -> None:
    def blur(net: nn.Module, x: Tensor) -> Tensor:
        x = net.stem(x)
        n, c, h, w = x.shape
        return net.head(F.conv2d(x.view(n * c, 1, h, w), net.blur, padding=1).view(n, c, h, w))

    model = Net(blur, stem=conv(3, 8), blur=torch.rand(1, 1, 3, 3), head=conv(8, 4))
    graph = assert_groups(model, image, {"stem": 8})
    assert graph.cost.macs(graph.full) == 144 * (24 + 8 * 9 + 32)


def test_a_convolution_over_the_channels_freezes_them(image: Tensor) -> None:
    model = Net(
        lambda net, x: net.slide(net.stem(x).permute(0, 2, 1, 3)).mean((2, 3)),
        stem=conv(3, 8),
        slide=conv(12, 6, 3),
    )
    assert_groups(model, image, {}, {"stem": "slides along this dimension"})


@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.AvgPool2d(2),
        nn.AdaptiveAvgPool2d(3),
        nn.AdaptiveAvgPool2d(1),
        nn.AdaptiveMaxPool2d(2),
        nn.Upsample(scale_factor=2),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.ReflectionPad2d(1),
        nn.ReplicationPad2d(1),
        nn.ZeroPad2d(1),
        nn.PReLU(8),
        nn.PReLU(),
        nn.Hardswish(),
        nn.GELU(),
        nn.Dropout2d(),
        nn.BatchNorm2d(8, affine=False),
        nn.Identity(),
    ],
    ids=str,
)
def test_layers_without_a_width_leave_the_channels_alone(image: Tensor, pool: nn.Module) -> None:
    assert_groups(nn.Sequential(conv(3, 8), pool, conv(8, 4)), image, {"0": 8})


def test_one_and_three_dimensions_work_like_two() -> None:
    line = nn.Sequential(
        nn.Conv1d(3, 8, 3),
        nn.BatchNorm1d(8),
        nn.MaxPool1d(2),
        nn.Conv1d(8, 6, 3),
        nn.AvgPool1d(2),
        nn.AdaptiveAvgPool1d(2),
        nn.Flatten(),
        nn.Linear(12, 3),
    )
    assert_groups(line, torch.randn(2, 3, 30), {"0": 8, "3": 6})
    volume = nn.Sequential(
        nn.Conv3d(3, 8, 3), nn.BatchNorm3d(8), nn.MaxPool3d(2), nn.AvgPool3d(2), nn.Conv3d(8, 3, 1)
    )
    assert_groups(volume, torch.randn(2, 3, 12, 12, 12), {"0": 8})


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (lambda y: y[:, 3], "select takes an entry of it at a fixed place"),
        (lambda y: y * y.argmax(1, keepdim=True), "argmax reduces this dimension"),
        (lambda y: y.softmax(1), "softmax over this dimension mixes its entries"),
        (
            lambda y: F.max_pool2d(y.transpose(1, 2), 3, 1, 1).transpose(1, 2),
            "mixes neighbours along this dimension",
        ),
        (lambda y: y.roll(1, 1), "rolled by a fixed number of places"),
        (lambda y: y + torch.ones(8, 1, 1), "add with values that cannot be removed"),
        (lambda y: F.pad(y, (0, 0, 0, 0, -1, 1)), "cropped by a negative padding"),
        (lambda y: y.new_zeros(2, 8, 12, 12).add_(y), "the model's code does not allow it"),
    ],
    ids=["entry", "argmax", "softmax", "pool", "roll", "constant", "crop", "written width"],
)
def test_what_depends_on_the_channels_as_a_whole_freezes_them(
    image: Tensor, step: Callable[[Tensor], Tensor], reason: str
) -> None:
    model = Net(
        lambda net, x: net.head(step(net.stem(x))), stem=conv(3, 8), head=nn.LazyConv2d(4, 1)
    )
    model(image)
    graph = assert_groups(model, image, {})
    assert [reason in f.reason for f in graph.frozen if f.name == "stem"] == [True]


def test_zero_padding_of_channels_stays_beside_them(image: Tensor) -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        x = net.stem(x)
        return net.head(net.wide(x) + F.pad(x, (0, 0, 0, 0, 2, 2)))

    model = Net(forward, stem=conv(3, 8), wide=conv(8, 12), head=conv(12, 4))
    graph = assert_groups(model, image, {"stem": 8}, {"wide": "cannot be removed"})
    assert [f.size for f in graph.frozen if f.name == "wide"] == [4]


def test_in_place_changes_of_shape_are_followed(image: Tensor) -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(net.stem(x), 1).squeeze_(3).squeeze_()
        return net.head(x.unsqueeze_(2).squeeze(2))

    model = Net(forward, stem=conv(3, 8), head=nn.Linear(8, 4))
    assert_groups(model, image, {"stem": 8})


def test_a_copy_into_a_buffer_freezes_what_is_copied(image: Tensor) -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        canvas = torch.zeros(2, 10, 12, 12)
        canvas[:, :8] = net.stem(x)
        return net.head(canvas)

    model = Net(forward, stem=conv(3, 8), head=conv(10, 4))
    assert_groups(model, image, {}, {"stem": "copied into a tensor of fixed size"})


def test_padding_with_zeros_like_another_tensor_shrinks_with_it(image: Tensor) -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        x = net.stem(x)
        return net.head(torch.cat([x, torch.zeros_like(x)], 1))

    assert_groups(Net(forward, stem=conv(3, 8), head=conv(16, 4)), image, {"stem": 8})


def test_an_unknown_operator_freezes_what_goes_in(image: Tensor) -> None:
    @torch.library.custom_op("p2d_tests::twist", mutates_args=())
    def twist(x: Tensor) -> Tensor:
        return x.flip(1) * 2

    model = Net(
        lambda net, x: net.head(net.after(twist(net.before(x)))),
        before=conv(3, 8),
        after=conv(8, 6),
        head=conv(6, 4),
    )
    graph = assert_groups(
        model, image, {"after": 6}, {"before": "no rule for the operator p2d_tests.twist"}
    )
    assert graph.unknown_ops == {"p2d_tests.twist": 1}


def test_an_operator_of_somebody_else_is_not_taken_for_one_of_pytorch(image: Tensor) -> None:
    @torch.library.custom_op("p2d_tests::relu_", mutates_args=("x",))
    def relu_(x: Tensor) -> None:
        x.copy_(x.flip(1))

    def forward(net: nn.Module, x: Tensor) -> Tensor:
        x = net.stem(x)
        relu_(x)
        return net.head(x)

    graph = trace(Net(forward, stem=conv(3, 8), head=conv(8, 4)), image)
    assert graph.unknown_ops == {"p2d_tests.relu_": 1}
    assert graph.groups == ()


def test_convolutions_of_a_single_channel_cost_something() -> None:
    model = nn.Sequential(conv(3, 1), conv(1, 1, bias=False), conv(1, 6), conv(6, 2))
    graph = trace(randomize_norms(model), torch.randn(1, 3, 5, 5))
    assert graph.cost.macs(graph.full) == 25 * (3 + 1 + 6 + 12)


@pytest.mark.parametrize(
    ("old", "new", "blocks"),
    [
        ((2, 8, 5, 5), (2, 200), [((0,), (0,)), ((1, 2, 3), (1,))]),
        ((2, 200), (2, 8, 5, 5), [((0,), (0,)), ((1,), (1, 2, 3))]),
        ((1, 6, 1), (6,), [((1,), (0,))]),
        ((4, 6), (3, 8), [((0, 1), (0, 1))]),
        ((2, 3, 4), (6, 2, 2), [((0, 1), (0,)), ((2,), (1, 2))]),
    ],
)
def test_matching_blocks_are_the_smallest_runs(old: object, new: object, blocks: object) -> None:
    assert matching_blocks(old, new) == blocks  # type: ignore[arg-type]
