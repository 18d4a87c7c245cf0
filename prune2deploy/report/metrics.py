"""metrics.json: everything a run measured, in one schema.

documentation.py makes docs/metrics.md from the descriptions below.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 2


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Stage(_Record):
    """The network at one point of the run, judged on the test images."""

    stage: str = Field(
        description="original, cut (after the last cut) or zeroed (single weights), finetuned."
    )
    metrics: dict[str, float] = Field(
        description="What the task measures; accuracies in percent, for example top1 and top5."
    )


class NetworkFigures(_Record):
    """One of the two networks, as it is deployed: batch norms folded, in one ONNX file."""

    metrics: dict[str, float] = Field(description="On the test images, in fp32 PyTorch.")
    params: int = Field(description="Trainable parameters before batch norms are folded.")
    macs: int = Field(
        description="Multiply-accumulates of convolutions and matrix products for one sample."
    )
    onnx_bytes: int = Field(description="Size of the ONNX file.")
    unfolded_batch_norms: int = Field(
        description="Batch norms left in the ONNX file because nothing before them could take them."
    )
    parity: ParityFigures = Field(description="The ONNX file against PyTorch.")


class ParityFigures(_Record):
    """How far ONNX Runtime and PyTorch agree on the test images."""

    max_abs_difference: float = Field(description="Largest difference of two output numbers.")
    max_rel_difference: float = Field(
        description="The same over the largest absolute output number of the batch."
    )
    agreement: float | None = Field(description="Share of samples answered alike, 0 to 1.")
    samples: int = Field(description="Test samples compared.")


class PrecisionFigures(_Record):
    """The pruned network in another precision."""

    precision: str = Field(description="fp16 or int8.")
    file: str = Field(description="Its ONNX file in the folder.")
    metrics: dict[str, float] = Field(description="On the test images, in ONNX Runtime.")
    onnx_bytes: int = Field(description="Size of the ONNX file.")
    layers: dict[str, int] = Field(
        description="Convolutions and matrix products by the precision they compute in."
    )
    kept: dict[str, str] = Field(description="Layers that stay in fp32, and why.")
    without_training: dict[str, float] | None = Field(
        default=None,
        description="On the test images, had it not been trained for; null: it was not, the "
        "figures are those of quantization after training.",
    )
    max_rel_difference: float = Field(
        description="Largest difference from the fp32 file over the largest output of the batch."
    )
    agreement: float | None = Field(
        description="Share of test images with the same class as in fp32; null: no classes."
    )


class EngineFigures(_Record):
    """A TensorRT engine of the pruned network."""

    device: str = Field(description="Where it was built, and runs.")
    file: str = Field(description="Its copy in the folder.")
    precision: str = Field(description="fp32, fp16 or int8, as its ONNX file says.")
    runtime: str = Field(description="tensorrt or tensorrt_rtx.")
    version: str = Field(description="Of that library; no other can be relied on to open it.")
    gpu: str | None = Field(description="That it was built for; null: portable.")
    bytes: int = Field(description="Its size.")
    share: float | None = Field(
        description="Share of its convolutions and matrix products that compute in the "
        "precision, as the library's inspector has it; null: that could not be read."
    )
    samples: int = Field(description="Test images on which it was compared.")
    agreement: float | None = Field(
        description="Share of them answered as ONNX Runtime answers with its file, 0 to 1."
    )
    agreement_with_torch: float | None = Field(
        description="Share of them answered as the pruned network does in PyTorch."
    )
    max_rel_difference: float | None = Field(
        description="Largest difference from ONNX Runtime over the largest output."
    )
    not_judged: str | None = Field(description="Why it could not be compared; null: it was.")
    warnings: list[str] = Field(description="What TensorRT warned of.")


class GroupChoice(_Record):
    """One group of coupled channels."""

    group: str = Field(description="First layer that produces the channels.")
    channels: int = Field(description="Channels before.")
    kept: int = Field(description="Channels after.")


class LayerWeights(_Record):
    """The weights of one layer, where single weights are zeroed."""

    layer: str = Field(description="Name of the parameter.")
    weights: int = Field(description="How many it has.")
    kept: int = Field(description="How many are not zero in the end.")


class FrozenChannels(_Record):
    """Channels that could not be cut."""

    layer: str = Field(description="Layer that produces them.")
    channels: int = Field(description="How many.")
    reason: str = Field(description="Why they stay.")


class Pruning(_Record):
    """What was asked of the pruning and what it did."""

    method: str = Field(description="Name of the method.")
    options: dict[str, Any] = Field(description="Its options, defaults included.")
    budget: dict[str, Any] = Field(description="Unit and the share to keep.")
    kept_share: dict[str, float] = Field(
        description="Share of MACs and of parameters kept, zeros counted as the rest; of weights "
        "that are not zero, where single weights are zeroed."
    )
    groups: list[GroupChoice] = Field(
        description="Every group of coupled channels; empty where single weights are zeroed."
    )
    weights: list[LayerWeights] = Field(
        default=[],
        description="Every layer whose single weights may be zeroed; empty where channels are cut.",
    )
    frozen: list[FrozenChannels] = Field(description="What could not be cut, and why.")
    unknown_ops: dict[str, int] = Field(
        description="Operators without a rule, and how often they were met; they freeze channels."
    )
    notes: list[str] = Field(description="What the planner had to say.")


class SearchFigures(_Record):
    """A search for the widths, and which network of its front was finished."""

    metric: str = Field(description="What the networks were judged by, before any training.")
    judged_on: str = Field(description="Split that they were judged on: val or train.")
    images: int = Field(description="How many images of it.")
    cost: str = Field(description="The other objective: macs, params or latency.")
    unit: str = Field(description="Its unit.")
    device: str | None = Field(description="Whose latency it is; null: it is none.")
    measured: bool = Field(description="Whether every network was timed, or its time predicted.")
    tried: int = Field(description="Networks that were tried.")
    front: list[FrontFigures] = Field(description="Those that no other beats in both.")
    point: int = Field(description="Number of the one that was finished.")
    reason: str = Field(description="Why it was that one.")


class FrontFigures(_Record):
    """One network of the front."""

    point: int = Field(description="Its number, which --point takes.")
    accuracy: float = Field(description="The metric before any training.")
    cost: float = Field(description="In the search's unit.")
    macs: int = Field(description="Multiply-accumulates.")
    params: int = Field(description="Parameters.")


class GateResult(_Record):
    """One gate of the recipe."""

    name: str = Field(description="Key of the gate in the recipe.")
    held: bool = Field(description="Whether the measurement shows the result within the limit.")
    found: float | None = Field(
        description="The figure that was compared; null where a device was not measured, or "
        "the samples give no interval."
    )
    limit: float = Field(description="The limit in the recipe.")
    note: str | None = Field(
        default=None, description="Why it did not hold whatever the figure: not measured, tainted."
    )


class LatencyFailure(_Record):
    """A device that could not be measured; the others were."""

    device: str = Field(description="Its name.")
    message: str = Field(description="What went wrong, and what to do.")


class FileRecord(_Record):
    """One file of the run's folder."""

    sha256: str = Field(description="Of its content.")
    bytes: int = Field(description="Its size.")


