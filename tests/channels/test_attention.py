"""Attention: whole heads or an even share of each, and the numbers that modules state of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from networks import Net, assert_groups
from torch import Tensor, nn

from prune2deploy.channels import Graph, cut

WIDTH = 16
HIDDEN = 20


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(2, 6, 10, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """A transformer's block around any attention."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(WIDTH), attention
        self.norm2, self.wide = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, HIDDEN)
        self.narrow = nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        result: Tensor = x + self.narrow(F.gelu(self.wide(self.norm2(x))))
        return result


def transformer(attention: Callable[[], nn.Module], depth: int = 1) -> nn.Module:
    return Net(
        lambda net, x: net.head(net.norm(net.blocks(net.embed(x))).mean(1)),
        embed=nn.Linear(10, WIDTH),
        blocks=nn.Sequential(*[Block(attention()) for _ in range(depth)]),
        norm=nn.LayerNorm(WIDTH),
        head=nn.Linear(WIDTH, 3),
    )


def halved(graph: Graph) -> nn.Module:
    """The model with the first half of every group's channels."""
    return cut(graph.model, graph.plan([range(g.size // 2) for g in graph.groups]))


def copies(graph: Graph, group: str) -> dict[tuple[str, int], int]:
    """Per tensor and dimension how many entries each channel of a group has."""
    (found,) = (g for g in graph.groups if g.name == group)
    return {(s.tensor, s.dim): s.index.shape[1] for s in found.slots}


# PyTorch's own attention.


class Attends(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(WIDTH, 4, batch_first=batch_first)

    def forward(self, x: Tensor) -> Tensor:
        if not self.inner.batch_first:
            x = x.transpose(0, 1)
        x = self.inner(x, x, x, need_weights=False)[0]
        return x if self.inner.batch_first else x.transpose(0, 1)


@pytest.mark.parametrize("batch_first", [True, False])
def test_multihead_attention_loses_heads_with_their_part_of_the_embedding(
    tokens: Tensor, batch_first: bool
) -> None:
    # Its inner width is its outer width, and the scale is computed from the width of a head.
    model = transformer(lambda: Attends(batch_first))
    graph = assert_groups(model, tokens, {"embed": 4, "blocks.0.wide": HIDDEN}, normalised=True)
    small = halved(graph).blocks[0]
    inner = small.attention.inner
    assert (inner.embed_dim, inner.num_heads, inner.head_dim) == (8, 2, 4)
    assert (inner.in_proj_weight.shape, inner.out_proj.weight.shape) == ((24, 8), (8, 8))
    assert (small.norm1.normalized_shape, small.wide.out_features) == ((8,), HIDDEN // 2)


def test_an_encoder_of_pytorch_loses_heads_in_all_layers(tokens: Tensor) -> None:
    layer = nn.TransformerEncoderLayer(WIDTH, 4, HIDDEN, batch_first=True)
    model = Net(
        lambda net, x: net.head(net.encoder(net.embed(x)).mean(1)),
        embed=nn.Linear(10, WIDTH),
        encoder=nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
        head=nn.Linear(WIDTH, 3),
    )
    hidden = {f"encoder.layers.{n}.linear1": HIDDEN for n in range(2)}
    graph = assert_groups(model, tokens, {"embed": 4, **hidden}, normalised=True)
    assert [x.self_attn.num_heads for x in halved(graph).encoder.layers] == [2, 2]


# One product for query, key and value, as timm writes it.


class Fused(nn.Module):
    """softmax(q k / s) v, with the scale s from different places.

    closed: whether the result is reshaped to the width of the input.
    """

    def __init__(self, heads: int, width: int, scale: str, closed: bool = False) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.scale = heads, width, width**-0.5
        self.how, self.closed = scale, closed
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * heads * width), nn.Linear(heads * width, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        if self.how == "stored":
            x = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        elif self.how == "default":
            x = F.scaled_dot_product_attention(q, k, v)
        elif self.how == "by hand":
            x = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1) @ v
        else:
            x = (q @ k.transpose(-2, -1) * self.head_dim**-0.5).softmax(-1) @ v
        result: Tensor = self.proj(x.transpose(1, 2).reshape(B, N, C if self.closed else -1))
        return result


@pytest.mark.parametrize("scale", ["stored", "by hand"])
def test_with_a_stored_scale_every_head_loses_the_same_share(tokens: Tensor, scale: str) -> None:
    model = transformer(lambda: Fused(4, 6, scale), depth=2)
    inner = {f"blocks.{n}.attention.qkv": 6 for n in range(2)}
    hidden = {f"blocks.{n}.wide": HIDDEN for n in range(2)}
    graph = assert_groups(model, tokens, {"embed": WIDTH, **inner, **hidden}, normalised=True)
    # One position of 4 heads, in each of query, key and value.
    assert copies(graph, "blocks.0.attention.qkv") == {
        ("blocks.0.attention.qkv.weight", 0): 12,
        ("blocks.0.attention.qkv.bias", 0): 12,
        ("blocks.0.attention.proj.weight", 1): 4,
    }
    for block in halved(graph).blocks:
        attention = block.attention
        assert (attention.num_heads, attention.head_dim, attention.scale) == (4, 3, 6**-0.5)
        assert (attention.qkv.out_features, attention.proj.in_features) == (36, 12)


@pytest.mark.parametrize("scale", ["default", "computed"])
def test_with_a_computed_scale_whole_heads_go(tokens: Tensor, scale: str) -> None:
    model = transformer(lambda: Fused(4, 6, scale))
    sizes = {"embed": WIDTH, "blocks.0.attention.qkv": 4, "blocks.0.wide": HIDDEN}
    graph = assert_groups(model, tokens, sizes, normalised=True)
    heads = next(g for g in graph.groups if g.size == 4)
    rows = next(s.index for s in heads.slots if s.tensor.endswith("qkv.weight"))
    assert rows[1].tolist() == [*range(6, 12), *range(30, 36), *range(54, 60)]
    small = halved(graph).blocks[0].attention
    assert (small.num_heads, small.head_dim) == (2, 6)


def test_what_is_reshaped_to_the_input_s_width_shrinks_with_it(tokens: Tensor) -> None:
    model = transformer(lambda: Fused(4, 4, "default", closed=True))
    graph = assert_groups(model, tokens, {"embed": 4, "blocks.0.wide": HIDDEN}, normalised=True)
    assert copies(graph, "embed")["blocks.0.attention.qkv.weight", 0] == 3 * 4
    small = halved(graph)
    assert (small.embed.out_features, small.blocks[0].attention.num_heads) == (8, 2)


# Three products, as Hugging Face writes it.


class Separate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_attention_heads, self.attention_head_size = 4, 6
        self.all_head_size = self.num_attention_heads * self.attention_head_size
        self.query = nn.Linear(WIDTH, self.all_head_size)
        self.key = nn.Linear(WIDTH, self.all_head_size)
        self.value = nn.Linear(WIDTH, self.all_head_size)
        self.dense = nn.Linear(self.all_head_size, WIDTH)

    def transpose_for_scores(self, x: Tensor) -> Tensor:
        new_shape = (*x.size()[:-1], self.num_attention_heads, self.attention_head_size)
        return x.view(new_shape).permute(0, 2, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            self.transpose_for_scores(layer(x)) for layer in (self.query, self.key, self.value)
        )
        scores = torch.matmul(query, key.transpose(-1, -2)) / self.attention_head_size**0.5
        context = torch.matmul(scores.softmax(-1), value).permute(0, 2, 1, 3).contiguous()
        context = context.view((*context.size()[:-2], self.all_head_size))
        result: Tensor = self.dense(context)
        return result


def test_separate_products_lose_whole_heads_and_their_attributes_follow(tokens: Tensor) -> None:
    sizes = {"embed": WIDTH, "blocks.0.attention.query": 4, "blocks.0.wide": HIDDEN}
    graph = assert_groups(transformer(Separate), tokens, sizes, normalised=True)
    small = halved(graph).blocks[0].attention
    assert small.num_attention_heads == 2
    assert (small.attention_head_size, small.all_head_size) == (6, 12)
    assert [x.out_features for x in (small.query, small.key, small.value)] == [12, 12, 12]


def test_keys_and_values_from_elsewhere_have_a_width_of_their_own(tokens: Tensor) -> None:
    def forward(net: nn.Module, x: Tensor, memory: Tensor) -> Tensor:
        memory = net.memory(memory)
        return net.head(net.cross(net.embed(x), memory, memory)[0].mean(1))

    model = Net(
        forward,
        embed=nn.Linear(10, 12),
        memory=nn.Linear(5, 9),
        cross=nn.MultiheadAttention(12, 6, kdim=9, vdim=9, batch_first=True),
        head=nn.Linear(12, 3),
    )
    inputs = (tokens, torch.randn(2, 7, 5))
    graph = assert_groups(model, inputs, {"embed": 6, "memory": 9, "cross.out_proj": 12})
    small = halved(graph).cross
    assert (small.k_proj_weight.shape, small.num_heads) == ((6, 4), 3)


# Numbers written into the code.


class Literal(nn.Module):
    """4 heads of 5, written down: both, or the heads only."""

    def __init__(self, both: bool, scale: float | None) -> None:
        super().__init__()
        self.both, self.scale = both, scale
        self.qkv, self.proj = nn.Linear(WIDTH, 60), nn.Linear(20, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        x = self.qkv(x)
        x = x.reshape(batch, length, 3, 4, 5) if self.both else x.reshape(batch, length, 3, 4, -1)
        q, k, v = x.permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        result: Tensor = self.proj(x.transpose(1, 2).reshape(batch, length, -1))
        return result


def test_a_literal_number_of_heads_leaves_their_width(tokens: Tensor) -> None:
    sizes = {"embed": WIDTH, "blocks.0.attention.qkv": 5, "blocks.0.wide": HIDDEN}
    graph = assert_groups(transformer(lambda: Literal(False, 0.5)), tokens, sizes, normalised=True)
    assert halved(graph).blocks[0].attention.qkv.out_features == 3 * 4 * 2


@pytest.mark.parametrize(
    ("both", "scale", "line"),
    [(True, 0.5, "x.reshape(batch, length, 3, 4, 5)"), (False, None, "x = F.scaled_dot")],
    ids=["both written down", "scale from the width"],
)
def test_where_neither_heads_nor_width_can_go_the_line_says_so(
    tokens: Tensor, both: bool, scale: float | None, line: str
) -> None:
    graph = assert_groups(
        transformer(lambda: Literal(both, scale)),
        tokens,
        {"embed": WIDTH, "blocks.0.wide": HIDDEN},
        {"blocks.0.attention.qkv": line},
        normalised=True,
    )
    (reason,) = (f.reason for f in graph.frozen if f.name == "blocks.0.attention.qkv")
    assert "channels/test_attention.py:" in reason
    assert "Literal.forward" in reason


# Windows and a bias per relative position, as in Swin.


class Windows(nn.Module):
    """Attention within windows of 2×2; each head has a bias per relative position."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.scale, self.window = 4, 0.5, 2
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.bias_table = nn.Parameter(torch.randn(9, 4))
        places = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij"))
        apart = (places.flatten(1)[:, :, None] - places.flatten(1)[:, None]) + 1
        self.register_buffer("index", apart[0] * 3 + apart[1])

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        w = self.window
        x = x.view(B, H // w, w, W // w, w, C).transpose(2, 3).reshape(-1, w * w, C)
        shape = (len(x), w * w, 3, self.num_heads, C // self.num_heads)
        q, k, v = self.qkv(x).reshape(shape).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.bias_table[self.index.view(-1)].view(w * w, w * w, -1).permute(2, 0, 1)
        scores = (q * self.scale) @ k.transpose(-2, -1) + bias
        x = self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, w * w, C))
        return x.view(B, H // w, W // w, w, w, C).transpose(2, 3).reshape(B, H, W, C)


def test_a_bias_per_relative_position_loses_the_columns_of_heads() -> None:
    def forward(net: nn.Module, image: Tensor) -> Tensor:
        x = net.stem(image).permute(0, 2, 3, 1)
        return net.head((x + net.attention(net.norm(x))).mean((1, 2)))

    model = Net(
        forward,
        stem=nn.Conv2d(3, WIDTH, 1),
        norm=nn.LayerNorm(WIDTH),
        attention=Windows(),
        head=nn.Linear(WIDTH, 3),
    )
    graph = assert_groups(model, torch.randn(2, 3, 6, 6), {"stem": 4}, normalised=True)
    small = cut(model, graph.plan([[0, 3]]))
    assert torch.equal(small.attention.bias_table, model.attention.bias_table[:, [0, 3]])
    assert torch.equal(small.attention.index, model.attention.index)
    assert (small.attention.num_heads, small.stem.out_channels) == (2, 8)
