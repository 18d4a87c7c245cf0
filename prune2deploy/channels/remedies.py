"""What may mend a trial's problem, each kind as an iterator over states, most likely first."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from torch import nn

from prune2deploy.channels.labels import FIXED, NodeIds
from prune2deploy.channels.state import Found, Recipe, Source, State, Tie, lengths_of, picked
from prune2deploy.channels.tracer import Choice
from prune2deploy.channels.trial import Problem
from prune2deploy.channels.workbench import Workbench

_FEW = 8
"""Candidates of one kind that are tried for one problem."""

_NEAR = 2
"""Modules around a problem whose dimensions may be tied; further out they are too many."""


class Remedies:
    """For one model; see search.py for the order in which they are tried."""

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench

    def following(self, found: Found) -> Iterator[State]:
        """One attribute more follows; at last all that may, each what is nearest."""
        assert found.problem is not None
        if found.problem.of_numbers:
            return
        nearest: dict[tuple[type[nn.Module], str], Recipe] = {}
        for name, read in found.problem.modules:
            module = self._bench.subject.model.get_submodule(name)
            followed = {f.attribute for f in found.followers if f.module == name}
            for attribute, value in lengths_of(module):
                if attribute in followed or attribute.partition("[")[0] not in read:
                    continue
                seen = {value}
                for source, ids in self._bench.sources(found, module, value):
                    left = found.left(ids)
                    if left not in seen:
                        seen.add(left)
                        recipe = Recipe(type(module), attribute, source)
                        nearest.setdefault((recipe.kind, attribute), recipe)
                        yield replace(found.state, recipes=(*found.state.recipes, recipe))
        if len(nearest) > 1:
            yield replace(found.state, recipes=(*found.state.recipes, *nearest.values()))

    def tied(self, found: Found) -> Iterator[State]:
        """Pairs of dimensions that came out differently: of one length, or one of them in play."""
        assert found.problem is not None
        if found.problem.of_numbers or found.problem.step >= len(found.tracer.steps):
            return
        step = found.tracer.steps[found.problem.step]
        known = [d for dims in step.labels for d in dims] + [d for r in step.reads for d in r.dims]
        component = np.append(found.component, FIXED)
        in_play = {component[ids].tobytes() for ids in known if ids is not None}
        for name, _ in found.problem.modules[:_NEAR]:
            module = self._bench.subject.model.get_submodule(name)
            sources: dict[bytes, tuple[Source, NodeIds]] = {}
            for source, ids in self._bench.sources(found, module):
                if (picked(found.channel, ids) != FIXED).any():
                    sources.setdefault(component[ids].tobytes(), (source, ids))
            pairs = itertools.combinations(sources.items(), 2)
            equal, multiple = [], []
            for (key, one), (other_key, other) in pairs:
                if len(one[1]) == len(other[1]):
                    equal.append((one, other))
                elif in_play & {key, other_key}:
                    multiple.append((one, other))
            for one, other in equal + multiple:
                for tie in self._ways_to_tie(found, type(module), one, other):
                    state = replace(found.state, ties=(*found.state.ties, tie))
                    if self._still_cut(found, self._bench.build(state), one[1]):
                        yield state

    def _still_cut(self, found: Found, tied: Found, ids: NodeIds) -> bool:
        """Whether what was tied is cut in the next trial; else that would prove nothing.

        So ties that leave two channels are never made: cut to one, they carry no labels.
        """
        return tied.left(ids) < len(ids)

    def _ways_to_tie(
        self,
        found: Found,
        kind: type[nn.Module],
        one: tuple[Source, NodeIds],
        other: tuple[Source, NodeIds],
    ) -> Iterator[Tie]:
        if len(one[1]) > len(other[1]):
            one, other = other, one
        times = len(other[1]) // len(one[1])
        exact = len(other[1]) == times * len(one[1])
        if exact and found.left(one[1]) * times != found.left(other[1]):
            yield Tie(kind, one[0], other[0])
            if times > 1:
                yield Tie(kind, one[0], other[0], blocks=True)

    def _involved(self, found: Found) -> list[Choice]:
        """Lines that divided something that was in play; the line of the problem first."""
        assert found.problem is not None
        place = found.problem.place
        culprits = self._culprits(found)
        of_node = found.group_of_node()
        involved = [
            choice
            for choice, division in found.tracer.divisions.items()
            if any(np.isin(picked(of_node, ids), culprits).any() for ids in division.channels)
            or (found.problem.of_numbers and self._same_class(choice, found.problem))
        ]
        involved.reverse()  # what came last is nearest
        return sorted(involved, key=lambda choice: choice[0] != place)

    def _same_class(self, choice: Choice, problem: Problem) -> bool:
        """Whether a line belongs to a class of modules that was running.

        A number that follows a width may enter where that width is gone, as in the softmax's scale.
        """
        running = {type(self._bench.subject.model.get_submodule(n)) for n, _ in problem.modules[:1]}
        return any(type(module) in running for module in choice[0].modules[:1])

    def divided_otherwise(self, found: Found) -> Iterator[State]:
        """A line that divided what was in play takes a way that was not taken yet."""
        for choice in self._involved(found):
            division = found.tracer.divisions[choice]
            taken = {(choice, w) for w in range(division.ways) if division.everywhere(w)}
            tried = found.state.tried | taken
            for way in range(division.ways):
                if (choice, way) not in tried:
                    decisions = {**found.state.decisions, choice: way}
                    # Ties were found for the way that did not do, and may stand in the way of this
                    # one; what still needs a tie gets it again.
                    kinds = {type(module) for module in choice[0].modules}
                    fewer = tuple(tie for tie in found.state.ties if tie.kind not in kinds)
                    for ties in dict.fromkeys((found.state.ties, fewer)):
                        state = replace(found.state, decisions=decisions, tried=tried, ties=ties)
                        # Lines that divide what is multiplied with it have to go along.
                        state = self._bench.without_stuck_axes(state)
                        # A way that freezes everything there is no other way.
                        if choice not in self._bench.build(state).stuck():
                            yield state

    def refused(self, found: Found) -> Iterator[State]:
        """What such a line divides stays whole."""
        assert found.problem is not None
        for choice in self._involved(found):
            refusals = {**found.state.refusals, choice: reason_of(found.problem)}
            yield replace(found.state, refusals=refusals)

    def _culprits(self, found: Found) -> NodeIds:
        """Numbers of the groups that were in play when the problem showed.

        If that was none: those of the innermost module that was running and has any.
        """
        assert found.problem is not None
        numbers: NodeIds = np.unique(picked(found.group_of_node(), found.problem.nodes))
        live: NodeIds = numbers[numbers != FIXED]
        for name, _ in found.problem.modules if not len(live) else ():
            inside = [
                number
                for number, group in enumerate(found.groups)
                if any(slot.tensor.startswith(f"{name}." if name else "") for slot in group.slots)
            ]
            if inside:
                return np.array(inside, dtype=np.int64)
        return live

    def frozen(self, found: Found) -> State:
        """The state in which the trial gets furthest with one group in play frozen, or all."""
        assert found.problem is not None
        of_node = found.group_of_node()
        reason = reason_of(found.problem)
        culprits = self._culprits(found).tolist() or list(range(len(found.groups)))
        while len(culprits) > _FEW:
            middle = len(culprits) // 2
            for half in (culprits[:middle], culprits[middle:]):
                nodes = np.flatnonzero(np.isin(of_node, half))
                if self._bench.attempt(self._bench.freeze(found.state, nodes, reason)).better_than(
                    found
                ):
                    culprits = half
                    break
            else:
                break
        best: Found | None = None
        for number in culprits if 1 < len(culprits) <= _FEW else []:
            state = self._bench.freeze(found.state, np.flatnonzero(of_node == number), reason)
            tried = self._bench.attempt(state)
            if tried.better_than(found) and not (best is not None and best.better_than(tried)):
                best = tried
        if best is not None:
            return best.state
        nodes = np.flatnonzero(np.isin(of_node, culprits))
        return self._bench.freeze(found.state, nodes, reason)


def reason_of(problem: Problem) -> str:
    """For a user, who reads it after "because"."""
    return f"the model's code does not allow it: {problem}"
