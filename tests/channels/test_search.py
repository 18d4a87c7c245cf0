"""The search for a way to divide channels: what one stage allows, all stages must get."""

from __future__ import annotations

import numpy as np
import torch
from networks import assert_groups
from torch import Tensor, nn

from prune2deploy.channels import cut
from prune2deploy.channels.tracer import Tracer


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
