"""SEP: channels are left out image by image, and a controller looks for how many to keep.

Paper: Ding, Zhang, Jia, Zhong, Han, "Where to Prune: Using LSTM to Guide Data-Dependent Soft
Pruning", IEEE Transactions on Image Processing 30 (2021), https://doi.org/10.1109/TIP.2020.3035028.
Only its abstract could be read, so all formulas here are ours.

Training: each dense layer of channels that can go gets a branch that reads what the layer reads,

    e = sigmoid(up relu(down z)),    z the mean over positions, shape (images, channels in)
    down (hidden, channels in), up (channels out, hidden), up 0 at first,
    hidden a sixteenth of the channels out, at least 4

and the layer's result (behind its batch norm, if one is right behind it) is multiplied with
2 e, where of each image only the k = ceil(keep * channels) largest e count and the others are 0.
So no gradient of an image goes to a channel that it leaves out. In the first share `dense` of
the training none is left out, since all e are one half at the start.

Static export: the network that depends on its input is not deployed. After the training the
branches go, and each layer's scale and shift (or weight and bias) are multiplied with twice the
mean of e over the last pass through the training images. score_c = that mean of e, over the
layers of a group. Groups that have no such layer stay whole. Without any training, groups are
judged by the L2 norm of their filters over its mean.

Where to prune: with a budget of multiply-accumulates or parameters, an LSTM reads the groups in
their order and draws for each a share to keep, of 1.0, 0.9 to 0.3. Shares are then scaled by
one factor so that the network meets the budget, and what is left of it widens the narrowest
groups; the network is cut, its batch-norm statistics are
renewed, and it is judged. The controller learns by REINFORCE with

    reward = judged - 1 + weight * min(0, target - cost as drawn) / target

against the moving average of rewards, and the best network of all stays.

Differs from the outline of the paper: the controller works after the training, with fixed
weights, where the paper trains a little for each scheme; the factor is ours, so that no scheme
is judged that cannot be used.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from prune2deploy import progress
from prune2deploy.channels import Graph, Role
from prune2deploy.errors import MethodError
from prune2deploy.methods.base import (
    Allocation,
    Context,
    Counts,
    Method,
    MethodOptions,
    Scores,
    Step,
)
from prune2deploy.methods.common.branches import Branches, branched
from prune2deploy.methods.common.readings import learned_scores, weight_slots
from prune2deploy.methods.common.trials import value_of

SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
"""What the controller chooses from."""


def reward(judged: float, cost: float, target: float, weight: float) -> float:
    """Return judged - 1 + weight * min(0, target - cost) / target."""
    return judged - 1 + weight * min(0.0, target - cost) / target


def nearest_counts(choice: Allocation, shares: Sequence[float | None]) -> Counts:
    """Per group the allowed count next to its share of the channels; None: all of them."""
    return np.array(
        [
            allowed[0] if s is None else min(allowed, key=lambda n: abs(n - s * allowed[0]))
            for allowed, s in zip(choice.allowed, shares, strict=True)
        ],
        dtype=np.int64,
    )


def fitted(choice: Allocation, shares: Sequence[float | None]) -> Counts | None:
    """Counts in the proportion of the shares, as large as the target allows; None: none is."""

    def scaled(factor: float) -> Counts:
        return nearest_counts(choice, [None if s is None else min(1.0, factor * s) for s in shares])

    low, high = 0.0, 1 / min((s for s in shares if s is not None), default=1.0)
    if choice.cost(scaled(low)) > choice.target:
        return None
    if choice.cost(scaled(high)) <= choice.target:
        return scaled(high)
    for _ in range(40):
        middle = (low + high) / 2
        if choice.cost(scaled(middle)) <= choice.target:
            low = middle
        else:
            high = middle
    return scaled(low)


def filled(choice: Allocation, counts: Counts, shares: Sequence[float | None]) -> Counts:
    """Widen judged groups, the narrowest first, as long as one more step meets the target."""
    while True:
        order = np.argsort(
            [n / allowed[0] for n, allowed in zip(counts, choice.allowed, strict=True)]
        )
        for number in order.tolist():
            wider = [n for n in choice.allowed[number] if n > counts[number]]
            if shares[number] is None or not wider:
                continue
            tried = counts.copy()
            tried[number] = min(wider)
            if choice.cost(tried) <= choice.target:
                counts = tried
                break
        else:
            return counts


class SepOptions(MethodOptions):
    """Options of SEP."""

    keep: float = Field(
        0.7, gt=0, lt=1, description="Share of each layer's channels that an image does not skip."
    )
    dense: float = Field(
        0.1, ge=0, lt=1, description="Share of the training before channels are left out."
    )
    updates: int = Field(20, ge=1, description="Steps of the controller.")
    schemes: int = Field(5, ge=1, description="Networks that are tried for each of them.")
    weight: float = Field(
        1.0, ge=0, description="Weight of what a scheme costs too much as it is drawn."
    )
    images: int = Field(
        256, ge=2, description="Training images on which a network's statistics are renewed."
    )
    batch_size: int = Field(64, ge=2, description="Images per batch of those.")


class Sep(Method[SepOptions]):
    """Mean excitation of channels, and shares that a controller finds by trying."""

    name = "sep"
    summary = "how much a squeeze-and-excitation branch lets through; an LSTM finds the shares"
    source = (
        "Ding, Zhang, Jia, Zhong, Han: Where to Prune: Using LSTM to Guide Data-Dependent Soft "
        "Pruning, IEEE Transactions on Image Processing 30, 2021, "
        "https://doi.org/10.1109/TIP.2020.3035028"
    )
    cost = "several training runs"
    options = SepOptions
    needs_training = True
    needs_judge = True
    detach_changes = True  # means take the place of what was computed image by image

    def __init__(self, settings: SepOptions) -> None:
        super().__init__(settings)
        self._branches: Branches | None = None
        self._means: dict[str, Tensor] = {}

    def attach(self, graph: Graph) -> None:
        """Give each layer of channels that can go its branch."""
        found = branched(graph)
        if not found:
            raise MethodError(
                "sep needs a convolution or linear layer that makes channels that can go, and "
                "there is none whose channels each may read all of its input. Choose another "
                "method, for example l1."
            )
        self._branches = Branches(graph.model, found)

    def after_step(self, step: Step) -> None:
        """Begin to leave channels out when it is time; end the means with the epoch."""
        if self._branches is None:
            return
        if step.progress >= self.settings.dense:
            self._branches.keep = self.settings.keep
        if step.ends_epoch:
            self._branches.end_pass()

    def detach(self) -> None:
        """Take the branches away, and multiply their means into the layers."""
        if self._branches is not None:
            self._means = self._branches.fold()
        self._branches = None

    def score(self, context: Context) -> list[Tensor | None]:
        """Mean excitation; without any training, filter norms."""
        missing = "no layer with weights produces them"
        return learned_scores(context, self._means, self.name, missing)

    def allocate(
        self, context: Context, scores: Sequence[Scores | None], choice: Allocation
    ) -> Counts | None:
        """The best of the networks that the controller tries."""
        if context.judge is None or context.images is None:
            missing = "judge" if context.judge is None else "images"
            raise MethodError(
                f"sep tries networks out and was given no {missing}. In Python pass plan(..., "
                "judge=..., images=...), a function of a model that returns how good it is and "
                "training images; a recipe's task and data do it by themselves."
            )
        judged: dict[tuple[int, ...], float] = {}
        trials = self.settings.updates * self.settings.schemes
        with torch.random.fork_rng(devices=[]), progress.task("Trying", total=trials) as shown:
            torch.manual_seed(0)
            controller = _Controller(_facts(context.graph, choice))
            optimizer = torch.optim.Adam(controller.parameters(), lr=1e-3)
            average: float | None = None
            for _ in range(self.settings.updates):
                loss = torch.zeros(())
                for _ in range(self.settings.schemes):
                    shares, likelihood = controller.draw(scores, choice)
                    counts = fitted(choice, shares)
                    if counts is None:
                        return None  # the budget says what it cannot reach
                    counts = filled(choice, counts, shares)
                    key = tuple(counts.tolist())
                    if key not in judged:
                        judged[key] = value_of(
                            context, scores, counts, self.settings.images, self.settings.batch_size
                        )
                    cost = choice.cost(nearest_counts(choice, shares))
                    got = reward(judged[key], cost, choice.target, self.settings.weight)
                    average = got if average is None else average
                    loss = loss - (got - average) * likelihood / self.settings.schemes
                    average = 0.9 * average + 0.1 * got
                    shown.advance(1)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        best = max(judged, key=lambda key: judged[key])
        return np.array(best, dtype=np.int64)


class _Controller(nn.Module):
    """Reads groups in their order and draws a share for each.

    Args:
        facts: per group what is known of it, shape (groups, facts).
    """

    facts: Tensor

    def __init__(self, facts: Tensor) -> None:
        super().__init__()
        self.register_buffer("facts", facts)
        self.cell = nn.LSTMCell(facts.shape[1] + 2, 64)
        self.head = nn.Linear(64, len(SHARES))

    def draw(
        self, scores: Sequence[Scores | None], choice: Allocation
    ) -> tuple[list[float | None], Tensor]:
        """Return a share per group, None for those that are not judged, and its log-likelihood."""
        state = torch.zeros(1, 64), torch.zeros(1, 64)
        shares: list[float | None] = [None] * len(scores)
        likelihood, before = torch.zeros(()), 1.0
        for number, score in enumerate(scores):
            if score is None:
                continue
            cost = choice.cost(nearest_counts(choice, shares)) / choice.full
            seen = torch.cat([self.facts[number], torch.tensor([before, cost])])
            state = self.cell(seen[None], state)
            chances = torch.distributions.Categorical(logits=self.head(state[0])[0])
            drawn = chances.sample()
            likelihood = likelihood + chances.log_prob(drawn)
            before = SHARES[int(drawn)]
            shares[number] = before
        return shares, likelihood


def _facts(graph: Graph, choice: Allocation) -> Tensor:
    """Per group inputs, channels, kernel and stride of its first layer and a channel's cost."""
    rows = []
    full = np.array([allowed[0] for allowed in choice.allowed], dtype=np.int64)
    for number, group in enumerate(graph.groups):
        slots = weight_slots(graph, group, Role.PRODUCER)
        shape = graph.shapes[slots[0].tensor] if slots else (group.size, group.size)
        layer = graph.model.get_submodule(slots[0].tensor.rpartition(".")[0]) if slots else None
        stride = getattr(layer, "stride", 1)
        fewer = full.copy()
        fewer[number] -= 1
        saved = choice.full - choice.cost(fewer)
        stride = stride[0] if isinstance(stride, tuple) else stride
        rows.append([shape[1], group.size, shape[2] if len(shape) > 2 else 1, stride, saved])
    facts = torch.tensor(rows, dtype=torch.float32)
    return facts / facts.amax(dim=0).clamp_min(1e-12)


METHOD = Sep
