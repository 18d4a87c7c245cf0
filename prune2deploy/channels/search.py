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

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from torch import nn

from prune2deploy.channels.groups import Frozen, Group, build_groups
from prune2deploy.channels.labels import FIXED, FreezeRecord, NodeIds, tensors_of
from prune2deploy.channels.observe import Subject, TraceMode, observe
from prune2deploy.channels.plan import Follower, Plan, plan_from_kept
from prune2deploy.channels.reference import reference_trace
from prune2deploy.channels.tracer import Choice, Sight, Tracer
from prune2deploy.channels.trial import Problem, find_problem, uneven

_FEW = 8
"""Candidates of one kind that are tried for one problem."""

_REMEMBERED = 4
"""Traces of the whole model, under different decisions, that are kept."""

_NEAR = 2
"""Modules around a problem whose dimensions may be tied; further out they are too many."""

Source = Sight | tuple[str, int]
"""Where a length is known from: seen in a module's code, or (tensor of the module, dimension)."""


@dataclass(frozen=True)
class Recipe:
    """In all modules of a class, an attribute follows the length that `source` has there."""

    kind: type[nn.Module]
    attribute: str
    source: Source


@dataclass(frozen=True)
class Tie:
    """In all modules of a class, two dimensions shrink alike.

    blocks: where the second is a multiple of the first: whether an entry of the first goes with
        a block of neighbours, as a head does, or with every n-th, as an entry of all heads.
    """

    kind: type[nn.Module]
    one: Source
    other: Source
    blocks: bool = False

    def pairs(self, a: NodeIds, b: NodeIds) -> list[tuple[NodeIds, NodeIds]]:
        """Nodes to join; none where the lengths do not fit."""
        if not len(a) or len(b) % len(a):
            return []
        table = b.reshape(len(a), -1).T if self.blocks else b.reshape(-1, len(a))
        return [(a[live], row[live]) for row in table for live in [(a != FIXED) & (row != FIXED)]]


@dataclass(frozen=True)
class State:
    """What has been decided so far.

    decisions: which way a line divides; tried: ways that did not do.
    ties: what shrinks alike.
    frozen: nodes of the whole model that stay, and why.
    """

    decisions: Mapping[Choice, int] = field(default_factory=dict)
    tried: frozenset[tuple[Choice, int]] = frozenset()
    refusals: Mapping[Choice, str] = field(default_factory=dict)
    recipes: tuple[Recipe, ...] = ()
    ties: tuple[Tie, ...] = ()
    frozen: tuple[FreezeRecord, ...] = ()


@dataclass(frozen=True)
class Found:
    """What a state leads to, and the first problem of its trial."""

    state: State
    tracer: Tracer
    component: NodeIds
    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    channel: NodeIds
    followers: tuple[Follower, ...]
    plan: Plan
    problem: Problem | None = None

    def better_than(self, other: Found) -> bool:
        """Whether the trial got further."""
        if self.problem is None:
            return True
        return other.problem is not None and self.problem.step > other.problem.step


Candidates = Callable[[Found], Iterator[State]]
"""States that may do better than one whose trial found a problem."""


