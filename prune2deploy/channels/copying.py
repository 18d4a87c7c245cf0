"""copy.deepcopy for modules, several times faster.

deepcopy looks at every attribute of every module as if it could be anything. Nearly all of
them are numbers, texts, kernel sizes, empty tables of hooks, and the tables of parameters and
submodules.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

from torch import nn

_PLAIN = (int, float, bool, str, type(None))
_OWN_WAYS = ("__deepcopy__", "__getstate__", "__reduce__", "__reduce_ex__", "__setstate__")
_USUAL = {name: getattr(nn.Module, name, None) for name in _OWN_WAYS}


def copied(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """What copy.deepcopy(model, memo) returns.

    Args:
        memo: what takes the place of objects, by their id, as for deepcopy.
    """
    if id(model) in memo:
        known: nn.Module = memo[id(model)]
        return known
    kind = type(model)
    if any(getattr(kind, name, None) is not usual for name, usual in _USUAL.items()):
        other: nn.Module = copy.deepcopy(model, memo)  # it says itself how it is copied
        return other
    twin = kind.__new__(kind)
    memo[id(model)] = twin
    twin.__dict__.update({name: _value(name, v, memo) for name, v in vars(model).items()})
    return twin


def _value(name: str, value: Any, memo: dict[int, Any]) -> Any:
    if type(value) in _PLAIN:
        return value
    if name == "_modules" and type(value) is dict and id(value) not in memo:
        return {key: None if child is None else copied(child, memo) for key, child in value.items()}
    kind = type(value)
    if id(value) not in memo:
        if kind in (dict, OrderedDict) and not value:
            return memo.setdefault(id(value), kind())
        if kind in (tuple, list, set) and all(type(entry) in _PLAIN for entry in value):
            # Kernel sizes and the like; a tuple of such entries is its own copy.
            return value if kind is tuple else memo.setdefault(id(value), kind(value))
    return copy.deepcopy(value, memo)
