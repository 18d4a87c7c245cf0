import errno
import json
import os
import threading
import warnings
from pathlib import Path

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import prune2deploy
from prune2deploy.errors import ExportError
from prune2deploy.export import (
    OnnxModel,
    check_parity,
    export_model_file,
    export_onnx,
    fold_batchnorm,
    onnx_metadata,
)
from prune2deploy.export.onnx import write_whole
from prune2deploy.export.quiet import quiet

SHAPE = (3, 8, 8)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    ).eval()
    model[1].running_mean.uniform_(-1, 1)
    model[1].running_var.uniform_(0.5, 2)
    return model


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "new folder" / "model.onnx"
    export_model_file(
        network(),
        path,
        input_shape=SHAPE,
        batch=2,
        metadata=onnx_metadata(
            input_shape=SHAPE, classes=["a", "é"], mean=[0.1, 0.2, 0.3], std=[1.0, 1.0, 1.0]
        ),
    )
    return path


def shape_of(info: onnx.ValueInfoProto) -> list[int]:
    return [dim.dim_value for dim in info.type.tensor_type.shape.dim]


def test_one_file_with_static_batch_and_names(exported: Path) -> None:
    assert os.listdir(exported.parent) == ["model.onnx"]
    graph = onnx.load(exported).graph
    assert [(i.name, shape_of(i)) for i in graph.input] == [("input", [2, 3, 8, 8])]
    assert [(o.name, shape_of(o)) for o in graph.output] == [("output", [2, 5])]


def test_the_norm_is_folded_into_the_weights_that_the_file_holds(exported: Path) -> None:
    graph = onnx.load(exported).graph
    assert "BatchNormalization" not in {node.op_type for node in graph.node}
    weights = {t.name: numpy_helper.to_array(t).copy() for t in graph.initializer}
    model = network()
    factor = model[1].weight / torch.sqrt(model[1].running_var + model[1].eps)
    expected = (model[0].weight * factor.view(-1, 1, 1, 1)).detach()
    torch.testing.assert_close(torch.from_numpy(weights["0.weight"]), expected)


def test_metadata_says_what_a_user_of_the_file_needs(exported: Path) -> None:
    found = {entry.key: json.loads(entry.value) for entry in onnx.load(exported).metadata_props}
    assert found == {
        "classes": ["a", "é"],
        "input_shape": [3, 8, 8],
        "mean": [0.1, 0.2, 0.3],
        "std": [1.0, 1.0, 1.0],
        "prune2deploy_version": prune2deploy.__version__,
    }


def test_the_same_model_gives_the_same_bytes_and_no_local_paths(
    exported: Path, tmp_path: Path
) -> None:
    for name in ("a.onnx", "b.onnx"):
        folded = fold_batchnorm(network())
        export_onnx(folded, tmp_path / name, input_shape=SHAPE, opset=18, simplify=False)
    content = (tmp_path / "a.onnx").read_bytes()
    assert content == (tmp_path / "b.onnx").read_bytes()
    for leak in (torch.__path__[0], str(Path(__file__).parent), str(tmp_path), "stack_trace"):
        assert leak.encode() not in content
    proto = onnx.load(tmp_path / "a.onnx")
    assert not any(node.doc_string or node.metadata_props for node in proto.graph.node)
    assert proto.ir_version == 8  # The format that came with opset 18.


def test_parity_of_a_good_file_is_small_and_a_changed_weight_is_caught(
    exported: Path, tmp_path: Path
) -> None:
    model = network()
    loader = [(torch.randn(3, *SHAPE), None)]
    assert check_parity(exported, model, loader).max_rel_diff < 1e-5
    proto = onnx.load(exported)
    weight = next(t for t in proto.graph.initializer if t.name == "5.weight")
    changed = numpy_helper.to_array(weight).copy()
    changed[3, 1] += 0.05
    weight.CopyFrom(numpy_helper.from_array(changed, weight.name))
    onnx.save(proto, tmp_path / "changed.onnx")
    with pytest.raises(ExportError, match="differs from the model in PyTorch"):
        check_parity(tmp_path / "changed.onnx", model, loader)


def test_a_file_that_fails_the_comparison_never_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def differs(onnx_path: Path, *args: object, **options: object) -> None:
        assert onnx_path.is_file()
        raise ExportError("differs")

    path = tmp_path / "m.onnx"
    path.write_text("old")
    monkeypatch.setattr("prune2deploy.export.model_file.check_parity", differs)
    with pytest.raises(ExportError, match="differs"):
        export_model_file(network(), path, input_shape=SHAPE)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["m.onnx"]


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3)

    def forward(self, x: Tensor) -> dict[str, object]:
        y = self.conv(x)
        return {"scores": y, "same": y, "pair": [y + 1, None, y.mean((2, 3))], "none": None}


def test_every_tensor_of_a_structure_is_exported_under_its_name(tmp_path: Path) -> None:
    model = Several().eval()
    path = tmp_path / "m.onnx"
    export_model_file(model, path, input_shape=SHAPE, batch=1)
    x = torch.randn(2, *SHAPE)
    with OnnxModel(path) as runtime:
        found = runtime.predict(x)
    assert list(found) == ["scores", "same", "pair_0", "pair_2"]
    torch.testing.assert_close(found["pair_2"], model.conv(x).mean((2, 3)).detach())
    names = {t.name for t in onnx.load(path).graph.initializer}
    assert {"conv.weight", "conv.bias"} <= names