class Search:
    """One model; see the module's text."""

    def __init__(
        self, subject: Subject, first: Tracer, train_too: bool, stay: Mapping[str, str]
    ) -> None:
        self._subject = subject
        self._train_too = train_too
        self._stay = stay
        self._shapes = {n: tuple(t.shape) for n, t in tensors_of(subject.model).items()}
        self._traced = [(State(), first)]
        self._built: Found | None = None

    def settle(self) -> Found:
        """Mend one problem after the other until the trial finds none."""
        found = self._try(self._without_stuck_axes(State()))
        while found.problem is not None:
            better = self._mended(found)
            found = better if better is not None else self._try(self._frozen(found))
        return self._pairs_tried(found)

    def _pairs_tried(self, found: Found) -> Found:
        """Groups of two channels are cut to one in a trial of their own, or frozen."""
        while any(g.size == 2 for g in found.groups):
            problem = self._problem(found, pairs=True)
            if problem is None:
                break
            pairs = [n for n, g in enumerate(found.groups) if g.size == 2]
            nodes = np.flatnonzero(np.isin(_group_of_node(found), pairs))
            found = self._build(self._freeze(found.state, nodes, str(problem)))
        return found

    def _mended(self, found: Found) -> Found | None:
        """The first change that lets the trial get further."""
        for candidates, then in (
            (self._following, ()),
            (self._tied, (self._following,)),
            (self._divided_otherwise, (self._following, self._tied)),
            (self._refused, (self._following, self._tied)),
        ):
            for state in _first(candidates(found)):
                # Tied or divided in another way, other attributes have to follow.
                tried = self._followed(self._try(state), then)
                if tried.better_than(found):
                    return tried
        return None

    def _followed(self, found: Found, kinds: Sequence[Candidates]) -> Found:
        """As far as one gets with changes of these kinds."""
        while found.problem is not None:
            better = next(
                (
                    tried
                    for candidates in kinds
                    for state in _first(candidates(found))
                    if (tried := self._try(state)).better_than(found)
                ),
                None,
            )
            if better is None:
                break
            found = better
        return found

    # What a state leads to

    def _trace(self, state: State) -> Tracer:
        for known, tracer in self._traced:
            if known.decisions == state.decisions and known.refusals == state.refusals:
                return tracer
        tracer = Tracer(state.decisions, state.refusals)
        observe(TraceMode(tracer), self._subject, self._train_too)
        self._traced = [(state, tracer), *self._traced[: _REMEMBERED - 1]]
        return tracer

    def _build(self, state: State) -> Found:
        if self._built is None or self._built.state is not state:
            self._built = self._built_anew(state)
        return self._built

    def _built_anew(self, state: State) -> Found:
        tracer = self._trace(state)
        edges = list(tracer.nodes.edges)
        for tie in state.ties:
            for module in self._modules(tie.kind):
                a = self._ids(tracer, module, tie.one)
                b = self._ids(tracer, module, tie.other)
                if a is not None and b is not None:
                    edges += tie.pairs(a, b)
        nodes = replace(tracer.nodes, edges=edges, frozen=[*tracer.nodes.frozen, *state.frozen])
        component = nodes.components()
        groups, frozen, channel = build_groups(nodes, component, tracer.sites, self._stay)
        followers = self._followers(state, tracer, channel)
        kept = uneven(groups, pairs=False)
        plan = plan_from_kept(groups, kept, self._shapes, (), followers)
        return Found(
            state, tracer, component, tuple(groups), tuple(frozen), channel, followers, plan
        )

    def _try(self, state: State) -> Found:
        found = self._build(state)
        return replace(found, problem=self._problem(found))

    def _problem(self, found: Found, pairs: bool = False) -> Problem | None:
        plan = found.plan
        if pairs:
            kept = uneven(found.groups, pairs=True)
            plan = plan_from_kept(found.groups, kept, self._shapes, (), found.followers)
        if plan.removes_nothing:
            return None
        expected = found.tracer
        if not self._subject.on_meta and not pairs:
            # With values, what runs may depend on them; so both sides must have the same.
            expected = reference_trace(self._subject, plan, found.tracer, self._train_too)
        return find_problem(
            self._subject, plan, expected, found.component, self._train_too, shapes_only=pairs
        )

    def _without_stuck_axes(self, state: State) -> State:
        """Where all that a line made turns out to be frozen, take another way if one is better."""
        found = self._build(state)
        stuck = {c for c in _stuck(found) if c not in state.decisions}
        most = max((found.tracer.divisions[c].ways for c in stuck), default=0)
        for way in range(most):
            if not stuck:
                break
            others = {
                c: way
                for c in stuck
                if way < found.tracer.divisions[c].ways
                and way not in found.tracer.divisions[c].taken
            }
            tried = self._build(replace(state, decisions={**state.decisions, **others}))
            freed = others.keys() - _stuck(tried)
            if freed:
                better = dict.fromkeys(freed, way)
                state = replace(state, decisions={**state.decisions, **better})
                stuck -= freed
        return state

    # 1: attributes

    def _following(self, found: Found) -> Iterator[State]:
        assert found.problem is not None
        if found.problem.of_numbers:
            return
        for name, read in found.problem.modules:
            module = self._subject.model.get_submodule(name)
            followed = {f.attribute for f in found.followers if f.module == name}
            for attribute, value in _lengths(module):
                if attribute in followed or attribute.partition("[")[0] not in read:
                    continue
                seen = {value}
                for source, ids in self._sources(found, module, value):
                    left = self._left(found, ids)
                    if left not in seen:
                        seen.add(left)
                        recipe = Recipe(type(module), attribute, source)
                        yield replace(found.state, recipes=(*found.state.recipes, recipe))

    def _sources(
        self, found: Found, module: nn.Module, length: int
    ) -> Iterator[tuple[Source, NodeIds]]:
        """Those of a length."""
        return (pair for pair in self._all_sources(found, module) if len(pair[1]) == length)

    def _all_sources(self, found: Found, module: nn.Module) -> Iterator[tuple[Source, NodeIds]]:
        """Dimensions that the module's code or tensors have; nearest to the problem first."""
        assert found.problem is not None
        place = found.problem.place
        seen = found.tracer.sights.get(module, {})
        yield from sorted(seen.items(), key=lambda item: item[0].place != place)
        for owner in found.tracer.nodes.owners:
            relative = self._relative(module, owner.name)
            if relative is not None:
                yield (relative, owner.dim), np.arange(owner.start, owner.start + owner.size)

    def _relative(self, module: nn.Module, tensor: str) -> str | None:
        prefix = self._subject.names[module]
        if not prefix:
            return tensor
        return tensor.removeprefix(prefix + ".") if tensor.startswith(prefix + ".") else None

    def _ids(self, tracer: Tracer, module: nn.Module, source: Source) -> NodeIds | None:
        if isinstance(source, Sight):
            return tracer.sights.get(module, {}).get(source)
        prefix = self._subject.names[module]
        name = f"{prefix}.{source[0]}" if prefix else source[0]
        for owner in tracer.nodes.owners:
            if (owner.name, owner.dim) == (name, source[1]):
                return np.arange(owner.start, owner.start + owner.size)
        return None

    def _modules(self, kind: type[nn.Module]) -> list[nn.Module]:
        return [m for m in self._subject.names if type(m) is kind]

    def _followers(self, state: State, tracer: Tracer, channel: NodeIds) -> tuple[Follower, ...]:
        followers = []
        for recipe in state.recipes:
            for module in self._modules(recipe.kind):
                ids = self._ids(tracer, module, recipe.source)
                if ids is None or dict(_lengths(module)).get(recipe.attribute) != len(ids):
                    continue
                name = self._subject.names[module]
                followers.append(Follower(name, recipe.attribute, _of(channel, ids)))
        return tuple(followers)

    def _left(self, found: Found, ids: NodeIds) -> int:
        """How many of these the trial's plan keeps."""
        kept = np.ones(len(found.channel) + 1, dtype=np.bool_)
        for owner in found.tracer.nodes.owners:
            stays = found.plan.keep.get(owner.name, {}).get(owner.dim)
            if stays is not None:
                kept[owner.start : owner.start + owner.size] = False
                kept[owner.start + stays] = True
        return int(kept[ids].sum())

    # 2: ties

    def _tied(self, found: Found) -> Iterator[State]:
        """Pairs of dimensions that came out differently: of one length, or one of them in play."""
        assert found.problem is not None
        if found.problem.of_numbers or found.problem.step >= len(found.tracer.steps):
            return
        step = found.tracer.steps[found.problem.step]
        known = [d for dims in step.labels for d in dims] + [d for r in step.reads for d in r.dims]
        component = np.append(found.component, FIXED)
        in_play = {component[ids].tobytes() for ids in known if ids is not None}
        for name, _ in found.problem.modules[:_NEAR]:
            module = self._subject.model.get_submodule(name)
            sources: dict[bytes, tuple[Source, NodeIds]] = {}
            for source, ids in self._all_sources(found, module):
                if (_of(found.channel, ids) != FIXED).any():
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
                    if self._still_cut(found, self._build(state), one[1]):
                        yield state

    def _still_cut(self, found: Found, tied: Found, ids: NodeIds) -> bool:
        """Whether what was tied is cut in the next trial; else that would prove nothing."""
        assert found.problem is not None
        if self._left(tied, ids) < len(ids):
            return True
        if (_of(tied.channel, ids) == FIXED).all():
            return False
        problem = self._problem(tied, pairs=True)
        return problem is None or problem.step > found.problem.step

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
        if exact and self._left(found, one[1]) * times != self._left(found, other[1]):
            yield Tie(kind, one[0], other[0])
            if times > 1:
                yield Tie(kind, one[0], other[0], blocks=True)

    # 3 and 4: other ways, and none

    def _involved(self, found: Found) -> list[Choice]:
        """Lines that divided something that was in play; the line of the problem first."""
        assert found.problem is not None
        place = found.problem.place
        culprits = self._culprits(found)
        of_node = _group_of_node(found)
        involved = [
            choice
            for choice, division in found.tracer.divisions.items()
            if any(np.isin(_of(of_node, ids), culprits).any() for ids in division.channels)
        ]
        involved.reverse()  # what came last is nearest
        return sorted(involved, key=lambda choice: choice[0] != place)

    def _divided_otherwise(self, found: Found) -> Iterator[State]:
        for choice in self._involved(found):
            division = found.tracer.divisions[choice]
            tried = found.state.tried | {(choice, way) for way in division.taken}
            for way in range(division.ways):
                if (choice, way) not in tried:
                    decisions = {**found.state.decisions, choice: way}
                    state = replace(found.state, decisions=decisions, tried=tried)
                    # Lines that divide what is multiplied with it have to go along.
                    state = self._without_stuck_axes(state)
                    # A way that freezes everything there is no other way.
                    if choice not in _stuck(self._build(state)):
                        yield state

    def _refused(self, found: Found) -> Iterator[State]:
        assert found.problem is not None
        for choice in self._involved(found):
            refusals = {**found.state.refusals, choice: _reason(found.problem)}
            yield replace(found.state, refusals=refusals)

    def _culprits(self, found: Found) -> npt.NDArray[np.int64]:
        """Numbers of the groups that were in play when the problem showed."""
        assert found.problem is not None
        numbers: NodeIds = np.unique(_of(_group_of_node(found), found.problem.nodes))
        live: NodeIds = numbers[numbers != FIXED]
        return live

    def _frozen(self, found: Found) -> State:
        """The state in which the trial gets furthest with one group in play frozen, or all."""
        assert found.problem is not None
        of_node = _group_of_node(found)
        reason = _reason(found.problem)
        culprits = self._culprits(found).tolist() or list(range(len(found.groups)))
        while len(culprits) > _FEW:
            middle = len(culprits) // 2
            for half in (culprits[:middle], culprits[middle:]):
                nodes = np.flatnonzero(np.isin(of_node, half))
                if self._try(self._freeze(found.state, nodes, reason)).better_than(found):
                    culprits = half
                    break
            else:
                break
        best: Found | None = None
        for number in culprits if 1 < len(culprits) <= _FEW else []:
            state = self._freeze(found.state, np.flatnonzero(of_node == number), reason)
            tried = self._try(state)
            if tried.better_than(best or found):
                best = tried
        if best is not None:
            return best.state
        nodes = np.flatnonzero(np.isin(of_node, culprits))
        return self._freeze(found.state, nodes, reason)

    @staticmethod
    def _freeze(state: State, nodes: NodeIds, reason: str) -> State:
        return replace(state, frozen=(*state.frozen, FreezeRecord(nodes, reason)))


