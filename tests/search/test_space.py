"""Numbers of a sampler lead to networks, and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prune2deploy.search import Space
from prune2deploy.search.space import SHARE

ALLOWED = [(32, 24, 16, 8), (64, 48, 32, 16), (8,), (16, 8)]
WEIGHTS = np.array([5, 3, 7, 2])


def space(low: float = 0.05, high: float = 1.0) -> Space:
    names = [f"layer{n}" for n in range(len(ALLOWED))]
    return Space(names, ALLOWED, lambda c: int((WEIGHTS * c).sum()), low, high)


@given(st.tuples(*(st.sampled_from(counts) for counts in ALLOWED)))
def test_every_network_has_numbers_that_lead_to_it(counts: tuple[int, ...]) -> None:
    found = space().counts_of(space().numbers_of(np.array(counts)))
    assert tuple(found) == counts


@given(st.lists(st.floats(0.001, 1), min_size=3, max_size=3), st.floats(0.37, 1))
def test_a_network_is_the_widest_of_its_share(groups: list[float], share: float) -> None:
    here = space()
    numbers = dict(zip(here.parameters(), [share, *groups], strict=True))
    counts = here.counts_of(numbers)
    assert here.share(counts) <= share
    wider = here.counts_of({**numbers, SHARE: 1.0})
    assert (wider == here.full).all()
    for number, allowed in enumerate(ALLOWED):
        assert counts[number] in allowed


def test_a_group_that_loses_nothing_stays_whole_and_others_pay() -> None:
    here = space()
    zero, one, _ = here.parameters()[1:]
    counts = here.counts_of(dict(zip(here.parameters(), [0.6, 0.0, 1.0, 1.0], strict=True)))
    assert (zero, one) == ("group layer0", "group layer1")
    assert counts[0] == 32
    assert counts[1] < 64


def test_a_group_without_a_choice_has_no_number() -> None:
    assert space().parameters() == [SHARE, "group layer0", "group layer1", "group layer3"]


@pytest.mark.parametrize("share", [0.4, 0.5, 0.8])
def test_uniform_takes_alike_from_all(share: float) -> None:
    counts = space().uniform(share)
    left = counts[[0, 1]] / np.array([32, 64])
    assert abs(left[0] - left[1]) <= 0.25
    assert space().share(counts) <= share


def test_a_neighbour_differs_by_single_steps() -> None:
    random, here = np.random.default_rng(0), space()
    base = np.array([24, 32, 8, 16])
    moved = [here.neighbour(base, random) for _ in range(50)]
    steps = {tuple((m != base).astype(int)) for m in moved}
    assert {sum(step) for step in steps} >= {1, 2}
    for one in moved:
        for now, then, allowed in zip(one, base, ALLOWED, strict=True):
            assert abs(allowed.index(now) - allowed.index(then)) <= 1
