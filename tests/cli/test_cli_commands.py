"""Each command parses, calls and prints; what it calls is a stand-in here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import Result

from prune2deploy.errors import BudgetError
from prune2deploy.recipe import Recipe, parse_recipe

Call = Callable[..., Result]
Room = Callable[..., None]


class Recorder:
    """Remembers how it was called, and answers what it was told to."""

    def __init__(self, answer: Any = None) -> None:
        self.answer = answer
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        self.calls.append((args, keywords))
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    @property
    def only(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        (call,) = self.calls
        return call


def pipeline(room: Room, runner: Recorder, **others: Any) -> None:
    """Put a stand-in in the place of the pipeline."""
    given = {"run_until": None, "outlook": None, "RunOptions": SimpleNamespace, **others}
    room("pipeline", run_recipe=runner, **given)


def finished(*, held: bool) -> SimpleNamespace:
    return SimpleNamespace(
        folder=Path("/runs/x"), metrics="the figures", gates_held=held, failures=[]
    )


@pytest.mark.parametrize(("held", "code"), [(True, 0), (False, 3)])
def test_run_prints_the_results_and_exits_by_the_gates(
    call: Call, room: Room, recipe: Path, held: bool, code: int
) -> None:
    runner = Recorder(finished(held=held))
    pipeline(room, runner)
    room("report", results_table=lambda metrics: f"table of {metrics}")
    result = call("run", recipe, "--set", "seed=7", "--set", "finetune={epochs: 1, lr: .1}")
    assert result.exit_code == code
    assert result.stdout == "table of the figures\nEverything is in /runs/x\n"
    (loaded, output, _), _ = runner.only
    assert isinstance(loaded, Recipe)
    assert loaded.seed == 7
    assert loaded.finetune is not None
    assert output is None


def test_run_says_what_could_not_be_measured_and_how_to_catch_up(
    call: Call, room: Room, recipe: Path
) -> None:
    outcome = finished(held=False)
    outcome.failures = [SimpleNamespace(message="pi5 is off"), SimpleNamespace(message="orin too")]
    outcome.measure_rest = "prune2deploy profile ..."
    pipeline(room, Recorder(outcome))
    room("report", results_table=lambda metrics: f"table of {metrics}")
    result = call("run", recipe)
    assert result.exit_code == 1
    assert result.stdout == "table of the figures\nEverything is in /runs/x\n"
    assert result.stderr.endswith(
        "error: pi5 is off\nerror: orin too\n"
        "All else is kept. Measure the rest with: prune2deploy profile ...\n"
    )


def test_run_takes_an_output_folder(call: Call, room: Room, recipe: Path) -> None:
    runner = Recorder(finished(held=True))
    pipeline(room, runner)
    room("report", results_table=str)
    call("run", recipe, "--output", "some/folder")
    assert runner.only[0][1] == Path("some/folder")


def test_an_interrupted_run_says_how_it_goes_on(call: Call, room: Room, recipe: Path) -> None:
    pipeline(room, Recorder(KeyboardInterrupt()))
    room("report", results_table=str)
    result = call("run", recipe)
    assert result.exit_code == 130
    said = "interrupted. What was finished is kept; the same command goes on from there."
    assert said in result.stderr
    assert result.stdout == ""


def test_run_can_stop_on_the_way(call: Call, room: Room, recipe: Path) -> None:
    until = Recorder(Path("/runs/x"))
    pipeline(room, Recorder(AssertionError()), run_until=until)
    room("report", results_table=str)
    result = call("run", recipe, "--until", "prune", "--from", "original")
    assert result.stdout == "Done until prune, in /runs/x\n"
    (_, stage, _, options), _ = until.only
    assert stage == "prune"
    assert options.start == "original"


def test_a_dry_run_only_tells(call: Call, room: Room, recipe: Path) -> None:
    stages = [
        SimpleNamespace(stage="pretrain", what="kept", reason="nothing changed", seconds=None),
        SimpleNamespace(stage="prune", what="run", reason="macs was 1 and is 2", seconds=65.0),
        SimpleNamespace(stage="export", what="run", reason="it depends on prune", seconds=None),
    ]
    told = Recorder((Path("/runs/x"), stages))
    pipeline(room, Recorder(AssertionError()), outlook=told)
    room("report", results_table=str)
    result = call("run", recipe, "--dry-run")
    rows = [line.split("  ") for line in result.stdout.splitlines()]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert ["pretrain", "kept", "nothing changed"] in cells
    assert ["prune", "run", "macs was 1 and is 2", "1 min 05 s"] in cells
    assert ["export", "run", "it depends on prune", "unknown"] in cells


def test_an_error_in_the_run_is_told_without_a_traceback(
    call: Call, room: Room, recipe: Path
) -> None:
    pipeline(room, Recorder(BudgetError("cannot reach 0.01 of the MACs")))
    room("report", results_table=str)
    result = call("run", recipe)
    assert result.exit_code == 1
    assert "error: cannot reach 0.01 of the MACs\n" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("command", ["run", "check"])
def test_a_slip_in_the_recipe_is_told_before_the_pipeline_is_imported(
    call: Call, room: Room, recipe: Path, command: str
) -> None:
    room("pipeline")  # importing anything from it would fail
    room("report")
    recipe.write_text(recipe.read_text() + "gate: {min_speedup: 2}\n")
    result = call(command, recipe, "--set", "seed=x")
    assert result.exit_code == 1
    assert result.stderr == (
        "Loading PyTorch ...\n"
        "error: 2 problems in the recipe\n"
        f"  {recipe}:5: gate: unknown key. Did you mean 'gates'?\n"
        "  --set seed: should be a valid integer, found 'x'\n"
    )


def test_a_missing_recipe_is_an_error_of_the_user(call: Call, tmp_path: Path) -> None:
    result = call("run", tmp_path / "none.yaml")
    assert result.exit_code == 1
    assert "no such recipe" in result.stderr


def test_check_prints_its_report(call: Call, room: Room, recipe: Path) -> None:
    checker = Recorder("the report")
    room("pipeline", check_recipe=checker)
    room("report", check_table=lambda report: f"table of {report}")
    result = call("check", recipe, "--set", "seed=3")
    assert (result.exit_code, result.stdout) == (0, "table of the report\n")
    assert checker.only[0][0].seed == 3


def test_inspect_passes_everything_on(call: Call, room: Room) -> None:
    inspector = Recorder("the graph")
    room("pipeline", inspect_model=inspector)
    room("report", groups_table=lambda graph, every: f"table of {graph}, every: {every}")
    result = call(
        *("inspect", "mine.py:build", "--input", "3x64x32", "--classes", "7"),
        *("--arg", "width=16", "--arg", "deep.er=no", "--checkpoint", "w.pt"),
    )
    assert (result.exit_code, result.stdout) == (0, "table of the graph, every: False\n")
    assert inspector.only == (
        ("mine.py:build",),
        {
            "args": {"width": 16, "deep": {"er": "no"}},
            "checkpoint": Path("w.pt"),
            "input_shape": (3, 64, 32),
            "num_classes": 7,
            "base_dir": Path.cwd(),
        },
    )


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        ("torchvision:resnet18", (3, 224, 224)),
        ("cifar:resnet20", (3, 32, 32)),
        ("digits:convnet", (1, 8, 8)),
    ],
)
def test_the_input_is_the_usual_one_of_the_model(
    call: Call, room: Room, model: str, shape: tuple[int, int, int]
) -> None:
    inspector = Recorder("")
    room("pipeline", inspect_model=inspector)
    room("report", groups_table=lambda graph, every: graph)
    call("inspect", model)
    assert inspector.only[1]["input_shape"] == shape


@pytest.mark.parametrize(
    "options",
    [
        ["--input", "3,224"],
        ["--input", "3,0,224"],
        ["--input", "a,b,c"],
        ["--arg", "width"],
        ["--arg", "w=[1"],
        ["--classes", "0"],
    ],
)
def test_options_that_make_no_sense_are_wrong_usage(call: Call, options: list[str]) -> None:
    result = call("inspect", "cifar:resnet20", *options)
    assert result.exit_code == 2
    assert options[0] in result.stderr


def test_export_builds_the_model_and_prints_the_difference(
    call: Call, room: Room, tmp_path: Path
) -> None:
    loader = Recorder("the network")
    exporter = Recorder(SimpleNamespace(samples=4, max_abs_diff=1.2e-6, max_rel_diff=3e-7))
    room("models", load_model=loader)
    room("export", export_model_file=exporter)
    path = tmp_path / "x.onnx"
    result = call("export", "cifar:resnet20", path, "--no-simplify", "--batch", "2")
    assert result.exit_code == 0
    assert f"Wrote {path}\n" in result.stdout
    assert "over 4 random inputs: 1.2e-06 absolute, 3e-07 relative" in result.stdout
    assert "No --checkpoint was named" in result.stdout
    assert loader.only[0] == ("cifar:resnet20", {})
    args, keywords = exporter.only
    assert args == ("the network", path)
    assert keywords == {
        "input_shape": (3, 32, 32),
        "batch": 2,
        "opset": None,
        "simplify": False,
        "tolerance": 1e-4,
    }


def test_export_says_nothing_of_random_weights_where_a_checkpoint_is_named(
    call: Call, room: Room, tmp_path: Path
) -> None:
    room("models", load_model=Recorder("the network"))
    room(
        "export",
        export_model_file=Recorder(SimpleNamespace(samples=4, max_abs_diff=0.0, max_rel_diff=0.0)),
    )
    weights = tmp_path / "w.safetensors"
    weights.touch()
    result = call("export", "cifar:resnet20", tmp_path / "x.onnx", "--checkpoint", weights)
    assert result.exit_code == 0
    assert "random ones" not in result.stdout


class FakeLatency:
    """The room `latency`, of which the devices in `finishing` come to an end."""

    def __init__(self, room: Room, *finishing: str, error: BaseException | None = None) -> None:
        self.finishing, self.error = finishing, error
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        room(
            "latency",
            profile_devices=self.measure,
            ProfileOptions=lambda **options: options,
            ProfileResult=SimpleNamespace,
            ResultFolder=lambda path, again, say: SimpleNamespace(path=path, again=again, say=say),
            format_result=lambda result: f"table of {result.device}",
        )

    def measure(self, *args: Any, finished: Callable[[Any], None], **keywords: Any) -> Any:
        self.calls.append((args, keywords))
        for name in self.finishing:
            finished(SimpleNamespace(device=name, attempts=1))
        if self.error is not None:
            raise self.error
        failed = [name for name in args[1] if name not in self.finishing]
        return SimpleNamespace(
            failures=[SimpleNamespace(message=f"{name} is off") for name in failed]
        )


def test_profile_hands_over_the_files_and_options(call: Call, room: Room) -> None:
    latency = FakeLatency(room, "local")
    result = call(
        *("profile", "a.onnx", "b.onnx", "--threads", "2", "--cores", "3,5", "--batch", "4"),
        *("--min-time", "1.5", "--retries", "2"),
    )
    assert (result.exit_code, result.stdout) == (0, "table of local\n")
    options = {"threads": 2, "pin": (3, 5), "batch": 4, "min_time_s": 1.5}
    assert latency.calls == [
        (
            ([Path("a.onnx"), Path("b.onnx")], ["local"]),
            {"options": options, "retries": 2, "folder": None},
        )
    ]


def test_profile_leaves_to_the_device_what_is_left_out(call: Call, room: Room) -> None:
    latency = FakeLatency(room, "pi5")
    call("profile", "a.onnx", "--on", "pi5")
    assert latency.calls[0][1]["options"] == {
        "threads": None,
        "pin": "device",
        "batch": None,
        "min_time_s": 5.0,
    }
    assert latency.calls[0][1]["retries"] == 0


@pytest.mark.parametrize(
    ("cores", "pin", "threads"),
    [("2", (2,), 1), ("0,2-4", (0, 2, 3, 4), 4), ("auto", "auto", None)],
)
def test_profile_takes_cores_one_per_thread(
    call: Call, room: Room, cores: str, pin: object, threads: int | None
) -> None:
    latency = FakeLatency(room, "local")
    call("profile", "a.onnx", "--cores", cores)
    options = latency.calls[0][1]["options"]
    assert (options["pin"], options["threads"]) == (pin, threads)


@pytest.mark.parametrize("cores", ["", "a", "3-1", "1,,2", "1-"])
def test_profile_refuses_cores_that_are_none(call: Call, cores: str) -> None:
    result = call("profile", "a.onnx", "--cores", cores)
    assert result.exit_code == 2
    assert "--cores" in result.stderr


def test_profile_shows_what_it_has_before_what_failed(call: Call, room: Room) -> None:
    FakeLatency(room, "local", "orin")
    devices = [word for name in ("orin", "pi5", "local", "nano") for word in ("--on", name)]
    result = call("profile", "a.onnx", *devices)
    assert result.exit_code == 1
    assert result.stdout == "table of orin\ntable of local\n"
    assert result.stderr == "error: pi5 is off\nerror: nano is off\n"


def test_profile_with_output_keeps_results_and_says_what_it_found(call: Call, room: Room) -> None:
    latency = FakeLatency(room, "local")
    call("profile", "a.onnx", "--output", "out", "--again")
    folder = latency.calls[0][1]["folder"]
    assert (folder.path, folder.again) == (Path("out"), True)


def test_an_interrupted_profile_shows_what_is_finished_and_where_it_is(
    call: Call, room: Room
) -> None:
    FakeLatency(room, "pi5", error=KeyboardInterrupt())
    result = call("profile", "a.onnx", "--on", "local", "--on", "pi5", "--output", "out")
    assert result.exit_code == 130
    assert result.stdout == "table of pi5\n"
    assert result.stderr.endswith("interrupted. What was finished is kept in out/latency.\n")


def test_methods_lists_all_and_tells_about_one(call: Call) -> None:
    listed = call("methods").stdout
    for name in ("ccprune", "chip", "l1", "network_slimming"):
        assert name in listed
    told = call("methods", "ccprune").stdout
    assert "10.1016/j.neucom.2021.04.063" in told
    assert "prune.train" in told
    assert any(
        row.split()[:2] == ["combine", "product"] and "(product | sum)" in row
        for row in told.splitlines()
    )
    assert any(row.split()[:2] == ["layer_norm", "true"] for row in told.splitlines())
    assert "options: none" in call("methods", "l1").stdout


def test_an_unknown_method_has_a_hint(call: Call) -> None:
    result = call("methods", "chipp")
    assert result.exit_code == 1
    assert "Did you mean 'chip'?" in result.stderr


def test_schema_is_json_on_standard_output(call: Call) -> None:
    assert "prune" in json.loads(call("schema").stdout)["properties"]


def make_images(root: Path) -> Path:
    from PIL import Image

    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = root / split / name
            folder.mkdir(parents=True)
            Image.new("RGB", (32, 32)).save(folder / "1.png")
    return root


def test_init_writes_a_recipe_that_loads_and_never_replaces_one(call: Call, tmp_path: Path) -> None:
    root, path = make_images(tmp_path / "images"), tmp_path / "mine.yaml"
    options = ["--model", "cifar:resnet20", "--data", root, "--output", path]
    result = call("init", *options)
    assert result.exit_code == 0
    assert result.stdout == f"Wrote {path}. Next: prune2deploy check {path}\n"
    assert parse_recipe(path.read_text(), path).data.root == root

    path.write_text("precious")
    result = call("init", *options)
    assert result.exit_code == 1
    assert "exists and was left as it is" in result.stderr
    assert path.read_text() == "precious"

    assert call("init", *options, "--force").exit_code == 0
    assert path.read_text() != "precious"


def test_init_into_a_missing_folder_is_an_error_of_the_user(call: Call, tmp_path: Path) -> None:
    root = make_images(tmp_path / "images")
    result = call(
        "init", "--model", "cifar:resnet20", "--data", root, "--output", tmp_path / "no/r.yaml"
    )
    assert result.exit_code == 1
    assert "Make its folder first" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [["run"], ["ran", "x"], ["init"], ["profile"], ["run", "a", "b"], ["check", "--what"]],
)
def test_wrong_usage_has_exit_code_2(call: Call, arguments: list[str]) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
