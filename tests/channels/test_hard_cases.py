"""Couplings and shapes that graph-based pruning tools are known to get wrong."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from networks import Net, assert_cut_is_exact, assert_groups, conv, random_kept
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from prune2deploy.channels import cut, trace

# Concatenated, added to, and taken apart again.


class JoinAndPart(nn.Module):
    """Two branches side by side, a third added to both, and then parted again."""

    def __init__(self, widths: tuple[int, int], part: str) -> None:
        super().__init__()
        self.part = part
        self.sizes = list(widths)
        self.a, self.b = conv(3, widths[0]), conv(3, widths[1])
        self.both = conv(3, sum(widths))
        self.left, self.right = conv(widths[0], 4), conv(widths[1], 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.a(x), self.b(x)], 1) + self.both(x)
        if self.part == "chunk":
            left, right = x.chunk(2, 1)
        elif self.part == "literal sizes":
            left, right = x.split([8, 6], 1)
        else:
            left, right = x.split(self.sizes, 1)
        return self.left(left.relu()) + self.right(right.tanh())


def test_sizes_in_a_list_follow_the_branches_that_were_concatenated(image: Tensor) -> None:
    model = JoinAndPart((8, 6), "sizes")
    graph = assert_groups(model, image, {"a": 8, "b": 6})
    small = cut(model, graph.plan([range(3), range(5)]))
    assert small.sizes == [3, 5]
    assert (small.both.out_channels, small.right.in_channels) == (8, 5)


def test_a_chunk_ties_the_branches_that_were_concatenated(image: Tensor) -> None:
    graph = assert_groups(JoinAndPart((8, 8), "chunk"), image, {"a": 8})
    rows = next(s for s in graph.groups[0].slots if s.tensor == "both.weight")
    assert rows.index.tolist() == [[c, c + 8] for c in range(8)]


def test_literal_split_sizes_stay_and_the_line_is_named(image: Tensor) -> None:
    assert_groups(JoinAndPart((8, 6), "literal sizes"), image, {}, {"a": "x.split([8, 6], 1)"})


def test_a_flatten_to_a_stored_length_follows(image: Tensor) -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.flat = conv(3, 8), 8 * 144
            self.head = nn.Linear(self.flat, 4)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.head(self.stem(x).relu().view(-1, self.flat))
            return result

    graph = assert_groups(Flat(), image, {"stem": 8})
    assert cut(graph.model, graph.plan([range(5)])).flat == 5 * 144


@pytest.mark.parametrize(
    ("stem", "step", "head", "copies"),
    [(24, nn.PixelShuffle(2), 6, 4), (6, nn.PixelUnshuffle(2), 24, 1)],
    ids=["shuffle", "unshuffle"],
)
def test_pixel_shuffles_move_four_channels_to_one(
    image: Tensor, stem: int, step: nn.Module, head: int, copies: int
) -> None:
    model = nn.Sequential(conv(3, stem), step, nn.ReLU(), conv(head, 4))
    graph = assert_groups(model, image, {"0": 6})
    index = {s.tensor: s.index.shape for s in graph.groups[0].slots}
    assert index == {
        "0.weight": (6, copies),
        "0.bias": (6, copies),
        "3.weight": (6, 4 // copies),
    }


# Weights that several layers use, and parameters that no layer owns.


def test_tied_embeddings_follow_the_width_and_keep_their_words(image: Tensor) -> None:
    def forward(net: nn.Module, x: Tensor, words: Tensor) -> Tensor:
        seen = net.patch(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([seen, net.words(words)], 1)
        return net.out(tokens + net.narrow(F.gelu(net.wide(tokens))))

    model = Net(
        forward,
        words=nn.Embedding(11, 8),
        patch=conv(3, 8, 4, stride=4),
        wide=nn.Linear(8, 12),
        narrow=nn.Linear(12, 8),
        out=nn.Linear(8, 11, bias=False),
    )
    model.out.weight = model.words.weight
    graph = assert_groups(
        model,
        (image, torch.randint(11, (2, 5))),
        {"patch": 8, "wide": 12},
        {"words": "its rows are looked up by number"},
    )
    small = cut(model, graph.plan([range(5), range(7)]))
    assert small.out.weight is small.words.weight
    assert (small.words.embedding_dim, small.words.num_embeddings) == (5, 11)
    assert (small.out.in_features, small.out.out_features) == (5, 11)


def test_a_module_that_reads_two_maps_ties_them(image: Tensor) -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        large, small = net.shared(net.a(x)), net.shared(net.b(F.avg_pool2d(x, 2)))
        return net.left(large).mean((2, 3)) + net.right(small).mean((2, 3))

    model = Net(
        forward,
        a=conv(3, 8),
        b=conv(3, 8),
        shared=conv(8, 6, 3),
        left=conv(6, 4),
        right=conv(6, 4),
    )
    graph = assert_groups(model, image, {"a": 8, "shared": 6})
    assert graph.groups[0].layers == ["a", "b", "shared"]


@pytest.mark.parametrize("shape", [(8,), (8, 1, 1)], ids=str)
def test_a_layer_scale_follows_the_residual_it_scales(image: Tensor, shape: tuple[int]) -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        x = net.stem(x)
        return net.head(x + net.gamma.view(-1, 1, 1) * net.body(x))

    gamma = nn.Parameter(torch.randn(shape))
    model = Net(
        forward, stem=conv(3, 8), body=conv(8, 8, 3, padding=1), gamma=gamma, head=conv(8, 4)
    )
    graph = assert_groups(model, image, {"stem": 8})
    small = cut(model, graph.plan([[1, 6]]))
    assert torch.equal(small.gamma, gamma[[1, 6]])


def test_one_multiplier_for_all_channels_ties_nothing(image: Tensor) -> None:
    scale = nn.Parameter(torch.tensor([1.7]))
    model = Net(
        lambda net, x: net.head(net.stem(x) * net.scale),
        stem=conv(3, 8),
        scale=scale,
        head=conv(8, 4),
    )
    graph = assert_groups(model, image, {"stem": 8})
    assert "scale" not in {s.tensor for s in graph.groups[0].slots}


def test_class_token_and_position_table_follow_the_embedding(image: Tensor) -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        tokens = net.patch(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([net.token.expand(len(x), -1, -1), tokens], 1) + net.places
        tokens = tokens + net.narrow(F.gelu(net.wide(net.norm(tokens))))
        return net.head(tokens[:, 0])

    model = Net(
        forward,
        patch=conv(3, 12, 4, stride=4),
        token=nn.Parameter(torch.randn(1, 1, 12)),
        places=nn.Parameter(torch.randn(1, 10, 12)),
        norm=nn.LayerNorm(12),
        wide=nn.Linear(12, 20),
        narrow=nn.Linear(20, 12),
        head=nn.Linear(12, 4),
    )
    graph = assert_groups(model, image, {"patch": 12, "wide": 20}, normalised=True)
    small = cut(model, graph.plan([range(7), range(20)]))
    assert (small.token.shape, small.places.shape) == ((1, 1, 7), (1, 10, 7))
    assert small.norm.normalized_shape == (7,)


# Norms.


@pytest.mark.parametrize(
    ("groups", "channels", "kept", "left"),
    # Two channels of each of 4 groups make 4 channels whole, 2 groups have 4 positions.
    [(1, 8, 3, (1, 3)), (4, 4, 3, (3, 6)), (2, 4, 3, (2, 6)), (8, 8, 3, (3, 3))],
)
def test_group_norms_keep_groups_of_one_size(
    image: Tensor, groups: int, channels: int, kept: int, left: tuple[int, int]
) -> None:
    model = nn.Sequential(conv(3, 8), nn.GroupNorm(groups, 8), nn.ReLU(), conv(8, 4))
    graph = assert_groups(model, image, {"0": channels}, normalised=True)
    small = cut(model, graph.plan([range(kept)]))
    assert (small[1].num_groups, small[1].num_channels) == left


@pytest.mark.parametrize("statistics", [False, True])
def test_instance_norms_follow(image: Tensor, statistics: bool) -> None:
    norm = nn.InstanceNorm2d(8, affine=True, track_running_stats=statistics)
    graph = assert_groups(nn.Sequential(conv(3, 8), norm, conv(8, 4)), image, {"0": 8})
    assert cut(graph.model, graph.plan([range(5)]))[1].num_features == 5


class ByHand(nn.Module):
    """LayerNorm over channels first, as ConvNeXt writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class Permuted(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias)
        return x.permute(0, 3, 1, 2)


