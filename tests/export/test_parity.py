from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from prune2deploy.errors import ExportError
from prune2deploy.export import OnnxModel, check_parity


def scale_file(
    path: Path, factor: float = 3.0, batch: int | str = 2, shape: tuple[int, ...] = (1, 2, 2)
) -> Path:
    """An ONNX file made by hand: output = input * factor."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["input", "factor"], ["output"])],
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, *shape])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [batch, *shape])],
        [numpy_helper.from_array(np.float32(factor), "factor")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)
    return path


class Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def batches(*sizes: int) -> list[tuple[Tensor, None]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.rand(size, 1, 2, 2, generator=generator), None) for size in sizes]


@pytest.mark.parametrize("samples", [1, 2, 3, 5])
@pytest.mark.parametrize("batch", [1, 2, 4, "n"])
def test_any_number_of_images_goes_through_a_static_batch(
    samples: int, batch: int | str, tmp_path: Path
) -> None:
    images = torch.rand(samples, 1, 2, 2)
    with OnnxModel(scale_file(tmp_path / "m.onnx", 2.0, batch)) as model:
        found = model.predict(images)
    assert list(found) == ["output"]
    assert torch.equal(found["output"], images * 2)


def test_images_that_are_not_contiguous_are_not_mixed_up(tmp_path: Path) -> None:
    images = torch.rand(2, 2, 2, 3).permute(0, 3, 1, 2)
    with OnnxModel(scale_file(tmp_path / "m.onnx", 2.0, 2, (3, 2, 2))) as model:
        assert torch.equal(model.predict(images)["output"], images * 2)


def test_equal_models_have_parity_and_samples_are_counted(tmp_path: Path) -> None:
    path = scale_file(tmp_path / "m.onnx", 3.0)
    parity = check_parity(
        path, Scale(3.0), batches(2, 3), agreement=lambda a, b: float(a.keys() == b.keys())
    )
    assert parity.max_abs_diff == parity.max_rel_diff == 0
    assert parity.samples == 5
    assert parity.agreement == 1.0


def test_agreement_is_weighted_by_samples(tmp_path: Path) -> None:
    shares = iter([1.0, 0.5])
    parity = check_parity(
        scale_file(tmp_path / "m.onnx"),
        Scale(3.0),
        batches(1, 3),
        agreement=lambda a, b: next(shares),
    )
    assert parity.agreement == pytest.approx((1 * 1.0 + 3 * 0.5) / 4)


def test_differences_are_relative_to_the_largest_value_of_the_batch(tmp_path: Path) -> None:
    class Off(nn.Module):
        """100 times the input in sample 1, and one entry of sample 0 wrong by 1."""

        def forward(self, x: Tensor) -> Tensor:
            y = x.clone()
            y[0, 0, 0, 0] += 1
            return y

    images = torch.ones(2, 1, 2, 2)
    images[1] = 100
    parity = check_parity(
        scale_file(tmp_path / "m.onnx", 1.0), Off(), [(images, None)], tolerance=0.02
    )
    assert parity.max_abs_diff == 1.0
    assert parity.max_rel_diff == pytest.approx(1 / 100)


def test_a_difference_over_the_tolerance_is_located(tmp_path: Path) -> None:
    class LastSampleOff(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 3
            y[-1, 0, 1, 1] += 1e-2
            return y

    with pytest.raises(ExportError, match=r"'output'.*by 0\.01 in sample 4.*allowed are 1e-04"):
        check_parity(
            scale_file(tmp_path / "m.onnx"),
            LastSampleOff(),
            [(torch.ones(5, 1, 2, 2), None)],
        )


def test_samples_are_numbered_over_all_batches(tmp_path: Path) -> None:
    good, bad = torch.full((3, 1, 2, 2), 1.0), torch.full((2, 1, 2, 2), 1.0)
    bad[1] = 7.0

    class WrongOnSevens(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x == 7.0, x, x * 3)

    with pytest.raises(ExportError, match="in sample 4,"):
        check_parity(scale_file(tmp_path / "m.onnx"), WrongOnSevens(), [(good, None), (bad, None)])


@pytest.mark.parametrize(("theirs", "ours"), [(float("nan"), 3.0), (3.0, float("nan"))])
def test_nan_on_either_side_never_passes(theirs: float, ours: float, tmp_path: Path) -> None:
    path = scale_file(tmp_path / "m.onnx", theirs)
    with pytest.raises(ExportError, match=r"differs|model itself returns NaN"):
        check_parity(path, Scale(ours), batches(2), tolerance=1e9)


def test_a_model_that_returns_zeros_must_be_met_exactly(tmp_path: Path) -> None:
    path = scale_file(tmp_path / "m.onnx", 0.0)
    assert check_parity(path, Scale(0.0), batches(2)).max_rel_diff == 0
    with pytest.raises(ExportError, match="differs"):
        check_parity(scale_file(tmp_path / "n.onnx", 1e-9), Scale(0.0), batches(2))


def test_integers_are_compared_by_the_share_that_differs(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("ArgMax", ["input"], ["classes"], axis=1, keepdims=0)],
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [4, 3, 1, 1])],
        [helper.make_tensor_value_info("classes", TensorProto.INT64, [4, 1, 1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "m.onnx")

    class OneWrong(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            classes = x.argmax(dim=1)
            classes[0] = (classes[0] + 1) % 3
            return {"classes": classes}

    images = torch.rand(4, 3, 1, 1)
    parity = check_parity(tmp_path / "m.onnx", OneWrong(), [(images, None)], tolerance=0.3)
    assert parity.max_rel_diff == 0.25
    with pytest.raises(ExportError, match="differs"):
        check_parity(tmp_path / "m.onnx", OneWrong(), [(images, None)])


def test_other_names_and_shapes_are_reported(tmp_path: Path) -> None:
    class Named(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"scores": x * 3}

    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * 3).flatten(1)

    path = scale_file(tmp_path / "m.onnx")
    with pytest.raises(ExportError, match=r"outputs \['output'\]; expected \['scores'\]"):
        check_parity(path, Named(), batches(2))
    with pytest.raises(ExportError, match=r"shape \(2, 1, 2, 2\); the model's has \(2, 4\)"):
        check_parity(path, Flat(), batches(2))
    with pytest.raises(ExportError, match=r"takes images of shape \(1, 2, 2\), got \(3, 2, 2\)"):
        check_parity(path, Scale(3.0), [(torch.rand(2, 3, 2, 2), None)])


def test_an_empty_loader_proves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no samples"):
        check_parity(scale_file(tmp_path / "m.onnx"), Scale(3.0), [])


class Found(nn.Module):
    """The pixels above a limit, of which there may be none, as a detector's boxes."""

    def forward(self, x: Tensor) -> Tensor:
        return x[x > 2] * 3


