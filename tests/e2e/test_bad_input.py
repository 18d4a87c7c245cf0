"""Bad input through the command line: one clear message, exit code 1, nothing lost.

The rooms' own tests go deeper; these show what a user sees.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from prune2deploy.cli.app import app
from prune2deploy.models import cifar_resnet

RECIPE = """\
model: {source: "cifar:resnet20", input: [3, 32, 32], checkpoint: weights.safetensors}
data: {source: imagefolder, root: images, normalize: imagenet}
prune: {method: l1, budget: {macs: 0.5}}
"""


@pytest.fixture
def project(tmp_path):
    """A recipe, weights and images that fit together."""
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for number in range(3):
                shade = 40 * number + (100 if name == "dog" else 0)
                Image.new("RGB", (32, 32), (shade, shade, 90)).save(folder / f"{number}.png")
    save_file(cifar_resnet.resnet20(num_classes=2).state_dict(), tmp_path / "weights.safetensors")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def command(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


def refused(*words: object) -> str:
    """Run a command that must fail as the user's error; return its message."""
    result = command(*words)
    assert result.exit_code == 1, result.output
    assert result.stderr.count("error: ") == 1
    assert "Traceback" not in result.output
    return " ".join(result.stderr.split())


def test_the_project_itself_passes_check(project):
    result = command("check", project / "recipe.yaml")
    assert result.exit_code == 0, result.output
    assert "cat, dog" in result.stdout


def test_broken_yaml_names_the_line(project):
    (project / "recipe.yaml").write_text(RECIPE + "finetune: epochs: 3\n")
    assert "recipe.yaml:4" in refused("check", project / "recipe.yaml")


def test_unknown_keys_and_values_come_all_at_once_with_the_nearest_name(project):
    text = RECIPE.replace("budget", "buget").replace("imagefolder", "imagefolders")
    (project / "recipe.yaml").write_text(text)
    message = refused("check", project / "recipe.yaml")
    assert "recipe.yaml:3" in message
    assert "'budget'" in message
    assert "recipe.yaml:2" in message
    assert "'imagefolder'" in message


def test_a_missing_file_is_named(project):
    (project / "weights.safetensors").unlink()
    message = refused("check", project / "recipe.yaml")
    assert "model.checkpoint" in message
    assert "weights.safetensors" in message


def test_a_corrupt_image_is_named_or_skipped_by_choice(project):
    bad = project / "images" / "test" / "dog" / "1.png"
    bad.write_bytes(bad.read_bytes()[:40])
    out = project / "out"
    quick = ["--set", "profile={min_time_s: 0.1, retries: 0}", "--output", out]
    message = refused("run", project / "recipe.yaml", *quick)
    assert str(bad) in message
    assert "on_bad_image" in message
    assert (out / "recipe.yaml").exists(), "what was written before the failure is kept"
    again = ["--set", "profile={min_time_s: 0.1, retries: 0}", "--output", project / "out2"]
    result = command("run", project / "recipe.yaml", "--set", "data.on_bad_image=skip", *again)
    assert result.exit_code == 0, result.output


def test_an_empty_class_folder_is_named(project):
    for image in (project / "images" / "train" / "cat").iterdir():
        image.unlink()
    message = refused("check", project / "recipe.yaml")
    assert "cat" in message
    assert "train" in message


def test_a_checkpoint_of_another_architecture_lists_keys(project):
    other = cifar_resnet.resnet32(num_classes=2).state_dict()
    save_file(other, project / "weights.safetensors")
    message = refused("check", project / "recipe.yaml")
    assert "unexpected" in message
    assert "layer1.3.bn1" in message  # resnet32 has five blocks per stage, resnet20 three


def test_a_wrong_class_count_is_told_apart(project):
    state = cifar_resnet.resnet20(num_classes=10).state_dict()
    save_file(state, project / "weights.safetensors")
    message = refused("check", project / "recipe.yaml")
    assert "10" in message
    assert "2" in message
    assert "class" in message


def test_a_forward_that_fails_names_the_line_in_the_users_file(project):
    (project / "model.py").write_text(
        "import torch\n\n\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv = torch.nn.Conv2d(3, 8, 3)\n\n"
        "    def forward(self, x):\n"
        "        return self.conv(x).view(1, 7)\n\n\n"
        "def build():\n"
        "    return Net()\n"
    )
    message = refused(
        "check",
        project / "recipe.yaml",
        "--set",
        f"model={{source: '{project}/model.py:build', input: [3, 32, 32]}}",
    )
    assert "model.py" in message
    assert "line 10" in message or ":10" in message


def test_a_budget_that_cannot_be_reached_says_what_can(project):
    message = refused("check", project / "recipe.yaml", "--set", "prune.budget.macs=0.01")
    assert "1.0%" in message
    assert "are left" in message


def test_wrong_usage_is_exit_code_2(project):
    assert command("run").exit_code == 2
    assert command("run", project / "recipe.yaml", "--no-such-option").exit_code == 2


def test_ctrl_c_keeps_what_was_made(project):
    """A real process, interrupted in the middle of training."""
    out = project / "out"
    long = ["--set", "finetune={epochs: 100000, lr: 0.01}", "--output", str(out)]
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from prune2deploy.cli import main; main()",
            "run",
            "recipe.yaml",
            *long,
        ],
        cwd=project,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = out / "run.log"
    waited_until = time.monotonic() + 120
    while not (log.exists() and "Stage: finetune" in log.read_text()):
        assert time.monotonic() < waited_until, "training did not begin"
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in errors
    assert str(out) in errors
    assert "Traceback" not in errors
    assert (out / "cut.safetensors").exists()
    assert not list(Path(out).glob("*.tmp"))
