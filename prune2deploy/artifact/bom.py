"""A CycloneDX bill of materials of a trained model (ML-BOM)."""

from __future__ import annotations

import json
import uuid
from typing import Any

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6

from prune2deploy.artifact.manifest import Manifest

_NAMESPACE = uuid.UUID("6c1ba3a4-2b3e-5d0e-9d2f-0f7b0c2f6b11")


def bill_of_materials(manifest: Manifest, task: str, method: str, labels: int | None) -> str:
    """Return the document, CycloneDX 1.6 JSON; the same for the same manifest.

    Its library writes all but the model card, which it does not know yet.

    Args:
        manifest: without this file in its list. task: of the recipe. method: of pruning.
        labels: number of classes; None: none are known.
    """
    model = Component(
        name=manifest.name,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        version=manifest.files["model.onnx"].sha256[:16],
        bom_ref="model",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=manifest.files["model.onnx"].sha256)],
    )
    data = Component(
        name=str(manifest.data.get("source", "data")),
        type=ComponentType.DATA,
        version=str(manifest.data.get("fingerprint") or "unknown"),
        bom_ref="data",
    )
    tools = [
        Component(name=name, type=ComponentType.LIBRARY, version=version, bom_ref=f"pkg:{name}")
        for name, version in sorted(manifest.versions.items())
    ]
    bom = Bom(serial_number=uuid.uuid5(_NAMESPACE, manifest.model_dump_json()))
    bom.metadata.component = model
    for one in (data, *tools):
        bom.components.add(one)
    bom.register_dependency(model, [data, *tools])
    document: dict[str, Any] = json.loads(JsonV1Dot6(bom).output_as_string())
    # When it was made would be all that two runs of the same inputs differ in.
    del document["metadata"]["timestamp"]
    document["metadata"]["component"]["modelCard"] = _card(manifest, task, method, labels)
    return json.dumps(document, indent=2, sort_keys=True) + "\n"


def _card(manifest: Manifest, task: str, method: str, labels: int | None) -> dict[str, Any]:
    shape = "x".join(map(str, manifest.input_shape))
    outputs = "scores" if labels is None else f"scores of {labels} classes"
    figures = [
        {"type": name, "value": f"{value:.6g}", "slice": slice_name}
        for slice_name, metrics in sorted(manifest.metrics.items())
        for name, value in sorted(metrics.items())
    ]
    return {
        "modelParameters": {
            "task": task,
            "architectureFamily": str(manifest.model["source"]),
            "datasets": [{"ref": "data"}],
            "inputs": [{"format": f"float32 {shape}, NCHW"}],
            "outputs": [{"format": f"float32, {outputs}"}],
        },
        "quantitativeAnalysis": {"performanceMetrics": figures},
        "considerations": {
            "technicalLimitations": [
                f"Pruned with {method}; it computes in {manifest.precision}. Figures are of the "
                "test images of the data set that is named here, and of no others."
            ]
        },
    }
