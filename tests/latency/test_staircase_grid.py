"""Which widths are measured, and where steps are seen."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from prune2deploy.latency.staircase.grid import (
    COARSE,
    NARROW,
    Extent,
    grid,
    refined,
    step_of,
    widths,
)
from prune2deploy.latency.staircase.specs import LayerSpec

CONV = LayerSpec("conv", (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), (14, 14))
DEPTHWISE = LayerSpec("depthwise", (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), (14, 14))


@pytest.mark.parametrize("full", [1, 3, 8, 12, 64, 100, 512, 2048])
@pytest.mark.parametrize("step", [1, 8, 16])
def test_widths_are_multiples_and_the_full_width(full: int, step: int) -> None:
    found = widths(full, step)
    assert found == sorted(set(found))
    assert found[-1] == full
    assert all(width % step == 0 for width in found[:-1] if width > step)
    narrow = [width for width in found[:-1] if width < step]
    assert narrow == ([step // 2] if step >= 8 and step // 2 < full <= NARROW * step else [])
    possible = len(range(step, full, step)) + 1
    assert len(found) == min(possible, COARSE) + len(narrow)
    if possible > 1:
        assert step in found


def test_widths_are_evenly_spread() -> None:
    found = widths(512, 8)
    gaps = [b - a for a, b in itertools.pairwise(found)]
    assert max(gaps) <= 2 * min(gaps[:-1])


def test_a_grid_has_every_pair_of_widths() -> None:
    found = grid(CONV, [Extent((3, 24))], 8)
    assert found == [(3, 4), (3, 8), (3, 16), (3, 24)]
    assert len(grid(CONV, [Extent((256, 512))], 8)) == COARSE**2
    assert (256, 512) in grid(CONV, [Extent((256, 512))], 8)


def test_what_cannot_shrink_is_measured_at_its_width_only() -> None:
    classifier, head = Extent((24, 1000), (True, False)), Extent((24, 21), (True, False))
    inner = Extent((8, 16))
    found = grid(CONV, [classifier, head, inner], 8)
    of = {out: [a for a, b in found if b == out] for out in {b for _, b in found}}
    assert of == {1000: [4, 8, 16, 24], 21: [4, 8, 16, 24], 4: [4, 8], 8: [4, 8], 16: [4, 8]}
    assert grid(CONV, [Extent((3, 24), (False, True))], 8) == [(3, 4), (3, 8), (3, 16), (3, 24)]
    assert grid(DEPTHWISE, [Extent((24, 24), (False, False))], 8) == [(24, 24)]
    assert grid(CONV.layout, [Extent((24, 24), (False, False))], 8) == [(4, 4)]


def test_a_change_of_layout_is_looked_at_where_images_are_narrow() -> None:
    layout = CONV.layout
    assert grid(layout, [Extent((64, 64))], 16) == [(8, 8)]
    assert grid(layout, [Extent((8, 8))], 16) == []  # nothing can be cut to less than a step
    assert grid(layout, [Extent((64, 64))], 4) == []  # no half of it is a width of its own


def test_depthwise_goes_in_and_out_alike() -> None:
    assert grid(DEPTHWISE, [Extent((24, 24))], 8) == [(4, 4), (8, 8), (16, 16), (24, 24)]


def test_of_a_grouped_convolution_whole_groups_go() -> None:
    spec = LayerSpec("grouped", (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), (14, 14), group_width=4)
    found = grid(spec, [Extent((32, 64))], 8)
    assert found[-1] == (32, 64)
    assert all(inside % 4 == 0 and outside == 2 * inside for inside, outside in found)
    assert [inside for inside, _ in found] == [8, 16, 24, 32]


def stairs(step: int, jump: float = 1.0) -> dict[int, float]:
    return {w: 5 + jump * math.ceil(w / step) for w in range(33, 65)}


@pytest.mark.parametrize("step", [4, 8, 16])
def test_the_step_of_a_staircase_is_found(step: int) -> None:
    assert step_of(stairs(step)) == step


def test_a_line_has_no_steps_that_cost_anything() -> None:
    assert step_of({width: 3.0 * width for width in range(8, 17)}) == 1
    assert step_of({width: 3.0 * width for width in range(33, 65)}) <= 2


@pytest.mark.parametrize("step", [4, 8, 16])
@pytest.mark.parametrize("seed", range(5))
def test_noise_neither_hides_nor_makes_steps(step: int, seed: int) -> None:
    noise = np.random.default_rng(seed)
    noisy = {w: t * noise.lognormal(0, 0.02) for w, t in stairs(step).items()}
    noisy[44] *= 1.3  # once disturbed
    noisy[38] *= 0.8
    assert step_of(noisy) == step


def test_the_steps_of_a_processor_with_short_vectors() -> None:
    # A 1x1 convolution on an AVX2 machine by its input channels, µs: multiples of 4 are fast,
    # every second of them is no faster than the next multiple of 8.
    times = dict.fromkeys(range(33, 65), 200.0)
    times |= {36: 61, 40: 61, 44: 71, 48: 72, 52: 79, 56: 80, 60: 89, 64: 88}
    assert step_of(times) == 8


def test_times_that_do_not_change_are_one_step() -> None:
    assert step_of(dict.fromkeys(range(33, 65), 7.0)) == 32


def test_multiples_that_are_fast_alone_are_found() -> None:
    # Other widths run in a slow kernel: 48 and 64 are worth having, 49 to 63 are not.
    times = {w: w * (1.0 if w % 16 == 0 else 3.0) for w in range(33, 65)}
    assert step_of(times) == 16


def line(time: dict[int, float]) -> dict[tuple[int, int], float]:
    return {(16, width): us for width, us in time.items()}


def test_a_line_is_not_refined() -> None:
    assert refined(CONV, line({w: 2.0 * w for w in (8, 64, 128, 192)}), 8) == []


def test_a_jump_is_looked_at_from_both_sides() -> None:
    known = line({32: 32, 64: 64, 96: 200, 128: 232})
    found = refined(CONV, known, 8)
    assert set(found) == {(16, 48), (16, 80), (16, 112)}
    assert not set(found) & set(known)
    # and in the other direction
    turned = {(b, a): us for (a, b), us in known.items()}
    assert set(refined(CONV, turned, 8)) == {(48, 16), (80, 16), (112, 16)}


def test_what_a_stamp_of_whole_microseconds_makes_is_no_jump() -> None:
    assert refined(CONV, line({32: 3.0, 64: 4.9, 96: 5.0, 128: 7.0}), 8) == []
    larger = line({32: 30.0, 64: 49.0, 96: 50.0, 128: 70.0})
    assert refined(CONV, larger, 8) != []


def test_no_width_between_two_steps_is_asked_for() -> None:
    assert refined(CONV, line({8: 8, 16: 100, 24: 24}), 8) == []


def test_a_jump_of_a_depthwise_layer_is_looked_at() -> None:
    # All points are (w, w): both widths go together, so no line has more than one of them.
    known = {(w, w): us for w, us in {32: 32.0, 64: 64.0, 96: 200.0, 128: 232.0}.items()}
    assert set(refined(DEPTHWISE, known, 8)) == {(48, 48), (80, 80), (112, 112)}


def test_between_whole_groups_there_are_whole_groups() -> None:
    spec = LayerSpec("grouped", (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), (14, 14), group_width=12)
    known = {(w, 2 * w): us for w, us in {24: 24.0, 120: 120.0, 216: 500.0, 312: 596.0}.items()}
    found = refined(spec, known, 8)
    assert found
    assert all(inside % 24 == 0 and outside == 2 * inside for inside, outside in found)
