"""The catalogue is what the recipe knows of methods; it must tell the truth about them."""

from __future__ import annotations

from typing import Any

import pytest

from prune2deploy import methods
from prune2deploy.methods.catalog import METHODS, MethodInfo


def test_it_lists_the_methods_that_there_are() -> None:
    assert list(METHODS) == sorted(methods.METHODS)


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
def test_an_entry_agrees_with_its_implementation(method: MethodInfo) -> None:
    implementation: Any = method.load()
    for fact in ("name", "summary", "cost", "source", "needs_training", "needs_data"):
        assert getattr(method, fact) == getattr(implementation, fact)
    assert method.options.model_json_schema() == implementation.options.model_json_schema()