@pytest.mark.parametrize("norm", [ByHand(), Permuted(8)], ids=["by hand", "permuted"])
def test_layer_norms_of_maps_follow(image: Tensor, norm: nn.Module) -> None:
    assert_groups(nn.Sequential(conv(3, 8), norm, conv(8, 4)), image, {"0": 8}, normalised=True)


@pytest.mark.parametrize("affine", [False, True])
def test_a_batch_norm_without_statistics_leaves_the_channels_free(
    image: Tensor, affine: bool
) -> None:
    norm = nn.BatchNorm2d(8, affine=affine, track_running_stats=False)
    model = nn.Sequential(conv(3, 8), norm, nn.ReLU(), conv(8, 4))
    graph = trace(model, image)
    assert {g.name: g.size for g in graph.groups} == {"0": 8}
    assert_cut_is_exact(model, image, graph, graph.plan(random_kept(graph.groups)))


@pytest.mark.parametrize(
    "normalised",
    [
        pytest.param(lambda t: t / t.norm(dim=1, keepdim=True), id="divided"),
        pytest.param(lambda t: F.normalize(t, dim=1), id="F.normalize"),
        pytest.param(
            lambda t: t * F.cosine_similarity(t, t.flip(3), dim=1)[:, None], id="cosine_similarity"
        ),
    ],
)
def test_unit_length_over_the_channels_follows(
    image: Tensor, normalised: Callable[[Tensor], Tensor]
) -> None:
    model = Net(lambda net, x: net.head(normalised(net.stem(x))), stem=conv(3, 8), head=conv(8, 4))
    assert_groups(model, image, {"stem": 8}, normalised=True)