class Metrics(_Record):
    """The document."""

    schema_version: int = Field(default=SCHEMA_VERSION, description="Of this document.")
    name: str = Field(description="Name of the run.")
    created: str = Field(description="When the run ended, ISO 8601 with time zone.")
    versions: dict[str, str] = Field(description="prune2deploy, Python, torch, onnxruntime, …")
    machine: dict[str, Any] = Field(
        description="CPU, its features, cores, memory and the threads used; null: unknown."
    )
    seed: int = Field(description="Seed of everything that is random.")
    model: dict[str, Any] = Field(description="Source, arguments, checkpoint and its sha256.")
    data: dict[str, Any] = Field(description="Source, images per split, statistics.")
    metric: str = Field(description="The metric that gates look at.")
    higher_is_better: bool = Field(description="Its direction.")
    stages: list[Stage] = Field(description="The metric over the run.")
    before: NetworkFigures = Field(description="The network as it was given (or pretrained).")
    after: NetworkFigures = Field(description="The pruned network.")
    precisions: list[PrecisionFigures] = Field(
        default=[], description="The pruned network in lower precisions."
    )
    engines: list[EngineFigures] = Field(
        default=[], description="TensorRT engines, where a device has that runtime."
    )
    gated_precision: str = Field(
        default="fp32", description="Which of the pruned network's files the gates look at."
    )
    pruning: Pruning = Field(description="What was cut.")
    search: SearchFigures | None = Field(
        default=None, description="The search for the widths; null: there was none."
    )
    latency: list[dict[str, Any]] = Field(
        description="Per device: conditions, latencies with 95 % intervals in ms, paired "
        "speed-ups with 95 % intervals, and the reasons why they are tainted, if any. Every sample "
        "is in latency/DEVICE.json."
    )
    latency_failures: list[LatencyFailure] = Field(
        default=[], description="Devices of the recipe that could not be measured."
    )
    gates: list[GateResult] = Field(description="Gates, in the order of the recipe.")
    seconds: dict[str, float] = Field(description="Wall time of each stage.")
    files: dict[str, FileRecord] = Field(description="Files of the run's folder, by path in it.")


NetworkFigures.model_rebuild()