def _first(states: Iterator[State]) -> Iterator[State]:
    for number, state in enumerate(states):
        if number == _FEW:
            return
        yield state


def _of(values: NodeIds, ids: NodeIds) -> NodeIds:
    """values[ids], and FIXED where an id is FIXED."""
    extended: NodeIds = np.append(values, FIXED)
    picked: NodeIds = extended[ids]
    return picked


def _group_of_node(found: Found) -> NodeIds:
    """Per node the number of its group, or FIXED."""
    starts = np.cumsum([0, *(g.size for g in found.groups)])
    group = np.searchsorted(starts, found.channel, side="right") - 1
    return np.where(found.channel == FIXED, FIXED, group)


def _lengths(module: nn.Module) -> list[tuple[str, int]]:
    """Attributes of a module that may state a length: whole numbers, alone and in lists."""
    found = []
    for name, value in vars(module).items():
        if isinstance(value, (list, tuple)):
            found += [
                (f"{name}[{i}]", entry)
                for i, entry in enumerate(value)
                if type(entry) is int and entry > 1
            ]
        elif type(value) is int and value > 1:
            found.append((name, value))
    return found


def _stuck(found: Found) -> set[Choice]:
    """Lines whose channels are all frozen."""
    return {
        choice
        for choice, division in found.tracer.divisions.items()
        if all((_of(found.channel, ids) == FIXED).all() for ids in division.channels)
    }


def _reason(problem: Problem) -> str:
    return f"the model's code does not allow it: {problem}"
