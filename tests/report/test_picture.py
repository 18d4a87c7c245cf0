"""The picture: read back as XML, it shows every layer with the group it belongs to."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest
import torch
from networks import Net
from torch import nn

from prune2deploy.channels import Graph, trace
from prune2deploy.errors import ExportError
from prune2deploy.report import write_picture
from prune2deploy.report.lanes import BOX_HEIGHT, arrange
from prune2deploy.report.network import Network
from prune2deploy.report.palette import FROZEN
from prune2deploy.report.picture import picture

SVG = "{http://www.w3.org/2000/svg}"


def residual(**names: str) -> Graph:
    """stem and second add up; first lies between; head makes the output."""
    stem, first, second, head = (names.get(n, n) for n in ("stem", "first", "second", "head"))

    def run(n: nn.Module, x: torch.Tensor) -> torch.Tensor:
        part = n.get_submodule
        y = part(stem)(x)
        y = y + part(second)(part(first)(y).relu())
        return part(head)(y.mean((2, 3)))

    parts = {
        stem: nn.Conv2d(3, 8, 3, padding=1),
        first: nn.Conv2d(8, 6, 3, padding=1),
        second: nn.Conv2d(6, 8, 1),
        head: nn.Linear(8, 4),
    }
    return trace(Net(run, **parts), torch.randn(1, 3, 8, 8))


def boxes(text: str) -> dict[str, Xml.Element]:
    root = Xml.fromstring(text)
    found = [g for g in root.iter(f"{SVG}g") if g.get("class") == "layer"]
    return {g.get("data-layer", ""): g for g in found}


def chip(box: Xml.Element) -> tuple[str | None, str | None]:
    """The sign on the coloured field, and its colour."""
    _, field = box.findall(f"{SVG}rect")
    return box.findall(f"{SVG}text")[0].text, field.get("fill")


def title(box: Xml.Element) -> str:
    return box.findtext(f"{SVG}title") or ""


def test_every_layer_has_a_box_in_the_order_in_which_it_runs() -> None:
    assert list(boxes(picture(residual()))) == ["stem", "first", "second", "head"]


def test_coupled_layers_share_number_and_colour_and_others_do_not() -> None:
    found = {name: chip(box) for name, box in boxes(picture(residual())).items()}
    assert found["stem"] == found["second"]
    assert found["stem"][0] == "1"
    assert found["first"][0] == "2"
    assert len({colour for _, colour in found.values()}) == 3
    assert found["head"] == ("a", FROZEN)


def test_only_boxes_of_coupled_groups_are_tinted() -> None:
    fills = {
        name: box.findall(f"{SVG}rect")[0].get("fill")
        for name, box in boxes(picture(residual())).items()
    }
    assert fills["first"] == "#FFFFFF"
    assert fills["stem"] == fills["second"] not in ("#FFFFFF", fills["head"])


def test_a_frozen_layer_carries_its_reason_in_the_title_and_below() -> None:
    text = picture(residual())
    assert "4 frozen: reaches the model's output" in title(boxes(text)["head"])
    lines = [element.text for element in Xml.fromstring(text).findall(f"{SVG}text")]
    assert "reaches the model's output: head (4)" in lines


def test_boxes_show_channels_and_titles_say_who_reads_what() -> None:
    found = boxes(picture(residual()))
    texts = [element.text for element in found["second"].findall(f"{SVG}text")]
    assert texts == ["1", "second", "6 → 8", "1×1"]
    assert title(found["second"]).splitlines() == [
        "second",
        "1×1, 6 → 8 channels",
        "8 in group 1 (stem, 8 channels)",
        "reads group 2",
    ]


def test_each_read_and_each_production_is_marked_on_a_lane() -> None:
    marks = [title(circle) for circle in Xml.fromstring(picture(residual())).iter(f"{SVG}circle")]
    one, two = "group 1 (stem, 8 channels)", "group 2 (first, 6 channels)"
    assert sorted(marks) == sorted(
        [
            f"stem produces {one}",
            f"first reads {one}",
            f"first produces {two}",
            f"second reads {two}",
            f"second produces {one}",
            f"head reads {one}",
        ]
    )


def test_names_are_escaped_and_control_characters_replaced() -> None:
    text = picture(residual(stem="<b>&'\"", head="\x1b[31mred"))
    assert "<b>&'" not in text
    assert list(boxes(text)) == ["<b>&'\"", "first", "second", "�[31mred"]


def test_a_long_name_is_shortened_in_the_box_and_whole_in_the_title() -> None:
    name = "a_module_of_the_network_with_a_name_longer_than_any_box"
    box = boxes(picture(residual(first=name)))[name]
    shown = box.findall(f"{SVG}text")[1].text or ""
    assert shown.startswith("…")
    assert name.endswith(shown[1:])
    assert title(box).startswith(name)


def test_an_operator_without_a_rule_is_named() -> None:
    text = picture(replace(residual(), unknown_ops={"aten.strange": 2}))
    assert "No rule for aten.strange (met 2 times)" in text


def test_a_network_without_layers_is_an_empty_picture() -> None:
    text = picture(trace(Net(lambda n, x: x.relu()), torch.randn(2, 4)))
    assert boxes(text) == {}
    assert "0 groups of coupled channels" in text


def test_one_group_of_one_layer_is_drawn() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    text = picture(trace(net, torch.randn(2, 4)))
    assert "1 group of coupled channels" in text
    assert list(boxes(text)) == ["0", "2"]


def deep(blocks: int) -> Graph:
    def run(n: nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = n.get_submodule("stem")(x)
        for number in range(blocks):
            inner = n.get_submodule(f"blocks.{number}")
            x = x + inner(x)
        return n.get_submodule("head")(x)

    inner = [nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 8)) for _ in range(blocks)]
    parts = {"stem": nn.Linear(4, 8), "blocks": nn.ModuleList(inner), "head": nn.Linear(8, 2)}
    return trace(Net(run, **parts), torch.randn(2, 4))


def test_two_hundred_layers_make_a_page_and_no_ribbon() -> None:
    graph = deep(99)
    root = Xml.fromstring(picture(graph))
    width, height = float(root.get("width", "")), float(root.get("height", ""))
    assert len(boxes(picture(graph))) == 200
    assert 0.6 < width / height < 2.5
    # Every box takes its own space, and nothing stands outside of the page.
    spots = []
    for column in root.findall(f"{SVG}g"):
        left, top = map(float, re.findall(r"[-\d.]+", column.get("transform", "")))
        for box in column.findall(f"{SVG}g"):
            _, y = map(float, re.findall(r"[-\d.]+", box.get("transform", "")))
            spots.append((left, top + y))
    assert len(spots) == 200
    assert all(0 < x < width - 280 and 0 < y < height - BOX_HEIGHT for x, y in spots)
    by_column: dict[float, list[float]] = {}
    for x, y in spots:
        by_column.setdefault(x, []).append(y)
    for tops in by_column.values():
        assert all(b - a > BOX_HEIGHT for a, b in pairwise(tops))


def test_lanes_that_are_alive_together_never_share_a_place() -> None:
    network = Network(deep(40))
    columns = arrange(network.layers, network.coupled)
    assert sum(len(column.layers) for column in columns) == len(network.layers)
    for column in columns:
        for lane in column.lanes:
            assert lane.top <= lane.bottom
            for other in column.lanes:
                if other is not lane and other.x == lane.x:
                    assert other.top > lane.bottom or other.bottom < lane.top


def test_a_lane_that_leaves_a_column_enters_the_next_one() -> None:
    network = Network(deep(40))
    columns = arrange(network.layers, network.coupled)
    assert len(columns) > 1
    leaving = [{lane.key for lane in column.lanes if lane.leaves} for column in columns]
    entering = [{lane.key for lane in column.lanes if lane.enters} for column in columns]
    assert leaving[:-1] == entering[1:]
    assert leaving[-1] == entering[0] == set()


def test_the_file_is_written_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "net.svg"
    path.write_text("old")
    graph = residual()
    write_picture(graph, path)
    assert path.read_text(encoding="utf-8") == picture(graph)
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.svg"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(ExportError, match=r"net\.svg .*cannot be written: No space left"):
        write_picture(residual(), path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ExportError, match=r"net\.svg .*cannot be written"):
        write_picture(residual(), tmp_path / "file" / "net.svg")


@pytest.mark.parametrize("name", ["net.png", "net.pdf", "net"])
def test_another_kind_of_file_is_refused_before_anything_is_written(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(ExportError, match=rf"found '{name}'.*ends in \.svg, such as 'net\.svg'"):
        write_picture(residual(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []
