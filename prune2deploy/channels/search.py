"""Find a way of dividing channels that the model's own code can follow.

A trial cuts every group a little and looks at the first operator that does something else than
it should. What can mend it is tried in this order, and kept if the next trial gets further:

1. an attribute of the module at fault, whose value is the old length, follows the new one;
2. two dimensions whose lengths are read from one such attribute shrink alike;
3. a dimension that was divided at that line is divided in the next way: heads instead of the
   width of the heads, or all parts of a split alike instead of each for itself;
4. what is divided there stays whole; and at last, whatever was in play stays whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np

from prune2deploy.channels.observe import Subject
from prune2deploy.channels.remedies import Remedies, reason_of
from prune2deploy.channels.state import Found, State
from prune2deploy.channels.tracer import Tracer
from prune2deploy.channels.trial import turns
from prune2deploy.channels.verify import Proof
from prune2deploy.channels.workbench import Workbench

_FEW = 8
"""Candidates of one kind that are tried for one problem."""

_PATIENCE = 150
"""Trials after which problems are no longer mended: what is in play stays whole."""

Candidates = Callable[[Found], Iterator[State]]
"""States that may do better than one whose trial found a problem."""


class Search:
    """One model; see the module's text.

    Args:
        subject: what is run in trials. first: its trace, and train_too whether of both modes.
        stay: tensors that must not be touched, and why.
        proof: compares numbers of the real model under a plan, where labels cannot tell.
    """

    def __init__(
        self,
        subject: Subject,
        first: Tracer,
        train_too: bool,
        stay: Mapping[str, str],
        proof: Proof,
    ) -> None:
        self._bench = Workbench(subject, first, train_too, stay, proof)
        remedies = Remedies(self._bench)
        self._remedies = remedies
        # What is tied or divided in another way needs other attributes to follow.
        self._then: dict[Candidates, tuple[Candidates, ...]] = {
            remedies.following: (),
            remedies.tied: (remedies.following,),
            remedies.divided_otherwise: (remedies.following, remedies.tied),
            remedies.refused: (remedies.following, remedies.tied),
        }

    def settle(self) -> Found:
        """Mend one problem after the other until no trial finds any."""
        state = State()
        while True:
            found = self._settled(state)
            problem = self._bench.problem_of_pairs(found)
            if problem is None:
                return found
            pairs = [n for n, g in enumerate(found.groups) if g.size == 2]
            nodes = np.flatnonzero(np.isin(found.group_of_node(), pairs))
            # From the start: what was changed for the sake of these pairs may harm without them.
            state = self._bench.freeze(state, nodes, reason_of(problem))

    def _settled(self, state: State) -> Found:
        """Mend until no trial finds anything; groups of two channels are not tried."""
        found = self._without_problem(self._bench.attempt(self._bench.without_stuck_axes(state)))
        turn = 1
        while turn < turns(found.groups):
            tried = self._bench.attempt(replace(found.state, turn=turn))
            turn += 1
            if tried.problem is not None:
                # What mends it may leave other groups, so the trials begin again.
                mended = self._without_problem(tried).state
                found = self._without_problem(self._bench.attempt(replace(mended, turn=0)))
                turn = 1
        return found

    def _without_problem(self, found: Found) -> Found:
        """Mend until the trial of the state's turn finds nothing."""
        while found.problem is not None:
            better = self._mended(found, tuple(self._then))
            found = (
                better if better is not None else self._bench.attempt(self._remedies.frozen(found))
            )
        return found

    def _mended(self, found: Found, kinds: Sequence[Candidates]) -> Found | None:
        """The first change of one of these kinds that lets the trial get further."""
        for candidates in kinds:
            for state in islice(candidates(found), _FEW):
                if self._bench.attempts >= _PATIENCE:
                    return None
                tried = self._followed(self._bench.attempt(state), self._then[candidates])
                if tried.better_than(found):
                    return self._without_idle_recipes(found, tried)
        return None

    def _without_idle_recipes(self, before: Found, after: Found) -> Found:
        """Of several attributes that were made to follow at once, only those that it took."""
        added = [r for r in after.state.recipes if r not in before.state.recipes]
        for recipe in added if len(added) > 1 else ():
            recipes = tuple(r for r in after.state.recipes if r != recipe)
            tried = self._bench.attempt(replace(after.state, recipes=recipes))
            if not after.better_than(tried):
                after = tried
        return after

    def _followed(self, found: Found, kinds: Sequence[Candidates]) -> Found:
        """As far as one gets with changes of these kinds."""
        while found.problem is not None:
            better = self._mended(found, kinds)
            if better is None:
                break
            found = better
        return found
