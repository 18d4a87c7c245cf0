"""The search for a way to divide channels: what one stage allows, all stages must get."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from networks import assert_groups
from torch import Tensor, nn

from prune2deploy.channels import cut
from prune2deploy.channels.tracer import Tracer
from prune2deploy.channels.trial import turns, uneven


class Windows(nn.Module):
    """Attention in windows, whose code computes the width of a head from the embedding's."""

    def __init__(self, width: int, num_heads: int, windows: int = 0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        if windows:
            # As Swin keeps it: one mask per window, which says who may look at whom.
            self.register_buffer("mask", torch.rand(windows, 6, 6).round() * -100)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, c = x.shape
        qkv = self.qkv(x).reshape(n, tokens, 3, self.num_heads, c // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q * (c // self.num_heads) ** -0.5) @ k.transpose(-2, -1)
        if hasattr(self, "mask"):
            scores = scores.view(-1, len(self.mask), self.num_heads, tokens, tokens)
            scores = scores + self.mask[None, :, None]
            scores = scores.view(-1, self.num_heads, tokens, tokens)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(n, tokens, c)
        return x + self.proj(mixed)


def test_stages_with_few_and_with_many_heads_lose_whole_heads() -> None:
    # By length alone the first stage would lose a share of each of its 3 heads, the second some
    # of its 8: the line that divides is the same, and its scale allows whole heads only.
    first, second = Windows(24, 3), Windows(32, 8)
    model = nn.Sequential(nn.Linear(5, 24), first, nn.Linear(24, 32), second, nn.Linear(32, 4))
    graph = assert_groups(model, torch.randn(2, 6, 5), {"0": 3, "2": 8})
    small = cut(model, graph.plan([[0, 2], [1, 4, 6]]))
    assert (small[1].num_heads, small[3].num_heads) == (2, 3)
    assert small[1].qkv.weight.shape == (3 * 16, 16)
    torch.testing.assert_close(small[0].weight, model[0].weight[[*range(8), *range(16, 24)]])


def test_a_mask_of_windows_does_not_stand_before_the_heads() -> None:
    # There are more windows than heads, and both are one dimension of the batched product.
    model = nn.Sequential(nn.Linear(5, 12), Windows(12, 3, windows=7), nn.Linear(12, 4))
    graph = assert_groups(model, torch.randn(14, 6, 5), {"0": 3})
    assert cut(model, graph.plan([[2]]))[1].num_heads == 1


def test_a_narrow_model_that_went_another_way_has_no_way_to_be_told() -> None:
    tracer = Tracer(given_picks=[2, 1])
    labels = tracer.nodes.add_tensor("weight", (6,))
    assert labels.dims[0] is not None
    rows = labels.dims[0].reshape(2, 3)
    assert tracer.choose_axis("view", [rows, rows.T]) is None  # there is no third way
    assert tracer.choose_axis("view", [rows, rows.T]) == 1
    (record,) = tracer.nodes.frozen
    assert np.array_equal(record.ids, np.arange(6))


def test_two_widths_that_the_code_ties_are_found_however_alike_they_are() -> None:
    # Both parts could only be cut to 2 of 3, and then their lengths would be equal by accident.
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c = 3
            self.both = nn.Conv2d(3, 6, 1)
            self.middle = nn.Conv2d(3, 4, 1)
            self.head = nn.Conv2d(7, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.both(x).split((self.c, self.c), 1)
            result: Tensor = self.head(torch.cat([a, self.middle(b.relu())], 1))
            return result

    graph = assert_groups(Halves(), torch.randn(2, 3, 4, 4), {"both": 3, "middle": 4})
    rows = next(s for s in graph.groups[0].slots if s.tensor == "both.weight")
    assert rows.index.tolist() == [[0, 3], [1, 4], [2, 5]]


def test_no_tie_is_made_that_leaves_two_channels() -> None:
    # 24 hidden channels and 48 of the projections would shrink alike by accident, and cut to one
    # of two they would give wrong numbers.
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)
            self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16)

        def forward(self, x: Tensor) -> Tensor:
            n, tokens, _ = x.shape
            q, k, v = self.qkv(x).reshape(n, tokens, 3, 4, -1).permute(2, 0, 3, 1, 4)
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, scale=0.5)
            x = x + self.proj(mixed.transpose(1, 2).reshape(n, tokens, -1))
            result: Tensor = x + self.down(nn.functional.gelu(self.up(x)))
            return result

    model = nn.Sequential(nn.Linear(16, 16), Block(), nn.Linear(16, 3))
    assert_groups(model, torch.randn(2, 6, 16), {"0": 16, "1.qkv": 4, "1.up": 24})


class Group:
    def __init__(self, size: int) -> None:
        self.size = size


@pytest.mark.parametrize("sizes", [[3] * 9, [32] * 98, [16, 4, 4, 8, 2, 2, 2], [256] * 36])
def test_each_two_groups_are_cut_to_unequal_shares_in_some_trial(sizes: list[int]) -> None:
    groups: Any = [Group(size) for size in sizes]
    shares = np.array(
        [
            [len(kept) / size for kept, size in zip(uneven(groups, turn), sizes, strict=True)]
            for turn in range(turns(groups))
        ]
    )
    cut_at_all = [n for n, size in enumerate(sizes) if size > 2]
    assert (shares[0, cut_at_all] < 1).all()
    codes = {tuple(shares[:, n]) for n in cut_at_all}
    assert len(codes) == len(cut_at_all)
    assert all(len(kept) > 1 for kept in uneven(groups))
