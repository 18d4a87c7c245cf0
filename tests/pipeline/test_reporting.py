"""From the folder of a run to its page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_up_run import device, metrics, write_run, write_samples

from prune2deploy.errors import RecipeError
from prune2deploy.pipeline.reporting import read_run, write_comparison, write_report


def test_a_whole_folder(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", metrics(latency=[device()]))
    write_samples(folder, device())
    run = read_run(folder)
    assert run.absent == ()
    assert run.folder == "run"
    assert run.samples["local"]["original"] == [2.0] * 50
    assert run.measured == {"local": "2026-01-02T03:04:05+00:00"}
    assert [one.name for one in run.inputs] == ["x"]
    assert run.layers is not None
    # 3×3 kernels on 16×16 images without padding: 14×14 and 12×12 outputs.
    assert [(one.name, one.macs, one.params) for one in run.layers] == [
        ("a", (14 * 14 * 16 * 27, 14 * 14 * 8 * 27), (16 * 27, 8 * 27)),
        ("b", (12 * 12 * 8 * 16 * 9, 12 * 12 * 8 * 8 * 9), (8 * 16 * 9, 8 * 8 * 9)),
    ]


def test_the_page_is_written_again_from_the_folder_alone(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    assert write_report(folder) == folder / "report.html"
    first = (folder / "report.html").read_bytes()
    moved = folder.rename(tmp_path / "elsewhere").rename(tmp_path / "run")
    write_report(moved)
    assert (folder / "report.html").read_bytes() == first
    assert not list(folder.glob("*.tmp"))


def test_what_is_missing_or_damaged_is_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", metrics(latency=[device(), device("pi5")]))
    (folder / "pruned.onnx").write_bytes(b"no model")
    (folder / "recipe.yaml").unlink()
    (folder / "search.json").write_text("{}")
    write_samples(folder, device("pi5"), models=[{"name": "x", "sha256": "1"}])
    run = read_run(folder)
    told = "\n".join(run.absent)
    for piece in (
        "latency/local.json is not in the folder: the distribution of the times on local",
        "latency/pi5.json is damaged (ValueError: it is of other files than the run's)",
        "pruned.onnx is damaged (DecodeError",
        "recipe.yaml is not in the folder",
        "search.json is damaged (KeyError: 'cost')",
    ):
        assert piece in told
    assert len(run.absent) == 5
    assert run.layers is None
    page = write_report(folder).read_text()
    assert "recipe.yaml is not in the folder" in page
    assert "only medians are drawn" in page


def test_a_search_is_read_whatever_else_it_holds(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    record = {
        "schema_version": 7,
        "metric": "top1",
        "judged_on": "val",
        "images": 200,
        "cost": {"name": "latency", "unit": "ms", "device": "pi5"},
        "front": [{"number": 1, "accuracy": 80, "cost": 1.5, "start": "uniform", "more": 1}],
        "tried": [{"accuracy": 70, "cost": 2}],
    }
    (folder / "search.json").write_text(json.dumps(record))
    search = read_run(folder).search
    assert search is not None
    assert (search.axis, search.judged) == (
        "latency, ms on pi5",
        "Judged on 200 val images, untrained.",
    )
    assert [(one.accuracy, one.cost, one.told) for one in search.front] == [
        (80, 1.5, "1 (uniform)")
    ]
    assert search.original is None
    assert "Networks that the search tried" in write_report(folder).read_text()


def test_times_of_layers_count_only_if_they_are_of_the_runs_files(tmp_path: Path) -> None:
    files = {
        f"{name}.onnx": {"sha256": digest * 64, "bytes": 1}
        for name, digest in (("original", "a"), ("pruned", "b"))
    }
    folder = write_run(tmp_path / "run", metrics(files=files))
    (folder / "layers").mkdir()
    record = {
        "sha256": ["b" * 64, "a" * 64],
        "layers": [
            {"name": "conv", "operator": "Conv", "times": [{"median_ms": 1.0}, {"median_ms": 2.0}]},
            {"name": "gone", "operator": "Relu", "times": [None, {"median_ms": 0.5}]},
        ],
    }
    (folder / "layers" / "pi5.json").write_text(json.dumps(record))
    found = read_run(folder).layer_times["pi5"]
    assert [(one.name, one.ms) for one in found] == [("conv", (2.0, 1.0)), ("gone", (0.5, None))]
    assert "Time by layer on pi5" in write_report(folder).read_text()
    (folder / "layers" / "pi5.json").write_text(json.dumps({**record, "sha256": ["c", "d"]}))
    run = read_run(folder)
    assert run.layer_times == {}
    assert "layers/pi5.json is damaged (ValueError: it is of other files" in run.absent[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no folder of a finished run: it has no metrics.json"),
        ("{", "metrics.json is damaged: Expecting"),
        ('{"schema_version": 1}', "has schema version 1, and this version .* reads 2"),
        ("[]", "has schema version None"),
        ('{"schema_version": 2}', "metrics.json is damaged: name: Field required"),
    ],
)
def test_a_folder_that_gives_no_report(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(RecipeError, match=message):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"There is no folder .*nowhere"):
        write_report(tmp_path / "nowhere")


def test_runs_are_compared_and_nothing_foreign_is_overwritten(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name) for name in ("a", "b")]
    page = tmp_path / "out.html"
    assert write_comparison(folders, page) == page
    assert "2 runs compared" in page.read_text()
    write_comparison(folders, page)  # ours may be written again
    with pytest.raises(RecipeError, match="is named twice"):
        write_comparison([folders[0], tmp_path / "b" / ".." / "a"], page)
    with pytest.raises(RecipeError, match=r"ends in \.html, in a folder that exists"):
        write_comparison(folders, tmp_path / "out.txt")
    with pytest.raises(RecipeError, match=r"ends in \.html, in a folder that exists"):
        write_report(folders[0], tmp_path / "none" / "out.html")
    page.write_text("somebody's page")
    with pytest.raises(RecipeError, match="no page of prune2deploy"):
        write_comparison(folders, page)
    assert page.read_text() == "somebody's page"