def found_file(path: Path) -> Path:
    """The same by hand: how many there are follows from the values."""
    nodes = [
        helper.make_node("Greater", ["input", "limit"], ["above"]),
        helper.make_node("Compress", ["input", "above_flat"], ["kept"]),
        helper.make_node("Mul", ["kept", "factor"], ["output"]),
    ]
    nodes.insert(1, helper.make_node("Reshape", ["above", "row"], ["above_flat"]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [2, 1, 2, 2])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n"])],
        [
            numpy_helper.from_array(np.float32(2), "limit"),
            numpy_helper.from_array(np.float32(3), "factor"),
            numpy_helper.from_array(np.array([-1]), "row"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)
    return path


def test_a_batch_in_which_nothing_is_found_is_equal_to_itself(tmp_path: Path) -> None:
    nothing, something = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    something[1, 0, 1, 0] = 5.0
    path = found_file(tmp_path / "m.onnx")
    parity = check_parity(path, Found(), [(nothing, None), (something, None)])
    assert (parity.max_rel_diff, parity.samples) == (0.0, 4)
    with pytest.raises(ExportError, match="returned nothing for any of 2 samples"):
        check_parity(path, Found(), [(nothing, None)])


def test_what_onnx_runtime_cannot_open_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="There is no ONNX file"), OnnxModel(tmp_path / "absent"):
        pass
    (tmp_path / "broken.onnx").write_bytes(b"not an onnx model")
    with pytest.raises(ExportError, match="cannot load"), OnnxModel(tmp_path / "broken.onnx"):
        pass


def test_an_absent_provider_is_an_error_and_not_a_fallback(tmp_path: Path) -> None:
    path = scale_file(tmp_path / "m.onnx")
    with (
        pytest.raises(ExportError, match="no NoSuchExecutionProvider"),
        OnnxModel(path, providers=["NoSuchExecutionProvider", "CPUExecutionProvider"]),
    ):
        pass


def test_the_session_ends_with_the_block(tmp_path: Path) -> None:
    with OnnxModel(scale_file(tmp_path / "m.onnx")) as model:
        pass
    with pytest.raises(RuntimeError, match="inside its with-block"):
        model.predict(torch.rand(1, 1, 2, 2))
