"""Building an engine in a test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prune2deploy.probe.job import Refusal
from prune2deploy.probe.tensorrt_build import engine_for

Install = Callable[..., Any]


def engine(path: Path, precision: str = "fp32", **options: Any) -> dict[str, Any]:
    model = {"name": "small", "path": str(path)}
    options = {"folder": str(path.parent / "engines"), "precision": precision, **options}
    return engine_for(model, "tensorrt", options)


def refusal(path: Path, *arguments: Any, **options: Any) -> tuple[str, str]:
    with pytest.raises(Refusal) as caught:
        engine(path, *arguments, **options)
    return caught.value.facts["kind"], str(caught.value)
