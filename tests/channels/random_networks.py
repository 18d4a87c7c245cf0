"""Networks that nobody thought of: lists of steps, run by a forward of their own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

EXACT_KINDS = (
    "conv",
    "norm",
    "relu",
    "sigmoid",
    "pool",
    "depthwise",
    "grouped",
    "add",
    "multiply",
    "cat",
    "shuffle",
    "gate",
    "transposed",
    "pad",
    "chunk",
    "part",
    "sized split",
    "glu",
    "flip",
    "stack",
    "unshuffle",
    "heads",
    "literal",
    "scaled",
    "twice",
)
"""Steps after which zeroing a channel is the same as removing it."""

NORMALISING_KINDS = ("layer norm", "group norm", "instance norm", "mean", "unit length")
"""Steps that average over channels, where zeros would count."""

Step = tuple[str, int, int]
"""A kind, a width and a number that says which earlier map is the second operand."""


class Random(nn.Module):
    """Runs steps one after the other; every map so far can be read again.

    All maps have 6×6 pixels.
    """

    def __init__(self, steps: list[Step], head: str) -> None:
        super().__init__()
        self.steps = steps
        self.head_kind = head
        self.layers = nn.ModuleDict()
        self.widths = [3]
        for number, (kind, width, pick) in enumerate(steps):
            self.widths.append(self._build(str(number), kind, width, pick % (number + 1)))
        entries = self.widths[-1] * (36 if head == "flatten" else 1)
        self.layers["hidden"] = nn.Linear(entries, 7)
        self.layers["head"] = nn.Linear(7, 4)

    def _build(self, number: str, kind: str, width: int, pick: int) -> int:
        """Add the step's layers; return the width of its result."""
        now, other = self.widths[-1], self.widths[pick]
        made = _layer(kind, now, width)
        if made is not None:
            self.layers[number], result = made
            return result
        if kind in ("add", "multiply", "stack"):
            if other != now:
                self.layers[number] = nn.Conv2d(other, now, 1)
        elif kind == "cat":
            return now + other
        elif kind == "gate":
            self.layers[number] = nn.Sequential(nn.Conv2d(now, width, 1), nn.ReLU())
            self.layers[f"{number}b"] = nn.Conv2d(width, now, 1)
        elif kind == "pad":
            return now + 2
        elif kind == "unshuffle":
            return now * 4
        return now

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for number, (kind, _, pick) in enumerate(self.steps):
            maps.append(self._step(number, kind, maps[-1], maps[pick % (number + 1)]))
        x = maps[-1].flatten(1) if self.head_kind == "flatten" else maps[-1].mean((2, 3))
        result: Tensor = self.layers["head"](torch.tanh(self.layers["hidden"](x)))
        return result

    def _step(self, number: int, kind: str, x: Tensor, other: Tensor) -> Tensor:
        name = str(number)
        layer = self.layers[name] if name in self.layers else nn.Identity()
        if kind == "add":
            return x + layer(other)
        if kind == "multiply":
            return x * torch.tanh(layer(other))
        if kind == "cat":
            return torch.cat([x, other], 1)
        if kind == "stack":
            return torch.stack([x, layer(other)]).amax(0)
        if kind == "gate":
            squeezed = layer(F.adaptive_avg_pool2d(x, 1))
            return x * torch.sigmoid(self.layers[f"{name}b"](squeezed))
        if kind == "shuffle":
            n, c, h, w = x.shape
            # Decided when the network was built: a cut must not change what forward does.
            parts = 2 if self.widths[number] % 2 == 0 else 1
            return x.view(n, parts, c // parts, h, w).transpose(1, 2).reshape(n, c, h, w)
        if kind == "literal":
            return x.view(x.shape[0], self.widths[number], 36).view(x.shape)
        if kind == "unshuffle":
            return F.interpolate(F.pixel_unshuffle(x, 2), scale_factor=2.0)
        return _without_layers(kind, x) if kind in _FUNCTIONS else layer(x)


class SplitTwice(nn.Module):
    """Widens, takes the result apart, works on the parts, and puts them together again."""

    def __init__(self, inputs: int, width: int, how: str) -> None:
        super().__init__()
        self.how = how
        self.hidden = width
        self.sizes = [width, width if how == "chunk" else width + 1]
        self.widen = nn.Conv2d(inputs, sum(self.sizes), 1)
        self.deep = nn.Conv2d(self.sizes[1], self.sizes[1], 3, padding=1)
        self.close = nn.Conv2d(sum(self.sizes) + self.sizes[1], width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.widen(x)
        if self.how == "chunk":
            a, b = x.chunk(2, 1)
        elif self.how == "part":
            a, b = x[:, : self.hidden], x[:, self.hidden :]
        else:
            a, b = torch.split(x, self.sizes, 1)
        result: Tensor = self.close(torch.cat([b, torch.relu(a), b + self.deep(b)], 1))
        return result


class Heads(nn.Module):
    """Attention between pixels, with the sizes in attributes."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = 2, width
        self.qkv = nn.Conv2d(inputs, 3 * 2 * width, 1)
        self.proj = nn.Conv2d(2 * width, inputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        qkv = self.qkv(x).reshape(n, 3, self.num_heads, self.head_dim, h * w)
        q, k, v = qkv.unbind(1)
        scores = (q.transpose(-2, -1) @ k * 0.3).softmax(-1)
        mixed = (v @ scores.transpose(-2, -1)).reshape(n, -1, h, w)
        result: Tensor = x + self.proj(mixed)
        return result


class LayerNorm2d(nn.LayerNorm):
    """Over the channels of every pixel."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _layer(kind: str, now: int, width: int) -> tuple[nn.Module, int] | None:
    """The one layer of a step and the width of its result."""
    groups = next(g for g in (4, 3, 2, 1) if now % g == 0)
    if kind == "conv":
        return nn.Conv2d(now, width, 3, padding=1), width
    if kind == "transposed":
        return nn.ConvTranspose2d(now, width, 3, padding=1), width
    if kind == "grouped":
        return nn.Conv2d(now, groups * width, 1, groups=groups), groups * width
    if kind in ("chunk", "part", "sized split"):
        return SplitTwice(now, width, kind), width
    if kind == "glu":
        return nn.Sequential(nn.Conv2d(now, 2 * width, 1), nn.GLU(1)), width
    if kind == "twice":
        once = nn.Conv2d(now, now, 3, padding=1)
        return nn.Sequential(once, nn.ReLU(), once), now
    same: dict[str, type[nn.Module] | nn.Module] = {
        "norm": nn.BatchNorm2d(now),
        "depthwise": nn.Conv2d(now, now, 3, padding=1, groups=now, bias=False),
        "heads": Heads(now, width),
        "layer norm": LayerNorm2d(now),
        "group norm": nn.GroupNorm(groups, now),
        "instance norm": nn.InstanceNorm2d(now, affine=True),
    }
    made = same.get(kind)
    return (made, now) if isinstance(made, nn.Module) else None


_FUNCTIONS = ("relu", "sigmoid", "pool", "pad", "flip", "scaled", "mean", "unit length")


def _without_layers(kind: str, x: Tensor) -> Tensor:
    if kind == "relu":
        return F.relu(x)
    if kind == "sigmoid":
        return torch.sigmoid(x)
    if kind == "pool":
        return F.max_pool2d(x, 3, stride=1, padding=1)
    if kind == "pad":
        return F.pad(x, (0, 0, 0, 0, 1, 1))
    if kind == "flip":
        return x.flip(1)
    if kind == "scaled":
        # A number that follows the width: a cut would change it.
        return x * x.shape[1] ** -0.5
    if kind == "mean":
        return x * torch.sigmoid(x.mean(1, keepdim=True))
    return F.normalize(x, dim=1)


def steps_of(kinds: tuple[str, ...]) -> st.SearchStrategy[list[Step]]:
    """Lists of 2 to 10 steps of these kinds."""
    step = st.tuples(st.sampled_from(kinds), st.integers(2, 6), st.integers(0, 9))
    return st.lists(step, min_size=2, max_size=10)
