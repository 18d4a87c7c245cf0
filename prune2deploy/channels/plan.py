"""What stays: kept indices per dimension of every parameter and buffer that is cut."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prune2deploy.channels.groups import Group, IndexTable
from prune2deploy.channels.labels import NodeIds
from prune2deploy.errors import ModelError

FORMAT = 3
_READABLE = (2, FORMAT)  # without and with blocks


@dataclass(frozen=True)
class Choice:
    """How many channels of one group stay."""

    group: str
    channels: int
    kept: int


@dataclass(frozen=True)
class Follower:
    """A length that a module states in an attribute, and the channels that it counts.

    attribute: its name, or 'name[index]' for one entry of a list or tuple.
    channels: per counted entry the number of its channel over all groups, or FIXED.
    """

    module: str
    attribute: str
    channels: NodeIds


@dataclass(frozen=True)
class Plan:
    """Kept indices, ascending, per tensor name and dimension; dimensions not named stay whole.

    shapes: the shape of each named tensor before the cut, so that a plan is never
        applied to another model.
    attributes: lengths that the model's own modules state and that change with the cut:
        module, attribute (or 'attribute[index]' for an entry of a list), new value.
    blocks: modules that an identity stands for.
    choices: for people, per group how many channels stay.
    """

    keep: Mapping[str, Mapping[int, IndexTable]]
    shapes: Mapping[str, tuple[int, ...]]
    choices: tuple[Choice, ...] = ()
    notes: tuple[str, ...] = field(default=())
    attributes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    blocks: tuple[str, ...] = ()

    @property
    def removes_nothing(self) -> bool:
        """Whether the cut model would be the model."""
        return not self.keep and not self.blocks

    def new_shape(self, name: str) -> tuple[int, ...]:
        """Shape of a named tensor after the cut."""
        dims = self.keep[name]
        return tuple(len(dims[d]) if d in dims else n for d, n in enumerate(self.shapes[name]))

    def to_json(self) -> str:
        """The plan as a JSON document; `from_json` reads it back."""
        document = {
            "format": FORMAT,
            "shapes": {n: list(s) for n, s in self.shapes.items()},
            "keep": {
                n: {str(d): ids.tolist() for d, ids in dims.items()}
                for n, dims in self.keep.items()
            },
            "choices": [[c.group, c.channels, c.kept] for c in self.choices],
            "notes": list(self.notes),
            "attributes": {n: dict(a) for n, a in self.attributes.items()},
            "blocks": list(self.blocks),
        }
        return json.dumps(document)

    @staticmethod
    def from_json(text: str) -> Plan:
        """Read a plan.

        Raises:
            ModelError: the text is no plan, or its indices do not fit its shapes.
        """
        try:
            document = json.loads(text)
            if document["format"] not in _READABLE:
                raise ModelError(
                    f"The plan has format {document['format']}, expected {FORMAT}. "
                    "Use the version of prune2deploy that wrote it."
                )
            plan = _from_document(document)
        except (KeyError, TypeError, ValueError, AttributeError) as err:
            raise ModelError(
                f"This is not a plan of prune2deploy ({type(err).__name__}: {err}). "
                "Expected the plan.json that a run leaves beside its weights."
            ) from err
        for name, dims in plan.keep.items():
            shape = plan.shapes[name]
            for dim, ids in dims.items():
                if not 0 <= dim < len(shape) or not _are_indices(ids, shape[dim]):
                    raise ModelError(
                        f"The plan keeps impossible indices of dimension {dim} of '{name}', "
                        f"shape {shape}. The file is damaged; use an intact copy."
                    )
        return plan

    def then(self, second: Plan) -> Plan:
        """One plan for this cut followed by `second`, a plan for the model this one leaves.

        Raises:
            ModelError: `second` was made for a model of other shapes.
        """
        keep = {name: dict(dims) for name, dims in self.keep.items()}
        shapes = dict(self.shapes)
        for name, dims in second.keep.items():
            if name not in shapes:
                shapes[name] = second.shapes[name]
            elif self.new_shape(name) != second.shapes[name]:
                raise ModelError(
                    f"The second plan expects '{name}' with shape {second.shapes[name]}, the first "
                    f"leaves {self.new_shape(name)}. Make it for the model that the first leaves."
                )
            mine = keep.setdefault(name, {})
            for dim, ids in dims.items():
                mine[dim] = mine[dim][ids] if dim in mine else ids
        first = {c.group: c.channels for c in self.choices}
        later = {c.group: c for c in second.choices}
        choices = [
            Choice(c.group, c.channels, later[c.group].kept if c.group in later else c.kept)
            for c in self.choices
        ]
        choices += [c for name, c in later.items() if name not in first]
        attributes = {name: dict(values) for name, values in self.attributes.items()}
        for name, values in second.attributes.items():
            attributes.setdefault(name, {}).update(values)
        gone = self.blocks + second.blocks
        keep = {name: dims for name, dims in keep.items() if not _within(name, gone)}
        attributes = {name: values for name, values in attributes.items() if name not in gone}
        return Plan(
            keep,
            {name: shapes[name] for name in keep},
            tuple(choices),
            self.notes + second.notes,
            {name: a for name, a in attributes.items() if not _within(name, gone)},
            gone,
        )


def _within(name: str, modules: Sequence[str]) -> bool:
    """Whether a tensor or module is part of one of these modules."""
    return any(name.startswith(f"{module}.") for module in modules)


def _are_indices(ids: IndexTable, length: int) -> bool:
    """Whether these are ascending places in a dimension of this length, at least one."""
    if ids.ndim != 1 or not len(ids):
        return False
    return bool(ids[0] >= 0 and ids[-1] < length and (np.diff(ids) > 0).all())


def _from_document(document: Any) -> Plan:
    shapes = {str(n): tuple(int(x) for x in s) for n, s in document["shapes"].items()}
    keep = {
        str(n): {int(d): np.asarray(ids, dtype=np.int64) for d, ids in dims.items()}
        for n, dims in document["keep"].items()
    }
    if not keep.keys() <= shapes.keys():
        raise ValueError("a tensor has kept indices and no shape")
    choices = tuple(Choice(str(g), int(c), int(k)) for g, c, k in document["choices"])
    attributes = {
        str(n): {str(a): int(v) for a, v in values.items()}
        for n, values in document["attributes"].items()
    }
    notes = tuple(str(n) for n in document["notes"])
    blocks = tuple(str(n) for n in document.get("blocks", ()))
    return Plan(keep, shapes, choices, notes, attributes, blocks)


def plan_from_kept(
    groups: Sequence[Group],
    kept: Sequence[IndexTable],
    shapes: Mapping[str, tuple[int, ...]],
    notes: Sequence[str] = (),
    followers: Sequence[Follower] = (),
) -> Plan:
    """Turn kept channels per group (indices into the group) into a plan.

    shapes: of all parameters and buffers of the model.
    followers: lengths stated in attributes that follow.
    """
    removed: dict[tuple[str, int], list[IndexTable]] = {}
    for group, stay in zip(groups, kept, strict=True):
        gone = np.setdiff1d(np.arange(group.size), stay)
        if not len(gone):
            continue
        for slot in group.slots:
            removed.setdefault((slot.tensor, slot.dim), []).append(slot.index[gone].reshape(-1))
    keep: dict[str, dict[int, IndexTable]] = {}
    for (name, dim), pieces in removed.items():
        stays = np.ones(shapes[name][dim], dtype=np.bool_)
        stays[np.concatenate(pieces)] = False
        keep.setdefault(name, {})[dim] = np.flatnonzero(stays)
    choices = tuple(Choice(g.name, g.size, len(s)) for g, s in zip(groups, kept, strict=True))
    stays_channel = np.concatenate(
        [np.isin(np.arange(g.size), s) for g, s in zip(groups, kept, strict=True)]
        + [np.ones(1, dtype=np.bool_)]  # for FIXED
    )
    attributes: dict[str, dict[str, int]] = {}
    for follower in followers:
        length = int(stays_channel[follower.channels].sum())
        if length != len(follower.channels):
            attributes.setdefault(follower.module, {})[follower.attribute] = length
    return Plan(keep, {n: shapes[n] for n in keep}, choices, tuple(notes), attributes)
