"""The groups on a terminal: whole names, the same reason once, no flood."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import torch
from networks import Net
from rich.console import Console
from torch import nn

from prune2deploy.channels import Graph, trace
from prune2deploy.report import groups_table
from prune2deploy.report.groups import compact, fold, pattern
from prune2deploy.report.palette import COLOURS


def shown(graph: Graph, width: int = 240, every: bool = False, **options: object) -> str:
    console = Console(width=width, file=io.StringIO(), highlight=False, **options)  # type: ignore[arg-type]
    console.print(groups_table(graph, every), markup=False)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def rows(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip().startswith("■")]


@pytest.fixture
def small() -> Graph:
    net = Net(
        lambda n, x: n.head((n.stem(x) + n.second(n.first(n.stem(x)).relu())).mean((2, 3))),
        stem=nn.Conv2d(3, 8, 3, padding=1),
        first=nn.Conv2d(8, 6, 3, padding=1),
        second=nn.Conv2d(6, 8, 1),
        head=nn.Linear(8, 4),
    )
    return trace(net, torch.randn(1, 3, 8, 8))


def chain(length: int) -> Graph:
    """Blocks of two layers, so that names differ in a number inside."""
    blocks = [nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)) for _ in range(length)]
    return trace(nn.Sequential(*blocks), torch.randn(2, 6))


def test_the_first_lines_say_how_much_can_be_cut(small: Graph) -> None:
    text = " ".join(shown(small).split("\n\n")[0].split())
    # stem 224 + first 438 + second 56 + head 36 parameters; stem runs twice, on 64 pixels.
    assert text == (
        "Net: 754 parameters, 58.40 k MACs 84.6% of the output channels can be cut: 22 of 26, in "
        "2 groups. Their layers hold 95.2% of the parameters and 99.9% of the MACs."
    )


def test_a_row_has_name_channels_costs_and_what_goes_with_it(small: Graph) -> None:
    stem, first = rows(shown(small))
    # All of stem: its 224, 8 × 6 × 9 of first, 48 + 8 of second, 32 of head.
    assert stem.split()[:4] == ["■", "1", "stem", "8"]
    assert "744" in stem
    assert stem.endswith("second, read by 2 layers")
    assert first.split()[:4] == ["■", "2", "first", "6"]
    assert first.endswith("read by second")


def test_a_reason_is_told_once_with_its_layers() -> None:
    net = Net(
        lambda n, x: [layer(x) for layer in n.heads],
        heads=nn.ModuleList(nn.Linear(3, 5) for _ in range(9)),
    )
    text = shown(trace(net, torch.randn(2, 3)))
    assert text.count("reaches the model's output") == 1
    assert "0.0% of the output channels can be cut: 0 of 45, in 0 groups" in text
    assert "heads.0 (5), heads.1 (5), heads.2 (5), heads.3 (5), 5 more" in text


def test_many_groups_that_are_alike_share_a_row() -> None:
    graph = chain(30)
    assert len(graph.groups) == 59
    few = rows(shown(graph))
    assert [row.split()[:4] for row in few] == [
        ["■■■", "30×", "*.0", "6"],
        ["■■■", "29×", "*.2", "6"],
    ]
    assert "--all lists each" in shown(graph)
    every = shown(graph, every=True)
    assert [row.split()[2] for row in rows(every)] == [group.name for group in graph.groups]
    assert "--all" not in every


def test_a_few_groups_have_a_row_each() -> None:
    assert len(rows(shown(chain(5)))) == 9


@pytest.mark.parametrize("width", [80, 100, 240])
def test_nothing_is_cut_off_at_any_width(width: int) -> None:
    module: nn.Module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4))
    for name in ("quite", "a_long_name_for_a_block", "inside_of_another_one"):
        module = Net(lambda n, x: next(n.children())(x), **{name: module})
    text = shown(trace(module, torch.randn(2, 4)), width)
    assert max(len(line) for line in text.splitlines()) <= width
    for part in ("inside_of_another_one.", "a_long_name_for_a_block.", "quite.0", "quite.2 (4)"):
        assert part in text
    assert "…" not in text


def test_the_mark_has_the_colour_of_the_picture_on_a_terminal_only(small: Graph) -> None:
    coloured = shown(small, force_terminal=True, color_system="truecolor")
    red, green, blue = (int(COLOURS[0][i : i + 2], 16) for i in (1, 3, 5))
    assert f"\x1b[38;2;{red};{green};{blue}m■" in coloured
    assert "\x1b" not in shown(small)


def test_an_operator_without_a_rule_is_named(small: Graph) -> None:
    text = shown(replace(small, unknown_ops={"aten.strange": 2}))
    assert "no rule for aten.strange (met 2 times): what goes in is frozen" in text


def test_square_brackets_in_names_are_no_markup() -> None:
    net = nn.Sequential()
    net.add_module("[red]a", nn.Linear(4, 6))
    net.add_module("b[/]", nn.Linear(6, 2))
    text = shown(trace(net, torch.randn(2, 4)))
    assert "[red]a" in text
    assert "b[/]" in text


def test_names_fold_behind_dots() -> None:
    assert fold("one.two.three, four", 8) == "one.two.\nthree, four"
    assert fold("short.name", 10) == "short.name"


def test_numbers_inside_a_name_become_stars() -> None:
    assert pattern("layer1.0.conv2") == "layer*.*.conv2"
    assert pattern("conv1") == "conv1"


def test_layers_that_are_alike_are_counted() -> None:
    layers = [("a.0.b", 8), ("a.1.b", 8), ("a.2.b", 4), ("c", 3)]
    assert compact(layers) == "a.*.b (2 × 8), a.2.b (4), c (3)"
    assert compact(layers, most=1) == "a.*.b (2 × 8), 2 more"
