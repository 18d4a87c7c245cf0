"""Which layers count as the same kind."""

from __future__ import annotations

from typing import Any

import pytest
from onnx import helper

from prune2deploy.latency.staircase.specs import LayerSpec, spec_of


def node(op: str = "Conv", **attributes: Any) -> Any:
    return helper.make_node(op, ["x", "w"], ["y"], name="any", **attributes)


def spec(image: list[int], weight: list[int], op: str = "Conv", **attributes: Any) -> LayerSpec:
    found = spec_of(node(op, **attributes), image, weight, "float32")
    assert found is not None
    return found


def test_a_convolution_is_what_it_computes_without_its_widths() -> None:
    given = {"kernel_shape": [3, 3], "pads": [1] * 4, "strides": [2, 2]}
    one = spec([1, 16, 14, 14], [32, 16, 3, 3], **given)
    other = spec([1, 5, 14, 14], [7, 5, 3, 3], **given)
    assert one == other
    assert one.key == other.key == "conv 3x3 on 14x14 stride 2x2 pad 1 float32"
    assert one.group_width == 0


def test_left_out_attributes_are_their_defaults() -> None:
    bare = spec([1, 4, 8, 8], [4, 4, 1, 1])
    full = spec(
        [1, 4, 8, 8],
        [4, 4, 1, 1],
        kernel_shape=[1, 1],
        strides=[1, 1],
        pads=[0] * 4,
        dilations=[1, 1],
        group=1,
    )
    assert bare == full
    assert bare.key == "conv 1x1 on 8x8 float32"


@pytest.mark.parametrize(
    ("image", "weight", "attributes"),
    [
        ([1, 8, 28, 28], [8, 8, 3, 3], {"pads": [1] * 4}),  # another image
        ([1, 8, 14, 14], [8, 8, 5, 5], {"pads": [1] * 4}),
        ([1, 8, 14, 14], [8, 8, 3, 3], {"pads": [0] * 4}),
        ([1, 8, 14, 14], [8, 8, 3, 3], {"pads": [1, 1, 0, 0]}),
        ([1, 8, 14, 14], [8, 8, 3, 3], {"pads": [1] * 4, "strides": [2, 2]}),
        ([1, 8, 14, 14], [8, 8, 3, 3], {"pads": [1] * 4, "dilations": [2, 2]}),
        ([1, 8, 14, 14], [8, 1, 3, 3], {"pads": [1] * 4, "group": 8}),
        ([1, 8, 14, 14], [8, 4, 3, 3], {"pads": [1] * 4, "group": 2}),
        ([2, 8, 14, 14], [8, 8, 3, 3], {"pads": [1] * 4}),
    ],
)
def test_whatever_changes_the_time_changes_the_key(
    image: list[int], weight: list[int], attributes: dict[str, Any]
) -> None:
    usual = spec([1, 8, 14, 14], [8, 8, 3, 3], pads=[1] * 4)
    other = spec(image, weight, **attributes)
    assert other != usual
    assert other.key != usual.key


def test_depthwise_and_grouped_are_told_apart() -> None:
    depthwise = spec([1, 8, 14, 14], [8, 1, 3, 3], group=8)
    assert (depthwise.kind, depthwise.group_width) == ("depthwise", 0)
    assert depthwise == spec([1, 4, 14, 14], [4, 1, 3, 3], group=4)
    grouped = spec([1, 8, 14, 14], [16, 4, 3, 3], group=2)
    assert (grouped.kind, grouped.group_width) == ("grouped", 4)
    assert grouped == spec([1, 12, 14, 14], [24, 4, 3, 3], group=3)
    # Two filters on each channel are no depthwise convolution as the table has it.
    assert spec([1, 8, 14, 14], [16, 1, 3, 3], group=8).kind == "grouped"


def test_a_linear_layer_is_known_by_its_rows() -> None:
    gemm = spec([1, 64], [10, 64], "Gemm", transB=1)
    assert gemm == spec([1, 32], [32, 10], "MatMul")
    assert gemm.key == "linear rows1 float32"
    assert spec([2, 49, 32], [32, 64], "MatMul").rows == 98


def test_what_is_no_such_layer_is_none() -> None:
    same = node(auto_pad="SAME_UPPER")
    assert spec_of(same, [1, 8, 14, 14], [8, 8, 3, 3], "float32") is None
    assert spec_of(node("MatMul"), [1, 4, 8], [4, 8, 8], "float32") is None
    assert spec_of(node("Add"), [1, 8], [1, 8], "float32") is None


def test_a_change_of_layout_is_known_by_its_image() -> None:
    one, other = spec([1, 8, 6, 5], [16, 8, 3, 3]), spec([1, 24, 6, 5], [4, 24, 1, 1])
    assert one.layout == other.layout
    assert one.layout.key == "layout on 6x5 float32"
    assert one.layout.tied
    assert spec([2, 8, 6, 5], [16, 8, 3, 3]).layout.key != one.layout.key
