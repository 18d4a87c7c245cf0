from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from precision_networks import Residual, random_images, save_network
from torch import nn

from prune2deploy.errors import ExportError
from prune2deploy.export.precision import compare_files, precision_of, to_fp16

LAYERS = ["stem", "depthwise", "pointwise", "head"]


def element_types(path: Path) -> dict[str, int]:
    return {t.name: t.data_type for t in onnx.load(path).graph.initializer}


def scaled(up: float, down: float) -> nn.Sequential:
    """Two convolutions, of which one multiplies by `up` and the other by `down`."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    with torch.no_grad():
        model[0].weight *= up
        model[0].bias *= up
        model[2].weight *= down
    return model


def test_all_weights_are_half_and_the_outputs_nearly_equal(
    residual_file: Path, tmp_path: Path
) -> None:
    before = residual_file.read_bytes()
    result = to_fp16(residual_file, tmp_path / "half.onnx", batches=random_images(6))
    assert set(element_types(result.path).values()) <= {TensorProto.FLOAT16, TensorProto.INT64}
    assert result.kept == {}
    # 8·3·9 + 8·9 + 8·8 + 8·5 weights of 2 bytes.
    assert result.precision["fp16"].layers == 4
    assert result.precision["fp16"].weight_bytes == 2 * (216 + 72 + 64 + 40)
    assert result.precision["fp32"].layers == result.precision["int8"].layers == 0
    found = compare_files(result.path, residual_file, random_images(6, seed=1))
    assert 0 < found.max_rel_diff < 1e-2
    assert (found.agreement, found.samples) == (1.0, 6)
    assert residual_file.read_bytes() == before


def test_it_is_used_like_the_original(residual_file: Path, tmp_path: Path) -> None:
    to_fp16(residual_file, tmp_path / "half.onnx")
    old, new = onnx.load(residual_file), onnx.load(tmp_path / "half.onnx")
    assert list(new.metadata_props) == list(old.metadata_props) != []
    assert list(new.graph.input) == list(old.graph.input)
    assert list(new.graph.output) == list(old.graph.output)
    assert new.producer_name == old.producer_name == "prune2deploy"
    onnx.checker.check_model(new, full_check=True)


def test_inputs_and_outputs_can_be_half_too(residual_file: Path, tmp_path: Path) -> None:
    to_fp16(residual_file, tmp_path / "half.onnx", keep_io=False)
    graph = onnx.load(tmp_path / "half.onnx").graph
    for info in (*graph.input, *graph.output):
        assert info.type.tensor_type.elem_type == TensorProto.FLOAT16
    assert "Cast" not in {node.op_type for node in graph.node}


def test_a_layer_that_is_to_stay_stays(residual_file: Path, tmp_path: Path) -> None:
    result = to_fp16(residual_file, tmp_path / "half.onnx", keep=["pointwise"])
    assert result.kept == {"pointwise": "asked for"}
    types = element_types(result.path)
    assert {n for n, kind in types.items() if kind == TensorProto.FLOAT} == {
        "pointwise.weight",
        "pointwise.bias",
    }
    assert {name: count.layers for name, count in result.precision.items()} == {
        "fp32": 1,
        "fp16": 3,
        "int8": 0,
    }
    found = compare_files(result.path, residual_file, random_images(6))
    assert found.max_rel_diff < 1e-2


def test_activations_that_overflow_are_found_and_stay_whole(tmp_path: Path) -> None:
    source = save_network(scaled(1e5, 1e-5), tmp_path / "model.onnx")
    images = random_images(4)
    assert to_fp16(source, tmp_path / "blind.onnx").kept == {}
    result = to_fp16(source, tmp_path / "half.onnx", batches=images)
    assert next(iter(result.kept)) == "0"
    assert "returns values up to" in result.kept["0"]
    assert "reads values up to" in result.kept["2"]
    assert result.precision["fp32"].layers == 2
    assert result.largest_activation is not None
    assert result.largest_activation < 100
    assert compare_files(result.path, source, images).max_rel_diff < 1e-2


def test_no_detour_through_half_between_layers_that_stay(tmp_path: Path) -> None:
    source = save_network(scaled(1e5, 1e-5), tmp_path / "model.onnx")
    to_fp16(source, tmp_path / "half.onnx", batches=random_images(4))
    graph = onnx.load(tmp_path / "half.onnx").graph
    kinds = [node.op_type for node in graph.node]
    first, second = [i for i, kind in enumerate(kinds) if kind == "Conv"]
    assert kinds[first:second] == ["Conv", "Relu"]


def test_keeping_everything_is_the_original(residual_file: Path, tmp_path: Path) -> None:
    nodes = [node.name for node in onnx.load(residual_file).graph.node]
    result = to_fp16(residual_file, tmp_path / "half.onnx", keep=nodes)
    assert compare_files(result.path, residual_file, random_images(4)).max_abs_diff == 0
    assert TensorProto.FLOAT16 not in element_types(result.path).values()


def test_a_weight_above_the_largest_half_keeps_its_layer(tmp_path: Path) -> None:
    model = scaled(1.0, 1.0)
    with torch.no_grad():
        model[2].weight[1, 2, 0, 0] = -7e4
    source = save_network(model, tmp_path / "model.onnx")
    result = to_fp16(source, tmp_path / "half.onnx")
    assert result.kept == {"2": "a weight of 7e+04 is above 65504"}


def test_small_weights_are_counted(tmp_path: Path) -> None:
    model = scaled(1.0, 1.0)
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.fill_(0.5)
            layer.weight[0, 0, 0] = torch.tensor([0.0, 1e-5, -1e-6])
        model[2].weight[1, 0, 0] = torch.tensor([1e-9, -1e-9, 6.2e-5])
    source = save_network(model, tmp_path / "model.onnx")
    result = to_fp16(source, tmp_path / "half.onnx")
    assert (result.subnormal_weights, result.raised_weights) == (6, 2)
    # What stays fp32 loses nothing.
    result = to_fp16(source, tmp_path / "half.onnx", keep=["2"])
    assert (result.subnormal_weights, result.raised_weights) == (2, 0)


def test_an_operator_that_runtimes_have_in_fp32_only(tmp_path: Path) -> None:
    class Sums(Residual):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).cumsum(dim=1)

    torch.manual_seed(0)
    source = save_network(Sums(), tmp_path / "model.onnx")
    result = to_fp16(source, tmp_path / "half.onnx")
    assert list(result.kept.values()) == ["runtimes have CumSum in fp32 only"]
    assert compare_files(result.path, source, random_images(4)).max_rel_diff < 1e-2


def test_a_weight_used_by_a_layer_that_stays_and_one_that_does_not(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(self.conv(x).relu()).mean((2, 3))

    torch.manual_seed(0)
    source = save_network(Twice(), tmp_path / "model.onnx")
    first = next(n.name for n in onnx.load(source).graph.node if n.op_type == "Conv")
    result = to_fp16(source, tmp_path / "half.onnx", keep=[first])
    counts = {name: count.layers for name, count in result.precision.items()}
    assert counts == {"fp32": 1, "fp16": 1, "int8": 0}
    assert compare_files(result.path, source, random_images(4)).max_rel_diff < 1e-2


def test_the_same_file_twice(residual_file: Path, tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        to_fp16(residual_file, tmp_path / name, batches=random_images(4), keep=["stem"])
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def make_dynamic(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"


def remove_layers(proto: onnx.ModelProto) -> None:
    del proto.graph.node[:], proto.graph.initializer[:]
    proto.graph.node.append(onnx.helper.make_node("Relu", ["input"], ["output"]))
    proto.graph.output[0].CopyFrom(proto.graph.input[0])
    proto.graph.output[0].name = "output"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (make_dynamic, r"shape \['n', 3, 12, 12\], which is not static"),
        (remove_layers, "has no Conv, ConvTranspose, Gemm or MatMul"),
    ],
)
def test_what_cannot_be_converted_is_one_clear_error(
    change: Callable[[onnx.ModelProto], None], message: str, residual_file: Path, tmp_path: Path
) -> None:
    proto = onnx.load(residual_file)
    change(proto)
    onnx.save(proto, tmp_path / "model.onnx")
    with pytest.raises(ExportError, match=message):
        to_fp16(tmp_path / "model.onnx", tmp_path / "half.onnx")
    assert not (tmp_path / "half.onnx").exists()


def test_other_errors(residual_file: Path, tmp_path: Path) -> None:
    target = tmp_path / "half.onnx"
    with pytest.raises(ExportError, match=r"no layer 'pointwize'.*Did you mean 'pointwise'"):
        to_fp16(residual_file, target, keep=["pointwize"])
    with pytest.raises(ExportError, match="There is no ONNX file"):
        to_fp16(tmp_path / "absent.onnx", target)
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ExportError, match="not a valid ONNX model"):
        to_fp16(tmp_path / "text.onnx", target)
    to_fp16(residual_file, target)
    with pytest.raises(ExportError, match="with constant fp32 weights"):
        to_fp16(target, tmp_path / "again.onnx")
    infinite = [np.full((4, 3, 12, 12), 3e38, np.float32)]
    with pytest.raises(ExportError, match="fp32 model itself computes NaN or infinity"):
        to_fp16(residual_file, target, batches=infinite)


def test_precision_is_read_from_the_graph(residual_file: Path, tmp_path: Path) -> None:
    proto = onnx.load(residual_file)
    weight = next(t for t in proto.graph.initializer if t.name == "pointwise.weight")
    half = numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float16), "stored")
    # Stored in fp16 and computed in fp32: counts as fp32, with the bytes of fp16.
    proto.graph.initializer.remove(weight)
    proto.graph.initializer.append(half)
    cast = onnx.helper.make_node("Cast", ["stored"], ["pointwise.weight"], to=TensorProto.FLOAT)
    proto.graph.node.insert(0, cast)
    onnx.save(proto, tmp_path / "model.onnx")
    counts = precision_of(tmp_path / "model.onnx")
    assert counts["fp32"].layers == 4
    assert counts["fp32"].weight_bytes == 4 * (216 + 72 + 40) + 2 * 64
