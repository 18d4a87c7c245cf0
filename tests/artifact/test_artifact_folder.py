"""The artifact of a run: what is in it, and that it is the same for the same inputs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from prune2deploy.artifact import verify, write_artifact
from prune2deploy.artifact.manifest import read_manifest
from prune2deploy.data import open_data
from prune2deploy.export.parity import OnnxModel
from prune2deploy.pipeline import RunResult, run_recipe
from prune2deploy.recipe import load_recipe


def test_everything_is_there_and_in_the_manifest(dist: Path, finished: RunResult) -> None:
    manifest = read_manifest(dist)
    assert {p.name for p in dist.iterdir()} == {*manifest.files, "manifest.json"}
    assert {"model.onnx", "model.fp32.onnx", "labels.json", "example.py"} <= set(manifest.files)
    # The gates look at the last precision.
    assert manifest.precision == "int8"
    model = (finished.folder / "pruned.int8.onnx").read_bytes()
    assert (dist / "model.onnx").read_bytes() == model
    assert json.loads((dist / "labels.json").read_text()) == [str(n) for n in range(10)]
    measured = json.loads((dist / "measured.json").read_text())
    assert measured["latency"][0]["speedups"][0]["low"] > 0
    assert {gate["name"] for gate in measured["gates"]} == {"max_accuracy_drop", "max_size_mb"}


def test_nothing_tells_where_it_was_made(dist: Path, finished: RunResult) -> None:
    for path in dist.rglob("*.json"):
        assert str(finished.folder.parent) not in path.read_text(), path.name


def test_the_example_answers_as_we_do(dist: Path, tmp_path: Path) -> None:
    data = open_data("digits", input_shape=(1, 8, 8), normalize={"mean": [0.3], "std": [0.4]})
    images = data.loader("test", batch_size=4, limit=4)
    batch, _ = next(iter(images))
    with OnnxModel(dist / "model.onnx") as model:
        (scores,) = model.predict(batch).values()
    for number, image in enumerate(batch):
        pixels = ((image[0].numpy() * 0.4 + 0.3) * 255).round().astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "digit.png")
        done = subprocess.run(
            [sys.executable, dist / "example.py", tmp_path / "digit.png"],
            capture_output=True,
            text=True,
            check=True,
        )
        first = done.stdout.splitlines()[0]
        label, score = first.split(": ")
        assert int(label) == int(scores[number].argmax())
        assert float(score) == pytest.approx(float(scores[number].max()), abs=0.3)


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (33, 33), (64, 48)])
@pytest.mark.parametrize("resize", [None, 28])
def test_the_example_prepares_photographs_as_we_do(
    size: tuple[int, int], resize: int | None, tmp_path: Path
) -> None:
    """Without the model: what its session would be given."""
    from prune2deploy.data.transforms import to_input

    pixels = np.random.default_rng(1).integers(0, 255, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "photo.png")
    source = (Path(write_artifact.__code__.co_filename).parent / "example.txt").read_text()
    body = source.split("session = ")[0].replace("Path(__file__).parent", "here")
    rules = {"input_shape": [1, 3, 24, 20], "resize": resize, "mean": None, "std": None}
    (tmp_path / "preprocessing.json").write_text(json.dumps(rules))
    (tmp_path / "labels.json").write_text("null")
    scope = {"here": tmp_path}
    argv, sys.argv = sys.argv, ["example.py", str(tmp_path / "photo.png")]
    try:
        exec(body.replace("here = here\n", ""), scope)
    finally:
        sys.argv = argv
    ours = to_input(image, (3, 24, 20), resize).numpy().astype(np.float32) / 255
    np.testing.assert_allclose(scope["batch"][0], ours, atol=1e-6)  # type: ignore[index]


def test_the_same_inputs_give_the_same_bytes(finished: RunResult, tmp_path: Path) -> None:
    again = run_recipe(load_recipe(finished.folder / "recipe.yaml"), tmp_path / "run")
    first, second = (one.folder / "dist" / "parts" for one in (finished, again))
    for path in first.iterdir():
        if path.name not in ("manifest.json", "measured.json"):
            assert path.read_bytes() == (second / path.name).read_bytes(), path.name
    one, other = (read_manifest(folder).model_dump() for folder in (first, second))
    for document in (one, other):
        del document["files"]["measured.json"]
    assert one == other


def test_the_bill_of_materials_holds_its_schema(dist: Path) -> None:
    validation = pytest.importorskip("cyclonedx.validation.json")
    from cyclonedx.exception import MissingOptionalDependencyException
    from cyclonedx.schema import SchemaVersion

    text = (dist / "bom.cdx.json").read_text()
    try:
        problem = validation.JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    except MissingOptionalDependencyException:
        pytest.skip("needs cyclonedx-python-lib[json-validation]")
    assert problem is None
    bill = json.loads(text)
    model = bill["metadata"]["component"]
    assert model["type"] == "machine-learning-model"
    figures = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert {"after", "before", "int8"} == {one["slice"] for one in figures}


def test_samples_are_answered_alike_here(dist: Path) -> None:
    verdict = verify(dist, on=["local"])
    assert verdict.problems == ()
    held = load_file(dist / "samples.safetensors")
    assert held["input"].shape == (8, 1, 8, 8)
