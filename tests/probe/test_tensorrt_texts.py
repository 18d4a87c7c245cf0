"""What TensorRT writes: the inspector's JSON of each version, and its messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from engine_models import write_model
from inspector_texts import inspector_text
from tensorrt_names import VERSIONS

from prune2deploy.probe.inspector import inspection, shortfall
from prune2deploy.probe.job import Refusal
from prune2deploy.probe.onnx_types import held_precision
from prune2deploy.probe.tensorrt_versions import meaning, said


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def layers(*entries: dict[str, Any]) -> str:
    return json.dumps({"Layers": list(entries), "Bindings": []})


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("version", VERSIONS)
def test_each_version_says_it_in_its_way(version: str, precision: str) -> None:
    found = inspection(inspector_text(numbers(version), precision), precision)
    assert found["computing"] == {"total": 1, "asked": 1, "share": 1.0}
    assert found["layers"] == {"total": 2, "asked": 2, "share": 1.0}  # not the one that moves data
    assert found["precisions"] == {precision: 1}
    assert found["inputs_outputs"] == ["x", "y"]
    assert found["sparse_layers"] == 0
    for other in {"fp32", "fp16", "int8"} - {precision}:
        found = inspection(inspector_text(numbers(version), precision), other)
        assert found["computing"]["share"] == 0.0
        assert [layer["precision"] for layer in found["others"]] == [precision]


CONV = {"Name": "conv", "LayerType": "CaskConvolution", "ParameterType": "Convolution"}
HIDDEN = {"Name": "a", "Format/Datatype": "N/A due to dynamic shapes"}


@pytest.mark.parametrize(
    ("layer", "precision"),
    [
        # Weights, and then the kernel's name, tell where shapes hide the formats.
        ({**CONV, "Inputs": [HIDDEN], "Weights": {"Type": "Half", "Count": 9}}, "fp16"),
        ({**CONV, "Inputs": [HIDDEN], "TacticName": "sm80_xmma_fprop_i8i8_i8i32_f32"}, "int8"),
        ({**CONV, "Inputs": [HIDDEN], "TacticName": "sm87_xmma_f16f16_f16f16_f16"}, "fp16"),
        ({**CONV, "Inputs": [HIDDEN]}, "unknown"),
        # The first input decides: int8 in and fp16 out is an int8 convolution.
        (
            {
                **CONV,
                "Inputs": [{"Format/Datatype": "Thirty-two wide channel vectorized Int8 format"}],
                "Outputs": [{"Format/Datatype": "Half"}],
                "Weights": {"Type": "Int8", "Count": 9},
            },
            "int8",
        ),
        # "Precision" is what was requested.
        ({**CONV, "Precision": "Half", "Inputs": [{"Format/Datatype": "Float"}]}, "fp32"),
        ({**CONV, "Inputs": [{"Format": "Row major linear", "DataType": "Half"}]}, "fp16"),
        ({**CONV, "Inputs": [{"Format/Datatype": "BFloat16"}]}, "bf16"),
        ({**CONV, "Inputs": [{"Format/Datatype": "UInt8"}]}, "integer"),
        ({**CONV, "LayerType": "gemm", "Inputs": [{"Format/Datatype": "Half"}]}, "fp16"),
        (
            {"Name": "__myl_FcAdd_0", "LayerType": "gemm", "Inputs": [{"Format/Datatype": "Half"}]},
            "fp16",
        ),
    ],
)
def test_the_executed_precision_of_a_layer(layer: dict[str, Any], precision: str) -> None:
    assert inspection(layers(layer), "fp32")["precisions"] == {precision: 1}


def test_only_what_computes_counts_where_time_goes() -> None:
    half, single = {"Format/Datatype": "Half"}, {"Format/Datatype": "Float"}
    text = layers(
        {**CONV, "Name": "c1", "Inputs": [half], "HasSparseWeights": 1},
        {**CONV, "Name": "c2", "Inputs": [single]},
        {"Name": "__myl_ConvertMul", "LayerType": "kgen", "Inputs": [single]},
        {"Name": "pool", "LayerType": "CaskPooling", "Inputs": [half]},
        {"Name": "copy", "LayerType": "Reformat", "Inputs": [single]},
    )
    found = inspection(text, "fp16")
    assert found["computing"] == {"total": 2, "asked": 1, "share": 0.5}
    assert found["layers"] == {"total": 4, "asked": 2, "share": 0.5}
    assert found["sparse_layers"] == 1
    assert shortfall(found, "fp16", 0.5) is None
    wrong = shortfall(found, "fp16", 0.6)
    assert wrong is not None
    assert "1 of 2 convolutions" in wrong
    assert "c2 (fp32)" in wrong


def test_an_engine_without_convolutions_is_judged_by_its_layers() -> None:
    single = {"Name": "pool", "LayerType": "CaskPooling", "Inputs": [{"Format/Datatype": "Float"}]}
    found = inspection(layers(single), "fp16")
    assert found["computing"]["share"] is None  # not 0: there is none
    assert "0 of 1 layers" in (shortfall(found, "fp16", 0.5) or "")
    assert shortfall(inspection(layers(), "fp16"), "fp16", 1.0) is None


def test_many_wrong_layers_are_not_all_named() -> None:
    single = {"Format/Datatype": "Float"}
    many = [{**CONV, "Name": f"c{i}", "Inputs": [single]} for i in range(12)]
    assert "c9 (fp32) and 2 more" in (
        shortfall(inspection(layers(*many), "fp16"), "fp16", 0.5) or ""
    )


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"Layers": ["conv", "pool"]}'])
def test_an_inspector_without_details(text: str) -> None:
    with pytest.raises(ValueError, match=r"no details|Expecting"):
        inspection(text, "fp32")


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            "[E] 1: [runtime.cpp::parsePlan::314] Error Code 1: Serialization (The engine plan "
            "file is not compatible with this version of TensorRT, expecting library version "
            "8.5.2.2 got 8.4.1.5, please rebuild.",
            "built by TensorRT 8.4.1.5 and this is 8.5.2.2;",
        ),
        (
            "The engine plan file is generated on an incompatible device, expecting compute 8.7 "
            "got compute 7.2, please rebuild.",
            "on a GPU of compute capability 7.2 and this one has 8.7",
        ),
        (
            "Error Code 1: Serialization (Serialization assertion header.magicTag == "
            "kEXPECTED_MAGIC_TAG failed.Trying to load an engine created with incompatible "
            "serialization version (1633903201 != 1953657974).",
            "the file is no engine",
        ),
        ("Target GPU SM 87 is not supported by this TensorRT release.", "the one that JetPack"),
        ("(cudaError 35: CUDA driver version is insufficient for CUDA runtime)", "no NVIDIA driv"),
    ],
)
def test_known_messages_are_put_into_words(message: str, words: str) -> None:
    assert words in (meaning(["something else", message]) or "")
    assert words in said([message])
    assert "it said" in said([message])


def test_other_messages_are_passed_on() -> None:
    assert meaning(["out of memory"]) is None
    assert said(["first", "a", "b", "out of\n  memory"]) == "a | b | out of memory"
    assert said([]) == "the library gave no reason"


@pytest.mark.parametrize("held", ["fp32", "fp16", "int8"])
def test_a_file_tells_its_precision(held: str, tmp_path: Path) -> None:
    content = write_model(tmp_path / "m.onnx", held).read_bytes()
    found = held_precision(content)
    assert found == {"precision": held, "half_tensors": held == "fp16"}


def test_weights_in_constants_count_and_few_numbers_do_not_decide(tmp_path: Path) -> None:
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(write_model(tmp_path / "m.onnx", "fp16"))
    weight = model.graph.initializer.pop(0)
    model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=weight))
    half = {"precision": "fp16", "half_tensors": True}
    assert held_precision(model.SerializeToString()) == half
    for at in range(5):  # more tensors than there are of the other kind, but fewer numbers
        scalar = numpy_helper.from_array(onnx.numpy_helper.to_array(weight)[0, 0, 0, :1] * 1.0)
        scalar.data_type = onnx.TensorProto.FLOAT
        scalar.raw_data = b"\0\0\0\0"
        scalar.name = f"s{at}"
        model.graph.initializer.append(scalar)
    assert held_precision(model.SerializeToString()) == half


@pytest.mark.parametrize(
    "content", [b"", b"\0", b"hello", b"\x3a\xff\xff\xff\xff\x0f", b"\xff" * 99]
)
def test_what_is_not_onnx(content: bytes) -> None:
    with pytest.raises(Refusal, match="is not ONNX"):
        held_precision(content)
