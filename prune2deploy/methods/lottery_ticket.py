"""Lottery ticket: train, zero the smallest weights, put the rest back to where they were; again.

Papers: Frankle, Carbin, "The Lottery Ticket Hypothesis: Finding Sparse, Trainable Neural
Networks", ICLR 2019, https://arxiv.org/abs/1803.03635; Frankle, Dziugaite, Roy, Carbin,
"Stabilizing the Lottery Ticket Hypothesis", 2019, https://arxiv.org/abs/1903.01611, for
rewinding to a step after the first.

score = |w| at the end of a training, of all layers together, for the weights that still stand.
With R rounds and a budget of share s, each round:

1. Trains with the settings of `prune.train` to the end; in the first training the weights W_k of
   step k = rewind * steps are put by (k = 0: those it starts with).
2. Keeps the share s^(1/R) of the weights that still stand, rounded down over all.
3. Puts all parameters and buffers, norms included, back to W_k; the others are zero.

After the last round the ticket W_k * mask is trained once more. So there are R + 1 trainings; all
but the first go on from step k in learning rate and order of images, with a fresh momentum. The
papers keep 0.8 a round: for the budget 0.2 that is 7 rounds. Deep networks need rewind above 0,
around 0.02. `retrain: random` is the control: the last training starts from new random weights.

Differs from the papers: SGD only, where the small networks there use Adam; the output layer
is treated as the others, where they prune it at half the rate. The paper's code drops one
weight more a round.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from prune2deploy.errors import MethodError
from prune2deploy.methods.base import MethodOptions, Step
from prune2deploy.methods.common.weights import WeightMethod, Weights, masks_by, reinitialise


class LotteryTicketOptions(MethodOptions):
    """Options of the lottery ticket."""

    start: Literal["fresh", "given"] = Field(
        "fresh",
        description="The first training's weights: new random ones, as in the paper, or those "
        "given.",
    )
    rewind: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the training to whose weights it goes back; 0: its beginning.",
    )
    retrain: Literal["ticket", "random"] = Field(
        "ticket",
        description="What the last training starts from: the rewound weights, or new random "
        "ones under the same mask, as a control.",
    )


class LotteryTicket(WeightMethod[LotteryTicketOptions]):
    """Magnitude after training; what stays is trained again from its early weights."""

    name = "lottery_ticket"
    summary = "magnitude of the weight after training; the rest starts over from early weights"
    source = (
        "Frankle, Carbin: The Lottery Ticket Hypothesis: Finding Sparse, Trainable Neural "
        "Networks, ICLR 2019, https://arxiv.org/abs/1803.03635"
    )
    cost = "several training runs"
    options = LotteryTicketOptions
    needs_training = True
    budgets = ("weights", "pattern")
    rounds = "train"

    _model: nn.Module | None = None
    _early: dict[str, Any] | None = None
    _step = 0

    def begin(self, weights: Weights) -> None:
        """Start anew, and put the weights by if it is these that will be gone back to."""
        if self.settings.start == "fresh":
            reinitialise(weights.model, weights.seed)
        self._model, self._early, self._step = weights.model, None, 0
        if self.settings.rewind == 0:
            self._early = _state(weights.model)

    def after_step(self, step: Step) -> None:
        """Put the weights of step k by."""
        if self._early is not None or self._model is None:
            return
        # At least one step of the training is left to go on with.
        wanted = min(max(1, round(self.settings.rewind * step.total)), step.total - 1)
        if step.number >= wanted:
            self._early, self._step = _state(self._model), step.number

    def detach(self) -> None:
        """The first training is over."""
        self._model = None

    def masks(self, weights: Weights) -> dict[str, Tensor]:
        """Keep the weights with the largest magnitudes of those that stand."""
        return masks_by(weights.scores(Tensor.abs), weights)

    def restart(self, weights: Weights, last: bool) -> int:
        """Go back to the weights of step k, or to new random ones."""
        if self._early is None:
            raise MethodError(
                "lottery_ticket has no early weights to go back to: it was not trained with its "
                f"hooks, or not as far as rewind: {self.settings.rewind:g}. Add prune.train to the "
                "recipe, without early_stop."
            )
        if last and self.settings.retrain == "random":
            # Another seed than that of a fresh start, or they would be the ticket's weights.
            reinitialise(weights.model, weights.seed + 1)
            return 0
        weights.model.load_state_dict(self._early)
        return self._step

    def notes(self) -> list[str]:
        """Where the trainings began."""
        found = []
        if self.settings.start == "fresh":
            found.append("The pruned network was trained from new random weights (start: fresh).")
        if self.settings.retrain == "random":
            found.append("The last training is the control: it began with new random weights.")
        return found


def _state(model: nn.Module) -> dict[str, Any]:
    return {
        name: value.detach().cpu().clone() if isinstance(value, Tensor) else value
        for name, value in model.state_dict().items()
    }


METHOD = LotteryTicket
