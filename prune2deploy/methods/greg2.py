"""GREG-2: a little decay on all filters tells which to choose, then it grows on those.

Paper: Wang, Qin, Zhang, Fu, "Neural Pruning via Growing Regularization", ICLR 2021,
https://arxiv.org/abs/2012.09243.

As GREG-1, but which filters go is not decided by their sizes before training. For the share
`choose` of the training a decay that grows evenly from 0 to `first_ceiling` is added on all
filters: those that the loss holds on to resist it, and others shrink. Then the smallest are
chosen; their decay grows on to `ceiling` and stays there for the share `settle` at the end, and
all others get `others`, which is below 0 and lets them recover.

Differs from the paper, beside what GREG-1 says: it takes some thousand steps to choose, a tenth
of all in its runs on CIFAR-10; in a short training there is less time for filters to differ.
"""

from __future__ import annotations

from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

from prune2deploy.channels import Graph
from prune2deploy.methods.base import Context, Method, MethodOptions, Step
from prune2deploy.methods.greg1 import GrowingDecay, grown, mean_sizes


class Greg2Options(MethodOptions):
    """Options of GREG-2."""

    keep: float = Field(
        0.5, gt=0, lt=1, description="Share of each layer's filters that is not driven to zero."
    )
    choose: float = Field(
        0.1, gt=0, lt=1, description="Share of the training before filters are chosen."
    )
    first_ceiling: float = Field(
        0.01, gt=0, description="Weight decay of all filters when some are chosen."
    )
    ceiling: float = Field(1.0, gt=0, description="Weight decay of chosen filters at the end.")
    others: float = Field(-1e-4, description="Weight decay of filters that were not chosen.")
    settle: float = Field(
        0.1, ge=0, lt=1, description="Share of the training, at its end, in which decay stays."
    )

    @model_validator(mode="after")
    def _there_is_time_to_grow(self) -> Self:
        if self.choose + self.settle >= 1:
            raise ValueError(
                f"choose and settle are {self.choose:g} and {self.settle:g}, which leaves no "
                "time to grow; together they must be below 1"
            )
        return self


class Greg2(Method[Greg2Options]):
    """Mean size of a filter's weights after training in which those that resist decay are kept."""

    name = "greg2"
    summary = "mean of a filter's absolute weights, those that resist decay least driven to zero"
    source = (
        "Wang, Qin, Zhang, Fu: Neural Pruning via Growing Regularization, ICLR 2021, "
        "https://arxiv.org/abs/2012.09243"
    )
    cost = "one training run"
    options = Greg2Options
    needs_training = True

    _decay: GrowingDecay | None = None
    _chosen: tuple[Tensor, ...] | None = None

    def attach(self, graph: Graph) -> None:
        """Begin with no decay; nothing is chosen yet."""
        self._decay = GrowingDecay(graph)
        self._decay.set_all(0.0)
        self._chosen = None

    def after_backward(self) -> None:
        """Add the decay of each filter to its gradient."""
        if self._decay is not None:
            self._decay.add()

    def after_step(self, step: Step) -> None:
        """Let the decay grow: of all filters, later of the chosen."""
        if self._decay is None:
            return
        settings = self.settings
        if step.progress < settings.choose:
            self._decay.set_all(
                grown(step.progress / settings.choose, 0.0, 0.0, settings.first_ceiling)
            )
            return
        if self._chosen is None:
            self._chosen = self._decay.chosen(settings.keep)
        rest = 1 - settings.choose
        done = (step.progress - settings.choose) / rest
        decay = grown(done, settings.settle / rest, settings.first_ceiling, settings.ceiling)
        self._decay.set_chosen(self._chosen, decay, settings.others)

    def detach(self) -> None:
        """Let go of the model."""
        self._decay = None

    def score(self, context: Context) -> list[Tensor | None]:
        """Mean size of the weights, added up over the layers that produce a group."""
        return mean_sizes(context, self.name)


METHOD = Greg2
