"""The coverage document from findings made up here: what is wrong must show, also in part."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SOURCE = Path(__file__).parents[2] / "benchmarks" / "coverage_document.py"

RIGHT = {
    "model": "torchvision:good",
    "groups": 12,
    "channels": 5000,
    "cuttable_channels": 4000,
    "frozen": [{"reason": "reaches the model's output", "channels": 1000, "layers": ["fc"]}],
    "unknown_ops": {},
    "macs": [400, 100],
    "params": [100, 31],
    "runs": True,
    "trains": True,
    "compared_in": "float64",
    "mask_difference": 0.4,
    "difference": 1e-15,
    "equal": True,
}
WRONG = {
    **RIGHT,
    "model": "timm:bad",
    "frozen": [
        {
            "reason": "the model's code does not allow it: net.py:7 in F.forward, `a | b`: x",
            "channels": 64,
            "layers": ["stem"],
        }
    ],
    "unknown_ops": {"aten.flip": 2},
    "trains": False,
    "trains_error": {"type": "RuntimeError", "message": "no gradient\nfor fc", "traceback": []},
    "difference": 0.25,
    "equal": False,
}
# All that is known of a process that was ended while it traced.
ENDED = {
    "model": "timm:slow",
    "step": "trace",
    "error": {"type": "Timeout", "message": "not finished after 400 s", "traceback": []},
}


@pytest.fixture(scope="module")
def writer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("coverage_document", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lines(writer: ModuleType, models: list[dict[str, Any]]) -> list[str]:
    document = {
        "date": "2026-01-02",
        "command": "python benchmarks/coverage.py",
        "python": "3.11",
        "versions": {"torch": "9.9"},
        "budget": {"channels": 0.5},
        "tolerance": 1e-5,
        "float32_tolerance": 1e-3,
        "models": models,
    }
    text: str = writer.write_document(document)
    return text.splitlines()


def test_a_row_says_what_was_found(writer: ModuleType) -> None:
    text = lines(writer, [RIGHT])
    cells = "12 | 80 % | 25 % | 31 % | yes | yes | yes (norm) | – | 1000 output"
    assert f"| `good` | {cells} |" in text
    assert "| together | 1 | 1 | 1 | 1 | 1 | – | 80 % | 1 |" in text
    assert "## What does not work" not in text


def test_what_is_wrong_shows_in_the_row_the_sum_and_the_list(writer: ModuleType) -> None:
    text = lines(writer, [RIGHT, WRONG])
    cells = "12 | 80 % | 25 % | 31 % | yes | **no** | **no** | – | 64 code net.py:7"
    assert f"| `bad` | {cells} |" in text
    assert "| together | 2 | 2 | 2 | 1 | 1 | – | 80 % | 1 |" in text
    assert (
        "- `timm:bad`: wrong: trains, equal. RuntimeError: no gradient for fc; differs by 2.5e-01"
    ) in text
    assert "| `aten.flip` | 1 | bad |" in text
    assert any("`a \\| b`" in line for line in text), "a bar would end the table's cell"


def test_an_unfinished_model_is_a_row_and_a_failure(writer: ModuleType) -> None:
    text = lines(writer, [ENDED])
    cells = " | ".join(["–"] * 8)
    assert f"| `slow` | {cells} | failed in trace: not finished after 400 s |" in text
    assert "| together | 1 | 0 | 0 | 0 | 0 | – | – | 0 |" in text
    assert "- `timm:slow`: Timeout in trace. Timeout: not finished after 400 s" in text
