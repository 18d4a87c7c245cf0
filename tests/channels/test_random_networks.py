"""Networks nobody thought of: whatever is traced can be cut, exactly and at the stated cost.

P2D_RANDOM_NETWORKS=20000 in the environment tries that many of each kind instead of the usual
number, with a seed of its own (docs/results.md says when that was done last).
"""

from __future__ import annotations

import os

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import (
    assert_cut_is_exact,
    counted_macs,
    counts,
    random_kept,
    randomize_norms,
    run,
)
from random_networks import EXACT_KINDS, NORMALISING_KINDS, Random, Step, steps_of
from torch import Tensor

from prune2deploy.channels import cut, trace

WANTED = os.environ.get("P2D_RANDOM_NETWORKS")


def networks(usual: int) -> settings:
    """How many, the same ones every time unless a number was asked for."""
    return settings(
        max_examples=int(WANTED or usual),
        deadline=None,
        derandomize=WANTED is None,
        database=None,
    )


HEAD = st.sampled_from(["flatten", "mean"])


def built(steps: list[Step], head: str, seed: int) -> tuple[Random, Tensor]:
    torch.manual_seed(seed)
    model = Random(steps, head)
    randomize_norms(model, seed)
    # float64, so that the sum of a deep network's rounding stays far below 1e-5
    return model.double(), torch.randn(2, 3, 6, 6, dtype=torch.float64)


@networks(300)
@given(steps=steps_of(EXACT_KINDS), head=HEAD, seed=st.integers(0, 999))
def test_any_plan_for_any_network_is_exact(steps: list[Step], head: str, seed: int) -> None:
    model, image = built(steps, head, seed)
    graph = trace(model, image)
    assert graph.unknown_ops == {}
    assert 2 * graph.cost.macs(graph.full) == counted_macs(model, image)
    for extra in range(2):
        kept = random_kept(graph.groups, seed + extra)
        small = assert_cut_is_exact(model, image, graph, graph.plan(kept))
        assert 2 * graph.cost.macs(counts(kept)) == counted_macs(small, image)


@networks(150)
@given(steps=steps_of(EXACT_KINDS + NORMALISING_KINDS * 3), head=HEAD, seed=st.integers(0, 999))
def test_normalisations_see_what_is_kept(steps: list[Step], head: str, seed: int) -> None:
    model, image = built(steps, head, seed)
    graph = trace(model, image)
    assert graph.unknown_ops == {}
    for extra in range(2):
        plan = graph.plan(random_kept(graph.groups, seed + extra))
        assert_cut_is_exact(model, image, graph, plan, normalised=True)


@networks(50)
@given(steps=steps_of(EXACT_KINDS), head=HEAD, seed=st.integers(0, 999))
def test_a_cut_network_can_be_cut_again(steps: list[Step], head: str, seed: int) -> None:
    model, image = built(steps, head, seed)
    graph = trace(model, image)
    first = graph.plan(random_kept(graph.groups, seed))
    once = assert_cut_is_exact(model, image, graph, first)
    again = trace(once, image)
    second = again.plan(random_kept(again.groups, seed + 1))
    assert_cut_is_exact(once, image, again, second)
    composed = cut(model, first.then(second))
    twice = cut(once, second)
    assert torch.equal(run(composed, image), run(twice, image))
