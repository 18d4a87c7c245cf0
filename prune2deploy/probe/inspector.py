"""Which layers of an engine compute in which precision, from the engine inspector's JSON."""

from __future__ import annotations

import json
import re
from typing import Any

# Names of an element type: 8.5 writes sentences around it ("Channel major FP16 format where
# channel % 4 == 0"), 10 also single words ("Half"), 11 has a key of its own for it.
_TYPES = (
    ("int8", r"(?<!u)int8"),
    ("fp8", r"fp8|float8"),
    ("bf16", r"bf16|bfloat16"),
    ("fp16", r"fp16|half|float16"),
    ("fp32", r"fp32|float"),
    ("integer", r"int32|int64|bool|uint8"),
)
_TYPE_KEYS = ("Datatype", "DataType", "Format/Datatype", "Format")
# In a kernel's name, where dynamic shapes hide the formats: the first operand's type.
_TACTICS = (("int8", r"_i8i8|int8|imma"), ("fp16", r"f16f16|fp16|h884|h1688|h16816|hmma"))
# Data is moved or renamed there, and computed with nowhere.
_MOVING = r"reformat|^noop|^no-op|^constant$|^shuffle|^identity|^signal|^wait|shape|^cast$|^slice"
_COMPUTING = r"conv(?!ert)|gemm|matrixmultiply|matmul|fullyconnected|fully_connected|mha|^dla"


def inspection(text: str, precision: str) -> dict[str, Any]:
    """Return the share of an engine's layers in a precision.

    Args:
        text: JSON of `get_engine_information`, of an engine with detailed verbosity.
        precision: "fp32", "fp16" or "int8".

    Returns:
        layers: {"total", "asked", "share"} of all layers but those that only move data.
        computing: the same of convolutions and matrix products, in which the time goes.
        others: [{"name", "kind", "precision"}] of computing layers in another precision.
        precisions: {precision: number of computing layers}; "unknown" where nothing tells.
        inputs_outputs: names of the engine's tensors.
        sparse_layers: layers with a sparse kernel.
        "share" is None where there is no such layer.

    Raises:
        ValueError: the text is not such JSON, or has names of layers alone.
    """
    document = json.loads(text)
    layers = document.get("Layers") if isinstance(document, dict) else None
    if layers is None or not all(isinstance(layer, dict) for layer in layers):
        raise ValueError("the inspector gave no details of layers")
    described = [_described(layer) for layer in layers]
    working = [layer for layer in described if not re.search(_MOVING, layer["kind"].lower())]
    computing = [layer for layer in working if layer.pop("computing")]
    counts: dict[str, int] = {}
    for layer in computing:
        counts[layer["precision"]] = counts.get(layer["precision"], 0) + 1
    return {
        "layers": _share(working, precision),
        "computing": _share(computing, precision),
        "others": [layer for layer in computing if layer["precision"] != precision],
        "precisions": dict(sorted(counts.items())),
        "inputs_outputs": _tensor_names(document),
        "sparse_layers": sum(layer.get("HasSparseWeights") in (1, True) for layer in layers),
    }


def _share(layers: list[dict[str, Any]], precision: str) -> dict[str, Any]:
    asked = sum(layer["precision"] == precision for layer in layers)
    share = asked / len(layers) if layers else None
    return {"total": len(layers), "asked": asked, "share": share}


def _described(layer: dict[str, Any]) -> dict[str, Any]:
    name, kind = str(layer.get("Name", "?")), str(layer.get("LayerType", "?"))
    about = [kind, str(layer.get("ParameterType", ""))]
    if name.startswith("__myl"):  # a kernel that was generated: its kind is in its name alone
        about.append(name)
    return {
        "name": name,
        "kind": kind,
        "precision": _precision(layer),
        "computing": any(re.search(_COMPUTING, text.lower()) for text in about),
    }


def _precision(layer: dict[str, Any]) -> str:
    """The executed precision: of the first input, else of the weights, else of the kernel.

    Not of the key "Precision", which is what was requested.
    """
    inputs = [entry for entry in layer.get("Inputs") or [] if isinstance(entry, dict)]
    found = [_type_of(_type_text(entry)) for entry in inputs[:1]]
    weights = layer.get("Weights")
    if isinstance(weights, dict):
        found.append(_type_of(str(weights.get("Type", ""))))
    tactic = str(layer.get("TacticName", "")).lower()
    found += [kind for kind, pattern in _TACTICS if re.search(pattern, tactic)]
    return next((kind for kind in found if kind), "unknown")


def _type_text(tensor: dict[str, Any]) -> str:
    return next((str(tensor[key]) for key in _TYPE_KEYS if tensor.get(key)), "")


def _type_of(text: str) -> str | None:
    lowered = text.lower()
    if "n/a" in lowered:
        return None
    return next((kind for kind, pattern in _TYPES if re.search(pattern, lowered)), None)


def _tensor_names(document: dict[str, Any]) -> list[str]:
    """Up to 10 names under "Bindings", from 11 on objects under "I/O Tensors"."""
    entries = document.get("I/O Tensors", document.get("Bindings")) or []
    return [str(entry["Name"] if isinstance(entry, dict) else entry) for entry in entries]


def shortfall(found: dict[str, Any], precision: str, min_share: float) -> str | None:
    """Return what is wrong where too few layers have the precision, naming them; else None."""
    # An engine without convolutions is judged by what it has.
    which = "computing" if found["computing"]["total"] else "layers"
    share = found[which]["share"]
    if share is None or share >= min_share:
        return None
    named = [f"{layer['name']} ({layer['precision']})" for layer in found["others"]]
    more = f" and {len(named) - 10} more" if len(named) > 10 else ""
    what = "convolutions and matrix products" if which == "computing" else "layers"
    return (
        f"{precision} was asked for, and {found[which]['asked']} of {found[which]['total']} {what} "
        f"compute in it; expected a share of at least {min_share:g}. In other precisions: "
        f"{', '.join(named[:10]) or 'see the inspection'}{more}"
    )
