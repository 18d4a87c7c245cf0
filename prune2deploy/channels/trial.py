"""Try a cut: run the narrowed model with labels, and compare it operator by operator.

Every result in the narrowed model must carry the labels of the original's result, less the
removed channels, in the same order; and the plain numbers that enter the values must be the
same. That finds hard-coded shapes, parts that are taken at the wrong place, and scales that
were computed from a width, and it needs no values, so it runs on the meta device.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt
from torch import Tensor

from prune2deploy.channels.cut import cut
from prune2deploy.channels.groups import Group, IndexTable
from prune2deploy.channels.labels import FIXED, NodeIds, NodeTable
from prune2deploy.channels.observe import Subject, TraceMode, observe
from prune2deploy.channels.places import NOWHERE, Place, place_of, raising_frames
from prune2deploy.channels.plan import Plan
from prune2deploy.channels.tracer import Step, Tracer

_LARGE = 12
"""Of groups from this size a tenth goes at least in trials."""


@dataclass(frozen=True)
class Problem:
    """Why a narrowed model does not do what the original does.

    step: how many operators ran before it showed; a later one is progress.
    what: for the user. place: where in the model's code.
    nodes: node ids of the original that were in play.
    modules: names of the modules whose code was running, innermost first, each with the names
        of attributes that this code reads.
    advice: what a user could write there instead, or nothing.
    of_numbers: whether a number that was computed from a width differs, which no attribute
        can mend.
    """

    step: int
    what: str
    place: Place
    nodes: NodeIds
    modules: tuple[tuple[str, frozenset[str]], ...]
    advice: str = ""
    of_numbers: bool = False

    def __str__(self) -> str:
        text = f"{self.place}: {self.what}" if self.place.line[1] else self.what
        return f"{text}. {self.advice}" if self.advice else text


_LENGTH = "If the lengths there come from the tensors themselves (x.shape, or -1), it can be cut"
_NUMBER = "If that number is computed once, in __init__, and kept in an attribute, it can be cut"
_PARTS = (
    "If the parts are taken by lengths that the module keeps in attributes, or evenly (chunk), "
    "they can be cut"
)
_BRANCH = "If what runs there does not depend on the width, it can be cut"


@functools.cache
def counts_to_try(size: int) -> list[int]:
    """How many of a group's channels may stay in a trial, in a mixed order.

    At least two, since a dimension of length 1 shows nothing; so a group of two has none.
    """
    low, high = max(2, round(0.35 * size)), size if size < _LARGE else round(0.9 * size)
    mixed = np.random.default_rng(size).permutation(np.arange(low, high))
    # Two and three last: they are what models' code is full of, and would be taken for it.
    return sorted((int(n) for n in mixed), key=lambda n: n < 4)


def _first_counts(groups: Sequence[Group]) -> list[tuple[int, int]]:
    """Per group how many channels stay in the first trial, and how many before it kept that share.

    What the code ties shows only where lengths differ, so each group gets the share that fewest
    others have: of one size, and also of several, as heads and the embedding they are made of.
    """
    used: Counter[Fraction] = Counter()
    found = []
    for group in groups:
        ways = counts_to_try(group.size) or [group.size]
        # The first that nobody has, if there is one: wide layers have a thousand.
        unused = (n for n in ways if not used[Fraction(n, group.size)])
        count = next(unused, None) or min(ways, key=lambda n: used[Fraction(n, group.size)])
        share = Fraction(count, group.size)
        found.append((count, used[share]))
        used[share] += 1
    return found


def turns(groups: Sequence[Group]) -> int:
    """Trials it takes until no two groups were cut to equal shares in all of them."""
    most = 1
    for group, (_, place) in zip(groups, _first_counts(groups), strict=True):
        ways, digits = len(counts_to_try(group.size)), 0
        while ways and (ways + 1) ** digits <= place:
            digits += 1
        most = max(most, 1 + digits)
    return most


def uneven(groups: Sequence[Group], turn: int = 0) -> list[IndexTable]:
    """Kept channels for a trial: irregular, and of different shares.

    turn: of several trials. In the first every group is cut that can be; in others some stay
        whole, which tells more groups apart.
    """
    random = np.random.default_rng(turn)
    kept = []
    for group, (first, place) in zip(groups, _first_counts(groups), strict=True):
        count, ways = first, counts_to_try(group.size)
        if turn and ways:
            digit = place // (len(ways) + 1) ** (turn - 1) % (len(ways) + 1)
            count = [*ways, group.size][digit]
        kept.append(np.sort(random.choice(group.size, count, replace=False)))
    return kept


def pairs_to_one(groups: Sequence[Group]) -> Iterator[list[IndexTable]]:
    """Kept channels for trials in which groups of two, and only those, are cut to one.

    First all of them, to the first and to the second; then half of them, in so many ways that
    each two are once apart.
    """
    pairs = [number for number, group in enumerate(groups) if group.size == 2]
    if not pairs:
        return
    for bit in range(-2, (len(pairs) - 1).bit_length()):
        cut_now = {n for place, n in enumerate(pairs) if bit < 0 or place >> bit & 1}
        stays = np.array([1 if bit == -2 else 0])
        yield [stays if n in cut_now else np.arange(g.size) for n, g in enumerate(groups)]


def find_problem(
    subject: Subject,
    plan: Plan,
    expected: Tracer,
    component: NodeIds,
    train_too: bool,
    labels_too: bool = True,
) -> Problem | None:
    """Cut by a plan, run, and compare with what was expected.

    Args:
        expected: trace of the whole model, with the decisions that the trial uses too.
        component: per node of `expected` its component.
        labels_too: whether labels are compared; a dimension of length 1 carries none.
    """
    small = cut(subject.model, plan)
    trial = Subject(small, subject.inputs, subject.on_meta)
    tracer = Tracer(expected.decisions, expected.refusals, expected.picks)
    mode = TraceMode(tracer)
    problem: Problem | None = None
    try:
        observe(mode, trial, train_too)
    except Exception as err:  # whatever the model's code raises is the answer here
        if mode.in_rule:
            raise  # not the model's fault but ours
        problem = _raised(err, mode, trial, plan, expected.nodes)
    mismatch = _first_mismatch(trial, plan, expected, tracer, component, labels_too)
    return mismatch or problem


def _raised(
    err: Exception, mode: TraceMode, trial: Subject, plan: Plan, nodes: NodeTable
) -> Problem:
    place = place_of(err.__traceback__)
    what = f"{type(err).__name__}: {str(err).strip().splitlines()[0] if str(err) else ''}"
    tensors = list(mode.pending)
    for frame in raising_frames(err.__traceback__):
        tensors += [x for x in frame.f_locals.values() if isinstance(x, Tensor)]
    found = [ids for x in tensors for ids in mode.tracer.labels(x).dims if ids is not None]
    mine = np.unique(np.concatenate([*found, np.zeros(0, np.int64)]))
    origin = _origin(plan, nodes, mode.tracer.nodes)
    return Problem(
        len(mode.tracer.steps),
        what,
        place,
        origin[mine[mine != FIXED]],
        _modules(place, trial),
        _LENGTH if re.search(r"\b(shape|size|sizes|length|expand)\b", what) else "",
    )


def _modules(place: Place, subject: Subject) -> tuple[tuple[str, frozenset[str]], ...]:
    read: dict[str, frozenset[str]] = {}
    for module, names in zip(place.modules, place.names, strict=True):
        name = subject.names.get(module)
        if name is not None:
            read[name] = read.get(name, frozenset()) | frozenset(names)
    return tuple(read.items())


def _first_mismatch(
    trial: Subject,
    plan: Plan,
    expected: Tracer,
    found: Tracer,
    component: NodeIds,
    labels_too: bool,
) -> Problem | None:
    origin = _origin(plan, expected.nodes, found.nodes)
    compare = _Comparison(component, _kept(plan, expected.nodes), origin)
    for number, (old, new) in enumerate(zip(expected.steps, found.steps, strict=False)):
        found_out = compare.difference(old, new, labels_too)
        if found_out is not None:
            what, advice = found_out
            nodes = [ids for dims in old.labels for ids in dims if ids is not None]
            nodes += [ids for one in old.reads for ids in one.dims if ids is not None]
            some = np.unique(np.concatenate([*nodes, np.zeros(0, np.int64)]))
            place = new.place if new.place is not NOWHERE else old.place
            return Problem(
                number,
                what,
                place,
                some[some != FIXED],
                _modules(place, trial),
                advice,
                of_numbers=old.name == new.name and old.numbers != new.numbers,
            )
    return None


class _Comparison:
    """Compares the labels of two runs; those of one array are compared once."""

    def __init__(self, component: NodeIds, kept: npt.NDArray[np.bool_], origin: NodeIds) -> None:
        # An id of FIXED picks the last entry.
        self._component = np.append(component, FIXED)
        self._kept = np.append(kept, True)
        self._origin = np.append(origin, FIXED)
        self._known: dict[tuple[int, int], bool] = {}

    def difference(self, old: Step, new: Step, labels_too: bool) -> tuple[str, str] | None:
        """What differs between an operator of the original and of the narrowed model; advice."""
        if old.name != new.name:
            return f"{new.name} runs where the whole model runs {old.name}", _BRANCH
        if len(old.numbers) != len(new.numbers) or not all(
            a == b or math.isclose(a, b, rel_tol=1e-9) or a != a
            for a, b in zip(old.numbers, new.numbers, strict=True)
        ):
            was, now = (" × ".join(f"{n:g}" for n in x.numbers) for x in (old, new))
            if old.name == "output":
                return f"the output's shape changes from {was} to {now}", ""
            return f"a number in {old.name} changes with the width, from {was} to {now}", _NUMBER
        if not labels_too:
            return None
        if [len(x) for x in old.labels] != [len(x) for x in new.labels]:
            return f"the result of {old.name} changes its dimensions", _BRANCH
        for before, after in zip(old.labels, new.labels, strict=True):
            for a, b in zip(before, after, strict=True):
                if not self._agree(a, b):
                    return f"the result of {old.name} holds other channels than it should", _PARTS
        return None

    def _agree(self, old: NodeIds | None, new: NodeIds | None) -> bool:
        if old is None and new is None:
            return True
        key = (id(old), id(new))
        if key not in self._known:
            self._known[key] = self._same(old, new)
        return self._known[key]

    def _same(self, old: NodeIds | None, new: NodeIds | None) -> bool:
        left = None if old is None else old[self._kept[old]]
        if left is None or new is None:
            return left is None or len(left) <= 1
        return len(left) == len(new) and bool(
            (self._component[left] == self._component[self._origin[new]]).all()
        )


def _kept(plan: Plan, nodes: NodeTable) -> npt.NDArray[np.bool_]:
    """Which nodes of the whole model a plan keeps."""
    kept = np.ones(nodes.size, dtype=np.bool_)
    for owner in nodes.owners:
        ids = plan.keep.get(owner.name, {}).get(owner.dim)
        if ids is not None:
            kept[owner.start : owner.start + owner.size] = False
            kept[owner.start + ids] = True
    return kept


def _origin(plan: Plan, whole: NodeTable, small: NodeTable) -> NodeIds:
    """Node of the whole model that each node of the narrowed model was."""
    start = {(o.name, o.dim): o.start for o in whole.owners}
    origin = np.zeros(small.size, dtype=np.int64)
    for owner in small.owners:
        ids = plan.keep.get(owner.name, {}).get(owner.dim)
        places = np.arange(owner.size) if ids is None else ids
        origin[owner.start : owner.start + owner.size] = start[owner.name, owner.dim] + places
    return origin
