"""A picture of a network in which coupled channels have one colour, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as Xml

from prune2deploy.channels import Graph
from prune2deploy.errors import ExportError
from prune2deploy.export.onnx import write_whole
from prune2deploy.report import lanes
from prune2deploy.report.groups import compact
from prune2deploy.report.lanes import Column, Key, Lane
from prune2deploy.report.network import Layer, Network
from prune2deploy.report.numbers import count_text
from prune2deploy.report.palette import FROZEN, Style, group_styles, ink, tint
from prune2deploy.report.svg import (
    CHARACTER,
    GREY,
    SANS,
    add_paragraph,
    add_shape,
    add_text,
    add_title,
    clean,
    short,
)

SUFFIX = ".svg"

_MARGIN = 24.0
_CHIP = 26.0
_NAME, _SMALL, _TINY = 10.5, 9.5, 7.5
_HOW_TO_READ = (
    "Layers from top to bottom in the order in which they run. Each group of channels that can "
    "only be cut together has a number, a colour and a lane: ● a layer produces it, ○ a layer "
    "reads it. Thick lanes and tinted boxes: several layers share the group. Grey: frozen, a "
    "letter gives the reason. Dashes tell groups of one colour apart. Point at anything for its "
    "full name."
)


def write_picture(graph: Graph, path: Path) -> None:
    """Write the picture of a network and its groups as an SVG file, whole or not at all.

    Raises:
        ExportError: the name does not end in .svg, or the file cannot be written.
    """
    if path.suffix.lower() != SUFFIX:
        raise ExportError(
            f"A picture of a network is an SVG file, found '{path.name}'. Name a file that ends "
            f"in {SUFFIX}, such as '{path.stem}{SUFFIX}'; any browser shows it."
        )
    write_whole(path, picture(graph).encode())


def picture(graph: Graph) -> str:
    """The picture as the text of an SVG document."""
    return _Drawing(graph).document()


@dataclass(frozen=True)
class _Reason:
    """Why channels stay, the letter that stands for it, and the layers with their channels."""

    letter: str
    text: str
    layers: list[tuple[str, int]]


class _Drawing:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.network = Network(graph)
        self.styles = group_styles(self.network.coupled)
        self.columns = lanes.arrange(self.network.layers, self.network.coupled)
        self.reasons = _lettered(self.network.layers)
        self.names = {layer.name for layer in self.network.layers}
        right = self.columns[-1].right if self.columns else 0.0
        self.width = max(right, 640.0)  # without the margins

    def document(self) -> str:
        root = Xml.Element("svg", xmlns="http://www.w3.org/2000/svg")
        background = add_shape(root, "rect", fill="#FFFFFF")
        y = self._head(root)
        for column in self.columns:
            self._column(root, column, y)
        y += max((column.height for column in self.columns), default=0.0)
        width, height = short(self.width + 2 * _MARGIN), short(self._foot(root, y) + _MARGIN)
        for element in (root, background):
            element.set("width", width)
            element.set("height", height)
        root.set("viewBox", f"0 0 {width} {height}")
        Xml.indent(root, " ")
        return Xml.tostring(root, encoding="unicode") + "\n"

    # Above: what is shown, and how to read it.

    def _head(self, root: Xml.Element) -> float:
        graph = self.graph
        free, channels = self.network.channels()
        groups = f"{len(graph.groups)} group{'' if len(graph.groups) == 1 else 's'}"
        title = f"{type(graph.model).__name__}: {groups} of coupled channels"
        add_text(root, _MARGIN, 38, title, 18, weight="bold", family=SANS)
        share = f"{free / channels:.1%}" if channels else "none"
        facts = (
            f"{share} of the output channels can be cut ({free:,} of {channels:,}); "
            f"{count_text(graph.cost.params(graph.full))} parameters, "
            f"{count_text(graph.cost.macs(graph.full))} MACs"
        )
        y = add_paragraph(root, _MARGIN, 58, facts, self.width)
        return add_paragraph(root, _MARGIN, y + 4, _HOW_TO_READ, self.width, GREY)

    # The network.

    def _column(self, root: Xml.Element, column: Column, y: float) -> None:
        place = f"translate({short(_MARGIN + column.left)} {short(y)})"
        frame = add_shape(root, "g", transform=place)
        for lane in column.lanes:
            self._lane(frame, lane)
        self._signposts(frame, column)
        at = {lane.key: lane.x for lane in column.lanes}
        for number, top in zip(column.layers, column.tops, strict=True):
            layer = self.network.layers[number]
            self._reads(frame, layer, top + lanes.READ, at)
            self._writes(frame, layer, top + lanes.WRITE, at)
            self._box(frame, layer, top)

    def _style(self, key: Key) -> Style:
        return self.styles[key] if isinstance(key, int) else Style(FROZEN)

    def _thickness(self, key: Key) -> float:
        return 4.5 if isinstance(key, int) and self.network.coupled[key] else 2.0

    def _lane(self, frame: Xml.Element, lane: Lane) -> None:
        style, x = self._style(lane.key), -lane.x
        line = add_shape(
            frame,
            "line",
            x1=x,
            x2=x,
            y1=lane.top,
            y2=lane.bottom,
            stroke=style.colour,
            stroke_width=self._thickness(lane.key),
            stroke_dasharray=style.dash,
        )
        add_title(line, self._told(lane.key))

    def _signposts(self, frame: Xml.Element, column: Column) -> None:
        """Numbers of the groups whose lanes come from another column or go on in one."""
        for enters in (True, False):
            ends = [x for x in column.lanes if (x.enters if enters else x.leaves)]
            for turn, lane in enumerate(sorted(ends, key=lambda lane: lane.x)):
                # In two heights, as numbers are wider than lanes.
                y = lane.top - 3 - 8 * (turn % 2) if enters else lane.bottom + 9 + 8 * (turn % 2)
                label = f"{lane.key + 1}" if isinstance(lane.key, int) else ""
                add_text(frame, -lane.x, y, label, _TINY, GREY, anchor="middle")

    def _reads(self, frame: Xml.Element, layer: Layer, y: float, at: dict[Key, float]) -> None:
        reads = [key for key in lanes.sources(layer, self.names) if key in at]
        if not reads:
            return
        one = reads[0] if len(reads) == 1 else None
        colour = GREY if one is None else self._style(one).colour
        far = max(at[key] for key in reads)
        add_shape(frame, "line", x1=-far, x2=-5, y1=y, y2=y, stroke=colour, stroke_width=1.3)
        arrow = f"M-7 {short(y - 3.5)}L0 {short(y)}L-7 {short(y + 3.5)}Z"
        add_shape(frame, "path", d=arrow, fill=colour)
        label = f"{one + 1}" if isinstance(one, int) else "" if one else f"{len(reads)}×"
        add_text(frame, -9, y - 3, label, _TINY, GREY, anchor="end")
        for key in reads:
            ring = add_shape(
                frame,
                "circle",
                cx=-at[key],
                cy=y,
                r=3.2,
                fill="#FFFFFF",
                stroke=self._style(key).colour,
                stroke_width=1.8,
            )
            add_title(ring, f"{layer.name} reads {self._told(key)}")

    def _writes(self, frame: Xml.Element, layer: Layer, y: float, at: dict[Key, float]) -> None:
        for key in lanes.targets(layer):
            if key not in at:
                continue  # frozen, and read by nobody under this layer's name
            colour, x = self._style(key).colour, -at[key]
            thickness = max(2.0, self._thickness(key) - 1.5)
            add_shape(frame, "line", x1=x, x2=0, y1=y, y2=y, stroke=colour, stroke_width=thickness)
            dot = add_shape(frame, "circle", cx=x, cy=y, r=4.2, fill=colour)
            add_title(dot, f"{layer.name} produces {self._told(key)}")

    def _box(self, frame: Xml.Element, layer: Layer, top: float) -> None:
        coupled = any(self.network.coupled[number] for number in layer.groups)
        style = self.styles[layer.groups[0]] if layer.groups else Style(FROZEN)
        box = add_shape(frame, "g", transform=f"translate(0 {short(top)})")
        box.set("class", "layer")
        box.set("data-layer", clean(layer.name))
        box.set("data-groups", " ".join(str(number + 1) for number in layer.groups))
        add_title(box, self._tooltip(layer))
        add_shape(
            box,
            "rect",
            width=lanes.BOX_WIDTH,
            height=lanes.BOX_HEIGHT,
            rx=4,
            fill=tint(style.colour, 0.16) if coupled else "#FFFFFF" if layer.groups else "#EFEFEF",
            stroke=style.colour,
            stroke_width=2.2 if coupled else 1.4,
            stroke_dasharray=style.dash,
        )
        self._words(box, layer, self._chips(box, layer) + 6)

    def _chips(self, box: Xml.Element, layer: Layer) -> float:
        """Coloured fields with the numbers of the groups, or the letters of the reasons."""
        chips = [(f"{number + 1}", self.styles[number].colour) for number in layer.groups]
        if layer.parts[None]:
            letters = "".join(r.letter for r in self.reasons if r.text in layer.reasons)
            chips.append((letters, FROZEN))
        if len(chips) > 3:
            chips = [*chips[:2], (f"+{len(chips) - 2}", GREY)]
        for place, (label, colour) in enumerate(chips):
            _chip(box, place * _CHIP, 0, lanes.BOX_HEIGHT, label, colour)
        return len(chips) * _CHIP

    def _words(self, box: Xml.Element, layer: Layer, left: float) -> None:
        room = lanes.BOX_WIDTH - left - 6
        name = _last(layer.name, int(room / (_NAME * CHARACTER)))
        add_text(box, left, 14, name, _NAME, weight="bold")
        widths = f"{layer.inputs} → {layer.outputs}"
        add_text(box, lanes.BOX_WIDTH - 6, 27.5, widths, _SMALL, anchor="end")
        often = "not in eval: " if not layer.calls else f"{layer.calls} times "
        text = " + ".join([layer.kind, *map(self._short_name, layer.beside)])
        space = int(room / (_SMALL * CHARACTER)) - len(widths) - 2
        text = _first(text if layer.calls == 1 else often + text, space)
        add_text(box, left, 27.5, text, _SMALL, GREY)

    def _short_name(self, name: str) -> str:
        """'bn1'; for a number, which says nothing, what it is: 'norm'."""
        leaf = name.rpartition(".")[2]
        if not leaf.isdigit():
            return leaf
        kind = type(self.graph.model.get_submodule(name)).__name__
        return "norm" if "Norm" in kind else kind

    def _tooltip(self, layer: Layer) -> str:
        lines = [layer.name, f"{layer.kind}, {layer.inputs} → {layer.outputs} channels"]
        lines += [f"with {', '.join(layer.beside)}"] if layer.beside else []
        lines += [f"{layer.parts[number]} in {self._told(number)}" for number in layer.groups]
        if layer.parts[None]:
            lines.append(f"{layer.parts[None]} frozen: {'; '.join(layer.reasons)}")
        if layer.reads:
            lines.append(f"reads group {', '.join(str(n + 1) for n in sorted(layer.reads))}")
        if layer.reads_frozen:
            lines.append(f"reads frozen channels of {', '.join(sorted(layer.reads_frozen))}")
        return "\n".join(lines)

    def _told(self, key: Key) -> str:
        if isinstance(key, str):
            return f"frozen channels of {key}"
        name, size = self.graph.groups[key].name, self.network.size_text(key)
        return f"group {key + 1} ({name}, {size} channels)"

    # Below: what couples several layers, and what stays.

    def _foot(self, root: Xml.Element, y: float) -> float:
        coupled = [number for number, several in enumerate(self.network.coupled) if several]
        members = [(f"{n + 1}", self.styles[n].colour, self._members(n)) for n in coupled]
        stay = [(r.letter, FROZEN, f"{r.text}: {compact(r.layers)}") for r in self.reasons]
        y = self._section(root, y + 26, "Groups that couple several layers", members)
        y = self._section(root, y + 26, "Frozen, because", stay)
        for name, times in self.graph.unknown_ops.items():
            text = f"No rule for {name} (met {times} times): what goes in is frozen."
            y = add_paragraph(root, _MARGIN, y + 18, text, self.width)
        return y

    def _members(self, number: int, most: int = 8) -> str:
        names = [layer.name for layer in self.network.producers[number]]
        more = f" and {len(names) - most} more" if len(names) > most else ""
        return f"{self.network.size_text(number)} channels: {', '.join(names[:most])}{more}"

    def _section(
        self, root: Xml.Element, y: float, heading: str, rows: Sequence[tuple[str, str, str]]
    ) -> float:
        """A heading and (label, colour, text) rows, in columns where there is room."""
        if not rows:
            return y - 26
        add_text(root, _MARGIN, y, heading, 13, weight="bold", family=SANS)
        columns = min(max(1, int(self.width // 600)), len(rows))
        width, length = self.width / columns, -(-len(rows) // columns)
        bottom = y
        for start in range(0, len(rows), length):
            x, at = _MARGIN + width * (start // length), y + 20
            for label, colour, text in rows[start : start + length]:
                _chip(root, x, at - 12, 15, label, colour)
                at = add_paragraph(root, x + _CHIP + 8, at, text, width - _CHIP - 20) + 4
            bottom = max(bottom, at)
        return bottom


def _chip(parent: Xml.Element, x: float, y: float, height: float, label: str, colour: str) -> None:
    add_shape(parent, "rect", x=x, y=y, width=_CHIP, height=height, rx=3, fill=colour)
    size = 11 if len(label) < 4 else 8.5
    baseline = y + height / 2 + 4
    add_text(
        parent, x + _CHIP / 2, baseline, label, size, ink(colour), weight="bold", anchor="middle"
    )


def _lettered(layers: Sequence[Layer]) -> list[_Reason]:
    found: dict[str, list[tuple[str, int]]] = {}
    for layer in layers:
        for reason in layer.reasons:
            found.setdefault(reason, []).append((layer.name, layer.parts[None]))
    return [_Reason(_letter(n), text, names) for n, (text, names) in enumerate(found.items())]


def _letter(number: int) -> str:
    """a … z, then a1 … z1, and so on."""
    turn, place = divmod(number, 26)
    return chr(ord("a") + place) + (str(turn) if turn else "")


def _last(name: str, room: int) -> str:
    return name if len(name) <= room else f"…{name[len(name) - room + 1 :]}"


def _first(text: str, room: int) -> str:
    return text if len(text) <= room else f"{text[: max(room - 1, 1)].rstrip(' +')}…"
