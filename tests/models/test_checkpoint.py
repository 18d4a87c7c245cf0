import argparse
import logging
import pickle
import re
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from prune2deploy.errors import ModelError
from prune2deploy.models import load_state_dict_file, load_weights_into


def network(classes: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, classes))


def numbered_state(model: nn.Module) -> dict[str, Tensor]:
    """A state whose every entry is different, so that a swap would be seen."""
    return {
        key: torch.full_like(value, index + 1)
        for index, (key, value) in enumerate(model.state_dict().items())
    }


def assert_holds(model: nn.Module, state: dict[str, Tensor]) -> None:
    own = model.state_dict()
    assert own.keys() == state.keys()
    for key, value in state.items():
        assert torch.equal(own[key], value), key


NESTINGS = {
    "plain": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3, "best_prec1": 91.5},
    "model_state_dict": lambda s: {"model_state_dict": s, "optimizer": {"state": {}}},
    "net": lambda s: {"net": s, "acc": 0.9},
    "ema": lambda s: {"ema": s},
    "nested twice": lambda s: {"model": {"state_dict": s}},
    "beside plain values": lambda s: {**s, "epoch": 3},
    "module.": lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
    "compiled": lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
    "compiled inside": lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
    "averaged": lambda s: {
        "n_averaged": torch.tensor(4),
        **{f"module.{k}": v for k, v in s.items()},
    },
    "Lightning": lambda s: {
        "state_dict": {**{f"model.{k}": v for k, v in s.items()}, "criterion.weight": torch.ones(3)}
    },
}


@pytest.mark.parametrize("nesting", NESTINGS)
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th"])
def test_weights_are_found_however_they_are_wrapped(
    nesting: str, suffix: str, tmp_path: Path
) -> None:
    model = network()
    state = numbered_state(model)
    path = tmp_path / f"weights{suffix}"
    torch.save(NESTINGS[nesting](state), path)
    load_weights_into(model, path)
    assert_holds(model, state)


def test_safetensors_are_read_and_wrapper_prefixes_removed(tmp_path: Path) -> None:
    state = numbered_state(network())
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({f"module.{k}": v for k, v in state.items()}, path)
    read = load_state_dict_file(path)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[key], state[key]) for key in state)


def test_files_of_old_pytorch_without_batch_counters_load(tmp_path: Path) -> None:
    model = network()
    state = numbered_state(model)
    counter = state.pop("1.num_batches_tracked")
    path = tmp_path / "old.th"
    # Before PyTorch 1.6 this was the only format.
    torch.save(state, path, _use_new_zipfile_serialization=False)
    model[1].num_batches_tracked.copy_(counter)
    load_weights_into(model, path)
    assert_holds(model, {**state, "1.num_batches_tracked": counter})


def test_plain_weights_win_over_averaged_ones_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = network()
    state = numbered_state(model)
    path = tmp_path / "both.pt"
    torch.save({"ema": {k: v + 1 for k, v in state.items()}, "model": state}, path)
    with caplog.at_level(logging.INFO, logger="prune2deploy"):
        load_weights_into(model, path)
    assert_holds(model, state)
    assert "'model'" in caplog.text
    assert "ema" in caplog.text


def test_a_half_precision_file_fills_a_float32_model(tmp_path: Path) -> None:
    model = network()
    torch.save({k: v.half() for k, v in numbered_state(model).items()}, tmp_path / "half.pt")
    load_weights_into(model, tmp_path / "half.pt")
    assert model[0].weight.dtype == torch.float32
    assert torch.equal(model[0].weight, torch.ones(4, 1, 3, 3))


def test_a_part_called_module_is_no_wrapper(tmp_path: Path) -> None:
    model = nn.Module()
    model.module, model.head = nn.Linear(2, 2), nn.Linear(2, 1)
    state = numbered_state(model)
    torch.save(state, tmp_path / "w.pt")
    load_weights_into(model, tmp_path / "w.pt")
    assert_holds(model, state)


