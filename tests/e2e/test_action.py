"""The GitHub action: its inputs are described and safe, and its script does what it says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RECIPE = """
threads: 1
model: {source: "digits:convnet", input: [1, 8, 8]}
data: {source: digits, normalize: none}
pretrain: {epochs: 1, lr: 0.1, precision: fp32}
prune: {method: l1, budget: {macs: 0.5}}
profile: {min_time_s: 0.05, retries: 0}
gates: {max_size_mb: 9}
"""


def action() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())
    return document


def test_inputs_are_described_and_used() -> None:
    text = (ROOT / "action.yml").read_text()
    for name, given in action()["inputs"].items():
        assert given["description"].endswith("."), name
        assert given.get("required") or "default" in given
        assert f"inputs.{name} " in text


def test_no_input_becomes_a_part_of_a_script() -> None:
    for step in action()["runs"]["steps"]:
        assert "${{" not in step.get("run", "")


def test_the_example_uses_inputs_that_exist() -> None:
    workflow = yaml.safe_load((ROOT / "examples/github-workflow.yml").read_text())
    (step,) = (s for s in workflow["jobs"]["prune"]["steps"] if "with" in s)
    assert set(step["with"]) <= set(action()["inputs"])


@pytest.mark.slow
@pytest.mark.parametrize(("gate", "code"), [("9", 0), ("0.0001", 3)])
def test_its_script_runs(gate: str, code: int, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/prune2deploy"
    start = "from prune2deploy.cli import main; main()"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{start}" "$@"\n')
    program.chmod(0o755)
    (script,) = (s["run"] for s in action()["runs"]["steps"] if s.get("name") == "Run")
    environment = {
        **os.environ,
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "RECIPE": "r.yaml",
        "OUTPUT": "runs/ci",
        "SET": f"gates.max_size_mb={gate}\n\nname=$(touch owned)\n",
        "GITHUB_STEP_SUMMARY": str(tmp_path / "page.md"),
    }
    done = subprocess.run(
        ["bash", "-e", "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert not (tmp_path / "owned").exists()
    assert "max_size_mb" in (tmp_path / "page.md").read_text()
    assert "<testcase" in (tmp_path / "runs/ci/junit.xml").read_text()
    assert (tmp_path / "runs/ci-kept/stages/prune.json").exists()
