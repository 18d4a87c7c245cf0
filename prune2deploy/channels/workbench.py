"""Build what a state leads to, and try it: the tools of the search."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
from torch import nn

from prune2deploy.channels.groups import build_groups
from prune2deploy.channels.labels import FreezeRecord, NodeIds, tensors_of
from prune2deploy.channels.observe import Subject, TraceMode, observe
from prune2deploy.channels.places import NOWHERE
from prune2deploy.channels.plan import Follower, Plan, plan_from_kept
from prune2deploy.channels.reference import reference_trace
from prune2deploy.channels.state import Found, Source, State, lengths_of, picked
from prune2deploy.channels.tracer import Sight, Tracer
from prune2deploy.channels.trial import Problem, find_problem, pairs_to_one, uneven
from prune2deploy.channels.verify import Proof

_REMEMBERED = 4
"""Traces of the whole model, under different decisions, that are kept."""


class Workbench:
    """One model, and what was found out about it.

    attempts: trials so far.
    """

    def __init__(
        self,
        subject: Subject,
        first: Tracer,
        train_too: bool,
        stay: Mapping[str, str],
        proof: Proof,
    ) -> None:
        self.subject = subject
        self._proof = proof
        self._train_too = train_too
        self._stay = stay
        self._shapes = {n: tuple(t.shape) for n, t in tensors_of(subject.model).items()}
        self._traced = [(State(), first)]
        self._built: Found | None = None
        self.attempts = 0

    def _trace(self, state: State) -> Tracer:
        for known, tracer in self._traced:
            if known.decisions == state.decisions and known.refusals == state.refusals:
                return tracer
        tracer = Tracer(state.decisions, state.refusals)
        observe(TraceMode(tracer), self.subject, self._train_too)
        self._traced = [(state, tracer), *self._traced[: _REMEMBERED - 1]]
        return tracer

    def build(self, state: State) -> Found:
        """What a state leads to, not tried yet."""
        if self._built is None or self._built.state is not state:
            self._built = self._built_anew(state)
        return self._built

    def _built_anew(self, state: State) -> Found:
        tracer = self._trace(state)
        edges = list(tracer.nodes.edges)
        for tie in state.ties:
            for module in self._modules(tie.kind):
                a = self.ids(tracer, module, tie.one)
                b = self.ids(tracer, module, tie.other)
                if a is not None and b is not None:
                    edges += tie.pairs(a, b)
        nodes = replace(tracer.nodes, edges=edges, frozen=[*tracer.nodes.frozen, *state.frozen])
        component = nodes.components()
        groups, frozen, channel = build_groups(nodes, component, tracer.sites, self._stay)
        followers = self._followers(state, tracer, channel)
        kept = uneven(groups, state.turn)
        plan = plan_from_kept(groups, kept, self._shapes, (), followers)
        return Found(
            state, tracer, component, tuple(groups), tuple(frozen), channel, followers, plan
        )

    def attempt(self, state: State) -> Found:
        """What a state leads to, and the first problem of its trial."""
        self.attempts += 1
        found = self.build(state)
        return replace(found, problem=self.problem(found))

    def problem(self, found: Found) -> Problem | None:
        """The first problem when channels are cut."""
        return self._problem(found, found.plan, labels_too=True)

    def problem_of_pairs(self, found: Found) -> Problem | None:
        """The first problem when groups of two are cut to one, whose dimension has no labels.

        So operators are compared without labels, and the real model's numbers as well.
        """
        for kept in pairs_to_one(found.groups):
            plan = plan_from_kept(found.groups, kept, self._shapes, (), found.followers)
            problem = self._problem(found, plan, labels_too=False)
            if problem is None and not plan.removes_nothing:
                problem = _of_values(self._proof(plan), len(found.tracer.steps))
            if problem is not None:
                return problem
        return None

    def _problem(self, found: Found, plan: Plan, labels_too: bool) -> Problem | None:
        if plan.removes_nothing:
            return None
        expected = found.tracer
        if not self.subject.on_meta:
            # With values, what runs may depend on them; so both sides must have the same.
            expected = reference_trace(self.subject, plan, found.tracer, self._train_too)
        return find_problem(
            self.subject, plan, expected, found.component, self._train_too, labels_too
        )

    def without_stuck_axes(self, state: State) -> State:
        """Where all that a line made turns out to be frozen, take another way if one is better."""
        found = self.build(state)
        stuck = {c for c in found.stuck() if c not in state.decisions}
        most = max((found.tracer.divisions[c].ways for c in stuck), default=0)
        for way in range(most):
            if not stuck:
                break
            others = {
                c: way
                for c in stuck
                if way < found.tracer.divisions[c].ways
                and not found.tracer.divisions[c].everywhere(way)
            }
            tried = self.build(replace(state, decisions={**state.decisions, **others}))
            freed = others.keys() - tried.stuck()
            if freed:
                better = dict.fromkeys(freed, way)
                state = replace(state, decisions={**state.decisions, **better})
                stuck -= freed
        return state

    def sources(
        self, found: Found, module: nn.Module, length: int | None = None
    ) -> Iterator[tuple[Source, NodeIds]]:
        """Dimensions that the module's code or tensors have; nearest to the problem first.

        length: only those of this length.
        """
        assert found.problem is not None
        place = found.problem.place
        seen = found.tracer.sights.get(module, {})
        for sight, ids in sorted(seen.items(), key=lambda item: item[0].place != place):
            if length in (None, len(ids)):
                yield sight, ids
        for owner in found.tracer.nodes.owners:
            relative = self._relative(module, owner.name)
            if relative is not None and length in (None, owner.size):
                yield (relative, owner.dim), np.arange(owner.start, owner.start + owner.size)

    def _relative(self, module: nn.Module, tensor: str) -> str | None:
        prefix = self.subject.names[module]
        if not prefix:
            return tensor
        return tensor.removeprefix(prefix + ".") if tensor.startswith(prefix + ".") else None

    def ids(self, tracer: Tracer, module: nn.Module, source: Source) -> NodeIds | None:
        """The nodes of a dimension in one module, if it has it."""
        if isinstance(source, Sight):
            return tracer.sights.get(module, {}).get(source)
        prefix = self.subject.names[module]
        name = f"{prefix}.{source[0]}" if prefix else source[0]
        for owner in tracer.nodes.owners:
            if (owner.name, owner.dim) == (name, source[1]):
                return np.arange(owner.start, owner.start + owner.size)
        return None

    def _modules(self, kind: type[nn.Module]) -> list[nn.Module]:
        return [m for m in self.subject.names if type(m) is kind]

    def _followers(self, state: State, tracer: Tracer, channel: NodeIds) -> tuple[Follower, ...]:
        followers = []
        for recipe in state.recipes:
            for module in self._modules(recipe.kind):
                ids = self.ids(tracer, module, recipe.source)
                if ids is None or dict(lengths_of(module)).get(recipe.attribute) != len(ids):
                    continue
                name = self.subject.names[module]
                followers.append(Follower(name, recipe.attribute, picked(channel, ids)))
        return tuple(followers)

    @staticmethod
    def freeze(state: State, nodes: NodeIds, reason: str) -> State:
        """The state in which these nodes stay as well."""
        return replace(state, frozen=(*state.frozen, FreezeRecord(nodes, reason)))


def _of_values(error: str | None, steps: int) -> Problem | None:
    """What a comparison of values shows, after all of a run's steps were found alike."""
    if error is None:
        return None
    what = f"with one channel of two left, {error}"
    return Problem(steps, what, NOWHERE, np.zeros(0, dtype=np.int64), ())