# Weights that are computed from other parameters.


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, nn.utils.weight_norm])
def test_weight_norm_is_cut_with_its_weight(
    image: Tensor, wrap: Callable[[nn.Module], nn.Module]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the second is the old one
        depthwise = wrap(conv(8, 8, 3, groups=8))
        layers = [wrap(conv(3, 8, 3)), depthwise, nn.ReLU(), wrap(conv(8, 6)), wrap(conv(6, 4))]
    # A row of zeros has no direction, so a mask would give 0 / 0.
    graph = assert_groups(nn.Sequential(*layers), image, {"0": 8, "3": 6}, normalised=True)
    small = cut(graph.model, graph.plan([range(5), range(3)]))
    assert (small[3].in_channels, small[3].out_channels) == (5, 3)
    assert (small[1].groups, small[1].in_channels, small[1].out_channels) == (5, 5, 5)


@pytest.mark.parametrize("wrap", [parametrizations.spectral_norm, parametrizations.orthogonal])
def test_parametrizations_without_a_rule_stay_whole(
    image: Tensor, wrap: Callable[[nn.Module], nn.Module]
) -> None:
    model = nn.Sequential(
        conv(3, 8), nn.ReLU(), wrap(conv(8, 6)), nn.ReLU(), conv(6, 5), conv(5, 4)
    )
    graph = assert_groups(model, image, {"4": 5})
    assert graph.unknown_ops, "what is left alone is said"
    assert {"0", "2"} <= {f.name for f in graph.frozen}


# Operators between layers.


def selective_kernel(net: nn.Module, x: Tensor) -> Tensor:
    x = net.stem(x)
    both = torch.stack([net.a(x), net.b(x)], 1)
    squeezed = F.relu(net.squeeze(both.sum(1).mean((2, 3))))
    share = net.expand(squeezed).view(len(x), 2, -1).softmax(1)
    mixed: Tensor = (both * share[..., None, None]).sum(1)
    return net.head(mixed)


def test_a_selective_kernel_unit_ties_its_branches(image: Tensor) -> None:
    model = Net(
        selective_kernel,
        stem=conv(3, 8),
        a=conv(8, 6),
        b=conv(8, 6, 3, padding=1),
        squeeze=nn.Linear(6, 5),
        expand=nn.Linear(5, 12),
        head=conv(6, 4),
    )
    assert_groups(model, image, {"stem": 8, "a": 6, "squeeze": 5})


def test_a_gated_linear_unit_halves_its_channels(image: Tensor) -> None:
    assert_groups(nn.Sequential(conv(3, 16), nn.GLU(1), conv(8, 4)), image, {"0": 8})


def test_einsum_is_a_layer_like_any_other(image: Tensor) -> None:
    model = Net(
        lambda net, x: net.head(torch.einsum("bchw,dc->bdhw", net.stem(x), net.mix)),
        stem=conv(3, 8),
        mix=nn.Parameter(torch.randn(6, 8)),
        head=conv(6, 4),
    )
    assert_groups(model, image, {"mix": 6, "stem": 8})


def test_a_product_of_two_maps_keeps_both_widths_apart(image: Tensor) -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        gram = torch.einsum("bchw,bdhw->bcd", net.a(x), net.b(x))
        return net.head(gram.sum(2))

    model = Net(forward, a=conv(3, 8), b=conv(3, 6), head=nn.Linear(8, 4))
    assert_groups(model, image, {"a": 8, "b": 6}, normalised=True)


def test_softmax_attention_over_channels_keeps_them_all(image: Tensor) -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        x = net.stem(x)
        return net.head(net.wide(x * net.gate(x.mean((2, 3), keepdim=True)).softmax(1)))

    parts = {"stem": conv(3, 8), "gate": conv(8, 8), "wide": conv(8, 6), "head": conv(6, 4)}
    reason = "softmax over this dimension mixes its entries"
    frozen = {"gate": reason, "stem": "with values that cannot be removed"}
    assert_groups(Net(forward, **parts), image, {"wide": 6}, frozen)


def test_unfold_and_fold_carry_a_kernel_per_channel(image: Tensor) -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        return net.head(net.fold(net.mix(net.unfold(net.stem(x)))))

    model = Net(
        forward,
        stem=conv(3, 6),
        unfold=nn.Unfold(3, padding=1),
        mix=nn.Conv1d(54, 45, 1),
        fold=nn.Fold((12, 12), 3, padding=1),
        head=conv(5, 4),
    )
    assert_groups(model, image, {"stem": 6, "mix": 5})


def test_where_ties_all_its_operands(image: Tensor) -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        a, b = net.a(x), net.b(x)
        return net.head(torch.where(net.c(x) > 0, a, 0.1 * b))

    model = Net(forward, a=conv(3, 8), b=conv(3, 8), c=conv(3, 8), head=conv(8, 4))
    graph = assert_groups(model, image, {"a": 8})
    assert graph.groups[0].layers == ["a", "b", "c", "head"]


def test_channels_picked_by_number_stay(image: Tensor) -> None:
    model = Net(
        lambda net, x: net.head(net.stem(x)[:, [3, 0, 2, 1]]), stem=conv(3, 4), head=conv(4, 4)
    )
    assert_groups(model, image, {}, {"stem": "picks from it by number"})