def test_only_the_outputs_that_are_named_are_exported(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    export_model_file(
        Several().eval(), path, input_shape=SHAPE, outputs=lambda o: {"logits": o["pair"][2]}
    )
    assert [(o.name, shape_of(o)) for o in onnx.load(path).graph.output] == [("logits", [1, 2])]


class MeanOverPlaces(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) + x.mean((-1, -2), keepdim=True).flatten(1)


@pytest.mark.parametrize("opset", [15, 17, 18, 21])
def test_the_opset_that_was_asked_for_is_the_files(opset: int, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    model = nn.Sequential(network()[:3], MeanOverPlaces()).eval()
    export_model_file(model, path, input_shape=SHAPE, opset=opset, simplify=opset != 17)
    proto = onnx.load(path)
    assert [(e.domain, e.version) for e in proto.opset_import] == [("", opset)]
    assert "ReduceMean" not in {node.op_type for node in proto.graph.node}
    used = {name for node in proto.graph.node for name in node.input}
    assert {t.name for t in proto.graph.initializer} <= used


def test_a_mean_over_channels_is_no_pooling(tmp_path: Path) -> None:
    class MeanOverChannels(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((1, 2)) + x.mean((1, 3))

    export_model_file(MeanOverChannels(), tmp_path / "m.onnx", input_shape=SHAPE, opset=17)
    ops = [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node]
    assert ops.count("ReduceMean") == 2


def test_an_operator_that_an_old_opset_lacks_is_named(tmp_path: Path) -> None:
    model = nn.Sequential(network()[:2], nn.ZeroPad2d((1, 2, 3, 4))).eval()
    with pytest.raises(ExportError, match=r"in ONNX opset 17: No Adapter To Version \$17 for Pad"):
        export_model_file(model, tmp_path / "m.onnx", input_shape=SHAPE, opset=17)


def test_an_opset_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="opset 99 does not exist"):
        export_onnx(network(), tmp_path / "m.onnx", input_shape=SHAPE, opset=99)


class ChoosesByValue(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


class NoSuchOperator(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.svd(x)[1]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (ChoosesByValue(), r"data-dependent.*test_onnx_file\.py, line \d+, in forward: if x\.sum"),
        (NoSuchOperator(), "aten._linalg_svd"),
    ],
)
def test_a_failed_export_says_why_stays_quiet_and_keeps_the_old_file(
    model: nn.Module, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.onnx"
    path.write_text("old")
    with pytest.raises(ExportError, match=message):
        export_model_file(model.eval(), path, input_shape=SHAPE)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["m.onnx"]
    assert capfd.readouterr() == ("", "")


def test_a_successful_export_is_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export_model_file(network(), tmp_path / "m.onnx", input_shape=SHAPE, opset=17)
    assert capfd.readouterr() == ("", "")


def test_quiet_mutes_its_own_thread_only(capsys: pytest.CaptureFixture[str]) -> None:
    with quiet():
        print("exporter")
        warnings.warn("exporter", stacklevel=1)
        thread = threading.Thread(target=print, args=("progress",))
        thread.start()
        thread.join()
    print("after")
    assert capsys.readouterr().out == "progress\nafter\n"


def test_training_mode_is_not_exported_and_is_restored(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Dropout(0.9)).train()
    export_onnx(model, tmp_path / "m.onnx", input_shape=SHAPE)
    assert [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node] == ["Conv"]
    assert all(module.training for module in model.modules())


def test_weights_over_two_gigabytes_are_refused_before_any_work(tmp_path: Path) -> None:
    model = nn.Module()
    model.weight = nn.Parameter(torch.empty(2**29, device="meta"))
    with pytest.raises(ExportError, match=r"take 2\.00 GiB.*less than 2 GiB"):
        export_onnx(model, tmp_path / "m.onnx", input_shape=SHAPE)


def test_a_full_disk_is_reported_and_the_old_file_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "m.onnx"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ExportError, match=r"cannot be written: No space left.*MiB are free"):
        write_whole(path, b"new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["m.onnx"]


def test_a_file_in_the_place_of_the_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="cannot be written"):
        write_whole(tmp_path / "file" / "m.onnx", b"new")


def test_outputs_that_are_no_tensors_are_refused(tmp_path: Path) -> None:
    class Text(nn.Module):
        def forward(self, x: Tensor) -> dict[str, object]:
            return {"scores": x, "note": "hello"}

    with pytest.raises(ExportError, match="holds a str; an ONNX model returns tensors only"):
        export_onnx(Text(), tmp_path / "m.onnx", input_shape=SHAPE)


def test_norms_that_remain_are_still_exported_right(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3, padding=1)).eval()
    model[0].running_mean.uniform_(-1, 1)
    model[0].running_var.uniform_(0.5, 2)
    parity = export_model_file(model, tmp_path / "m.onnx", input_shape=SHAPE)
    assert parity.max_rel_diff < 1e-5
    ops = [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node]
    assert ops == ["BatchNormalization", "Relu", "Conv"]
