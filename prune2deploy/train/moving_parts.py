"""What changes in a pruning method's hooks while they train: taken out, and put back.

A method keeps momenta, gates, generators and optimizers wherever it likes. They are found by
walking through its attributes; what belongs to the network itself, or cannot change (functions,
graphs, settings), is passed over. Putting back needs an object of the same structure: the
hooks attached anew to the same network. tests/train/test_resume.py does it with every method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor, nn

Changes = list[Callable[[], object]]
_PLAIN = (bool, int, float, str, type(None))
_OURS = "prune2deploy."
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_STRUCTURE = ("prune2deploy.channels.", "prune2deploy.recipe.")


class OtherStructureError(Exception):
    """The state is of hooks that are built otherwise, such as with networks made on the way."""


def take(hooks: Any, model: nn.Module) -> Any:
    """Return the state of the hooks, for `put_back`; the network's own tensors are not in it."""
    return _taken(hooks, {id(t) for t in _tensors(model)}, set())


def put_back(hooks: Any, model: nn.Module, state: Any) -> None:
    """Give hooks that are attached to `model` the state that others of their kind had.

    Raises:
        OtherStructureError: they differ by more than values; nothing was changed.
    """
    changes: Changes = []
    _put(hooks, state, {id(t) for t in _tensors(model)}, changes)
    for change in changes:
        change()


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _taken(value: Any, theirs: set[int], seen: set[int]) -> Any:
    """The state of one object as plain data: [kind, content], or None for what cannot change."""
    if isinstance(value, _PLAIN):
        return ["plain", value]
    if isinstance(value, (Tensor, np.ndarray)):
        return None if id(value) in theirs else ["tensor", value]
    if isinstance(value, (list, tuple)):
        return ["items", [_taken(one, theirs, seen) for one in value]]
    if id(value) in seen:
        return None
    seen.add(id(value))
    if isinstance(value, torch.Generator):
        return ["generator", value.get_state()]
    if isinstance(value, torch.optim.Optimizer):
        return ["optimizer", value.state_dict()]
    if isinstance(value, dict):
        return ["dict", {k: _taken(v, theirs, seen) for k, v in value.items() if _is_key(k)}]
    attributes = _attributes(value)
    if attributes is None:
        return None
    return ["object", {name: _taken(one, theirs, seen) for name, one in attributes.items()}]


def _is_key(key: Any) -> bool:
    return isinstance(key, _PLAIN)


def _attributes(value: Any) -> Mapping[str, Any] | None:
    """The attributes of an object that may change in a training, or None."""
    kind = type(value)
    module = kind.__module__ + "."
    if isinstance(value, (BaseModel, type)) or module.startswith(_STRUCTURE):
        return None
    if isinstance(value, nn.Module):
        held: dict[str, Any] = {**value._parameters, **value._buffers, **value._modules}
        own = vars(value) if module.startswith(_OURS) else {}
        return {**{k: v for k, v in own.items() if k not in _OF_EVERY_MODULE}, **held}
    if not module.startswith(_OURS) or not hasattr(value, "__dict__"):
        return None
    attributes: dict[str, Any] = vars(value)
    return attributes


def _put(value: Any, state: Any, theirs: set[int], changes: Changes) -> Any:
    """Return what takes the place of `value`, which is itself wherever that is possible.

    changes: gets what is to be done to objects that stay.
    """
    if state is None or id(value) in theirs:
        return value
    kind, content = state
    if kind == "plain":
        return content
    if kind == "tensor":
        return _put_tensor(value, content, changes)
    if kind == "items" and (value is None or isinstance(value, (list, tuple))):
        return _put_items(value, content, theirs, changes)
    if kind == "dict" and value is None:
        return {key: _put(None, one, theirs, changes) for key, one in content.items()}
    if kind == "generator" and isinstance(value, torch.Generator):
        changes.append(lambda: value.set_state(content))
    elif kind == "optimizer" and _same_parameters(value, content):
        changes.append(lambda: value.load_state_dict(content))
    elif kind == "dict" and isinstance(value, dict):
        gone = [key for key in value if _is_key(key) and key not in content]
        new = {key: _put(value.get(key), one, theirs, changes) for key, one in content.items()}
        changes.append(partial(_replace, value, gone, new))
    elif kind == "object" and _attributes(value) is not None:
        _put_attributes(value, content, theirs, changes)
    else:
        raise OtherStructureError(f"a {type(value).__name__} where a {kind} was")
    return value


def _replace(value: dict[Any, Any], gone: list[Any], new: dict[Any, Any]) -> None:
    for key in gone:
        del value[key]
    value.update(new)


def _same_parameters(value: Any, content: Any) -> bool:
    if not isinstance(value, torch.optim.Optimizer):
        return False
    sizes = [len(group["params"]) for group in value.param_groups]
    return sizes == [len(group["params"]) for group in content["param_groups"]]


def _put_tensor(value: Any, content: Any, changes: Changes) -> Any:
    if isinstance(value, Tensor) and value.shape == content.shape:
        # In place: optimizers and others may hold the same tensor.
        changes.append(lambda: value.detach().copy_(content))
        return value
    if isinstance(value, nn.Parameter):
        raise OtherStructureError(f"a parameter of shape {tuple(value.shape)}")
    return content


def _put_items(value: Any, content: Any, theirs: set[int], changes: Changes) -> Any:
    old = list(value or [])
    old += [None] * (len(content) - len(old))
    items = [_put(one, new, theirs, changes) for one, new in zip(old, content, strict=False)]
    if isinstance(value, list):
        changes.append(lambda: value.__setitem__(slice(None), items))
        return value
    return tuple(items)


def _put_attributes(value: Any, content: Any, theirs: set[int], changes: Changes) -> None:
    attributes = _attributes(value) or {}
    if not attributes.keys() <= content.keys():
        raise OtherStructureError(f"a {type(value).__name__} with other attributes")
    # Frozen dataclasses have no setattr of their own, and modules sort what they are given.
    give = setattr if isinstance(value, nn.Module) else object.__setattr__
    for name, one in content.items():
        old = attributes.get(name)
        new = _put(old, one, theirs, changes)
        if new is not old:
            changes.append(partial(give, value, name, new))
