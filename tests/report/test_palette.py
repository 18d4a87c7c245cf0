"""Colours that everybody can tell apart."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest

from prune2deploy.report.palette import COLOURS, DASHES, group_styles, ink, tint

Colour = npt.NDArray[np.float64]

# Machado, Oliveira, Fernandes 2009, severity 1, on linear RGB.
SEEN_BY = {
    "all cones": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}


def linear(colour: str) -> Colour:
    c = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb: Colour) -> Colour:
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.array(to_xyz) @ np.clip(rgb, 0, 1) / [0.9505, 1, 1.089]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def luminance(colour: str) -> float:
    return float(linear(colour) @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("eye", SEEN_BY)
def test_colours_stay_apart_for_every_eye(eye: str) -> None:
    seen = [lab(SEEN_BY[eye] @ linear(colour)) for colour in COLOURS]
    # Two is what a trained eye can just tell apart side by side.
    assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) > 15


@pytest.mark.parametrize("colour", COLOURS)
def test_colours_show_on_white_and_black_and_their_text_on_them(colour: str) -> None:
    own = luminance(colour)
    assert 1.05 / (own + 0.05) > 2
    assert (own + 0.05) / 0.05 > 3
    text = luminance(ink(colour))
    light, dark = max(own, text), min(own, text)
    assert (light + 0.05) / (dark + 0.05) > 4.5


def test_coupled_groups_get_the_plain_colours() -> None:
    styles = group_styles([False, True, False, True])
    assert [style.colour for style in styles] == [COLOURS[2], COLOURS[0], COLOURS[3], COLOURS[1]]


def test_styles_repeat_only_when_all_are_used() -> None:
    count = len(COLOURS) * len(DASHES)
    styles = group_styles([False] * (count + 1))
    assert len(set(styles[:count])) == count
    assert styles[count] == styles[0]


def test_a_tint_lies_between_white_and_the_colour() -> None:
    assert tint("#336699", 0) == "#FFFFFF"
    assert tint("#336699", 1) == "#336699"
    assert tint("#00FF80", 0.5) == "#80FFC0"