def test_one_error_lists_missing_unexpected_and_wrongly_shaped_keys(tmp_path: Path) -> None:
    model = network()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = numbered_state(model)
    del state["0.bias"]
    state["extra.weight"] = torch.ones(1)
    state["1.weight"] = torch.ones(5)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ModelError) as caught:
        load_weights_into(model, tmp_path / "w.pt")
    message = str(caught.value)
    assert "6 of the model's 8 entries match, and the file has 9" in message
    assert re.search(r"missing in the file \(1\): 0\.bias", message)
    assert re.search(r"unexpected in the file \(1\): extra\.weight", message)
    assert "1.weight (file (5,), model (4,))" in message
    assert_holds(model, before)


def test_long_lists_of_keys_are_cut_short(tmp_path: Path) -> None:
    torch.save({f"other{i}.weight": torch.ones(1) for i in range(50)}, tmp_path / "w.pt")
    with pytest.raises(
        ModelError, match=r"unexpected in the file \(50\): .* and 42 more"
    ) as caught:
        load_weights_into(network(), tmp_path / "w.pt")
    assert "other20." not in str(caught.value)


def test_a_classifier_of_another_size_is_named_with_both_counts(tmp_path: Path) -> None:
    torch.save(network(classes=7).state_dict(), tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"'3.weight' has 7 rows.*the data has 3 classes"):
        load_weights_into(network(classes=3), tmp_path / "w.pt", num_classes=3)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    state = network().state_dict()
    state["0.weight"][0] = float("nan")
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"'0.weight' holds NaN"):
        load_weights_into(network(), tmp_path / "w.pt")


class Trap:
    """Pickled into a file, it would create another file when that is read."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (open, (str(self.victim), "w"))


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    torch.save({"state_dict": network().state_dict(), "x": Trap(victim)}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"was refused.*open"):
        load_state_dict_file(tmp_path / "w.pt")
    assert not victim.exists()


@pytest.mark.parametrize("content", ["whole model", "model inside", "state beside objects", "flat"])
def test_the_conversion_that_the_refusal_suggests_works(content: str, tmp_path: Path) -> None:
    model = network()
    state = numbered_state(model)
    model.load_state_dict(state)
    path = tmp_path / "w.pth"
    torch.save(
        {
            "whole model": model,
            "model inside": {"model": model, "epoch": 2},
            "state beside objects": {"state_dict": state, "args": argparse.Namespace(lr=0.1)},
            "flat": {**state, "args": argparse.Namespace(lr=0.1)},
        }[content],
        path,
    )
    with pytest.raises(ModelError, match="was refused") as caught:
        load_state_dict_file(path)
    snippet = [line.strip() for line in str(caught.value).splitlines()[1:]]
    assert len(snippet) == 3
    exec("\n".join(snippet), {})
    load_weights_into(network(), tmp_path / "w-weights.pth")
    assert load_state_dict_file(tmp_path / "w-weights.pth").keys() == state.keys()


def test_a_torchscript_archive_is_named_with_its_conversion(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/constants.pkl", pickle.dumps(()))
        archive.writestr("w/data.pkl", pickle.dumps(()))
        archive.writestr("w/version", "3\n")
    with pytest.raises(ModelError, match=r"TorchScript archive[\s\S]*torch\.jit\.load"):
        load_state_dict_file(path)


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_called_damaged(new_format: bool, share: float, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(network().state_dict(), path, _use_new_zipfile_serialization=new_format)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ModelError, match=r"w\.pt .*cannot be read.*damaged"):
        load_state_dict_file(path)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_truncated_safetensors_are_called_damaged(share: float, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(network().state_dict(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ModelError, match="damaged"):
        load_state_dict_file(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>not found</html>", "of another kind"),
    ],
)
def test_what_stands_in_for_weights_is_recognised(
    content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(ModelError, match=message):
        load_state_dict_file(tmp_path / "w.pt")


def test_files_without_weights_are_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"no weights: found a dict with the keys epoch"):
        load_state_dict_file(tmp_path / "w.pt")
    with pytest.raises(ModelError, match="There is no checkpoint file"):
        load_state_dict_file(tmp_path / "absent.pt")
    (tmp_path / "w.onnx").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"not from '\.onnx'"):
        load_state_dict_file(tmp_path / "w.onnx")
