"""The sections of a recipe around pruning: model, data, export, profile, gates."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Discriminator, Field, Tag, field_validator

from prune2deploy.recipe.fields import DeviceNames, Section
from prune2deploy.recipe.sources import DATA_KINDS, DATA_NAMES, MODEL_KINDS, check_source
from prune2deploy.recipe.training import TrainSection
from prune2deploy.yaml_text import Key

Positive = Annotated[int, Field(ge=1)]


class ModelSection(Section):
    """Where the trained network comes from."""

    source: str = Field(
        description="torchvision:NAME, timm:NAME, cifar:resnet56 (also resnet20, 32, 44 and 110, "
        "preact_resnet164, vgg16_bn, vgg19_bn, densenet40), digits:convnet, or "
        "path/to/model.py:function."
    )
    args: dict[str, Any] = Field(
        default_factory=dict, description="Keyword arguments for the function that builds it."
    )
    checkpoint: Path | None = Field(
        default=None, description="Trained weights: .safetensors, .pt, .pth or .th."
    )
    input: tuple[Positive, Positive, Positive] = Field(
        description="Shape of one input: [channels, height, width]."
    )

    @field_validator("source")
    @classmethod
    def _source_has_a_known_form(cls, source: str) -> str:
        return check_source(source, "model source", kinds=MODEL_KINDS)


class Statistics(Section):
    """Mean and deviation per channel of images between 0 and 1."""

    mean: tuple[float, ...] = Field(description="Subtracted, one per channel.")
    std: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        description="Divided by, one per channel."
    )


class AugmentSection(Section):
    """Changes to training images; evaluation never uses them."""

    flip: bool = Field(default=False, description="Mirror half of the images.")
    crop_padding: int = Field(
        default=0, ge=0, description="Shift by up to this many pixels; 4 is usual for 32×32 images."
    )
    resized_crop: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Cut out a random part of at least this share of the image and resize it; "
        "usual for photographs, with 0.08 to 0.5.",
    )


def _name_or_statistics(value: object) -> str:
    return "statistics" if isinstance(value, (dict, Statistics)) else "name"


class DataSection(Section):
    """Where the images come from. Training, validation and test images never mix."""

    source: str = Field(
        description="imagefolder, digits, npz, torchvision:NAME (such as torchvision:CIFAR10), "
        "or path/to/data.py:function."
    )
    root: Path | None = Field(
        default=None, description="Folder of the images, or the .npz file; not used by digits."
    )
    args: dict[str, Any] = Field(
        default_factory=dict, description="Keyword arguments for the source."
    )
    val: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of the training images set aside for early stopping.",
    )
    test: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Share of all images set aside, where there is no test set.",
    )
    normalize: Annotated[
        Annotated[Literal["imagenet", "cifar10", "none"], Tag("name")]
        | Annotated[Statistics, Tag("statistics")],
        Discriminator(_name_or_statistics),
    ] = Field(
        default="imagenet",
        description="Statistics the network was trained with: imagenet, cifar10, none, "
        "or {mean: [...], std: [...]}.",
    )
    augment: AugmentSection = Field(
        default=AugmentSection(), description="Changes to training images."
    )
    batch_size: int = Field(default=128, ge=1, description="Images per batch.")
    workers: int | None = Field(
        default=None, ge=0, description="Processes that read images; left out: chosen for the data."
    )
    on_bad_image: Literal["fail", "skip"] = Field(
        default="fail",
        description="What an unreadable image does: stop with its name, or be left out.",
    )
    resize: int | None = Field(
        default=None, ge=1, description="Shorter side before the centre crop to the model's input."
    )
    cache: Literal["auto", "memory", "disk"] = Field(
        default="auto",
        description="memory: decode every image once; disk: read again each epoch; "
        "auto: memory if they are small.",
    )

    @field_validator("source")
    @classmethod
    def _source_has_a_known_form(cls, source: str) -> str:
        return check_source(source, "data source", DATA_NAMES, DATA_KINDS)

    def misfits(self) -> list[tuple[Key, str]]:
        """Root, statistics, and what is left to train on."""
        problems: list[tuple[Key, str]] = []
        if self.source == "digits" and self.root is not None:
            problems.append((("root",), "is not used by 'digits', which is built in; remove it"))
        kind = self.source.partition(":")[0]
        if self.root is None and kind in ("imagefolder", "npz", "torchvision"):
            wanted = "the .npz file" if kind == "npz" else "the folder of the images"
            problems.append(
                (("root",), f"missing; it names {wanted}. Write it, or add --set data.root=PATH")
            )
        if isinstance(self.normalize, Statistics):
            found = len(self.normalize.mean), len(self.normalize.std)
            if found[0] != found[1]:
                problems.append(
                    (
                        ("normalize",),
                        f"mean and std should be equally long, found {found[0]} and {found[1]}",
                    )
                )
        if self.val + (self.test or 0) >= 1:
            problems.append(
                (("val",), f"with test leaves no training images: {self.val:g} + {self.test:g}")
            )
        return problems


class OnnxSection(Section):
    """The ONNX file."""

    opset: int | None = Field(
        default=None, ge=13, description="ONNX operator set; left out: chosen by the exporter."
    )
    batch: int = Field(default=1, ge=1, description="Images per run, fixed in the file.")
    simplify: bool = Field(default=True, description="Run onnx-simplifier over the file.")
    tolerance: float = Field(
        default=1e-4, gt=0, description="Largest relative difference from PyTorch that is accepted."
    )


class Int8Section(Section):
    """How the int8 file is made."""

    calibration: Literal["minmax", "percentile", "entropy"] = Field(
        default="percentile",
        description="Where the range of an activation ends: at the largest value seen, where all "
        "but one of 10,000 end, or where the distribution changes least.",
    )
    images: int = Field(
        default=512, ge=1, description="Training images that ranges are taken from."
    )
    allowed_drop: float | None = Field(
        default=1.0,
        ge=0,
        description="Loss of the metric against fp32 on validation images (training images where "
        "there are none) up to which int8 is good enough; layers that lose most stay fp32 until "
        "it is. Empty: no limit.",
    )
    rest: Literal["fp32", "fp16"] = Field(
        default="fp32",
        description="What layers and operators outside int8 compute in; fp16 is for TensorRT.",
    )
    finetune: TrainSection | None = Field(
        default=None,
        description="Quantization-aware fine-tuning: the pruned network is trained as int8 "
        "computes it, and quantized once more; what it makes worse on validation (or training) "
        "images is not used. Batch norms are folded, so lr should be small, such as 0.0001. "
        "precision: auto is fp32 here.",
    )
    finetune_when: Literal["needed", "always"] = Field(
        default="needed",
        description="needed: only if int8 loses more than allowed_drop without it.",
    )

    def misfits(self) -> list[tuple[Key, str]]:
        """What decides whether to train."""
        if self.finetune is None and self.finetune_when != "needed":
            return [(("finetune_when",), "is for a finetune beside it; write one, or remove it")]
        if self.finetune is not None and self.finetune_when == "needed" and not self.limited:
            text = "is needed when int8 loses more than allowed_drop, which is empty. Write always"
            return [(("finetune_when",), text)]
        return []

    @property
    def limited(self) -> bool:
        """Whether int8 may lose so much and no more."""
        return self.allowed_drop is not None


class EnginesSection(Section):
    """TensorRT engines, built on the devices that run them."""

    on: DeviceNames = Field(
        default=(),
        description="Devices to build on besides those of profile.on that have a TensorRT runtime.",
    )
    dla: int | None = Field(
        default=None, ge=0, description="Core of a Jetson's deep learning accelerator."
    )
    workspace_mb: int | None = Field(
        default=None, ge=1, description="Memory that building may use; left out: all."
    )
    min_share: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Share of convolutions and matrix products that must compute in the precision "
        "of their file; a build below it fails.",
    )
    tolerance: dict[Literal["fp32", "fp16", "int8"], Annotated[float, Field(gt=0)]] = Field(
        default={"fp32": 1e-3, "fp16": 2e-2, "int8": 1e-1},
        description="Largest difference of an engine's outputs from ONNX Runtime's, over the "
        "largest output, by precision; a larger one fails the run.",
    )
    min_agreement: float = Field(
        default=0.98,
        ge=0,
        le=1,
        description="Share of test images that engine and ONNX Runtime must answer alike.",
    )


class ExportSection(Section):
    """What is written for the device."""

    onnx: OnnxSection = Field(default=OnnxSection(), description="The ONNX file.")
    precision: tuple[Literal["fp32", "fp16", "int8"], ...] = Field(
        default=("fp32",),
        min_length=1,
        description="One precision or several. fp32 is always written; fp16 and int8 are made "
        "from it.",
    )
    int8: Int8Section = Field(default=Int8Section(), description="How the int8 file is made.")
    engines: EnginesSection = Field(
        default=EnginesSection(), description="TensorRT engines, where a device has that runtime."
    )

    @field_validator("precision", mode="before")
    @classmethod
    def _one_precision_is_a_list_too(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    def misfits(self) -> list[tuple[Key, str]]:
        """int8's training without int8."""
        if self.int8.finetune is not None and "int8" not in self.precision:
            return [(("int8", "finetune"), "is for int8, and export.precision does not name it")]
        return []

    @property
    def lower(self) -> tuple[str, ...]:
        """What is made beside fp32."""
        return tuple(dict.fromkeys(one for one in self.precision if one != "fp32"))


class ProfileSection(Section):
    """Where and how the latency is measured."""

    on: DeviceNames = Field(
        default=("local",),
        min_length=1,
        description="Devices to measure on: names of devices.yaml, or 'local', this machine.",
    )
    threads: int | None = Field(
        default=None, ge=1, description="Threads of the runtime; left out: as devices.yaml says."
    )
    min_time_s: float = Field(
        default=5.0, gt=0, description="Seconds of timed runs per model, at the least."
    )
    batch: int = Field(default=1, ge=1, description="Images per run; the ONNX file's batch.")
    retries: int = Field(
        default=1,
        ge=0,
        description="How often a tainted measurement is tried again; the least tainted is kept.",
    )
    allow_tainted: bool = Field(
        default=False, description="Whether gates may hold by figures that are tainted."
    )

    @field_validator("on")
    @classmethod
    def _devices_are_named_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        # Whether they exist, a run asks this machine's devices.yaml; a recipe is for any machine.
        if len(set(names)) != len(names):
            raise ValueError(f"names a device twice: {', '.join(names)}")
        return names


class LogSection(Section):
    """Who else keeps loss, learning rate and figures of every epoch, and what the run came to."""

    tensorboard: bool = Field(
        default=False, description="Write events to the folder tensorboard of the run."
    )
    mlflow: str | None = Field(
        default=None,
        description="URI of an MLflow server or store, such as http://localhost:5000. Name and "
        "password belong in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.",
    )

    @field_validator("mlflow")
    @classmethod
    def _no_password_in_a_recipe(cls, uri: str | None) -> str | None:
        if uri is not None and urlsplit(uri).password is not None:
            raise ValueError(
                "holds a password, which would be written into the run's folder; put it into the "
                "environment variable MLFLOW_TRACKING_PASSWORD"
            )
        return uri


class GatesSection(Section):
    """What the result must hold; if one fails, the exit code is 3 and everything is kept."""

    precision: Literal["fp32", "fp16", "int8"] | None = Field(
        default=None,
        description="Which of the pruned network's files the gates look at; left out: the last "
        "one of export.precision.",
    )
    max_accuracy_drop: float | None = Field(
        default=None,
        ge=0,
        description="Largest loss of accuracy on the test images, in percentage points.",
    )
    min_speedup: float | None = Field(
        default=None, gt=0, description="Smallest speed-up of the pruned network over the original."
    )
    max_latency_ms: float | None = Field(
        default=None, gt=0, description="Largest median latency in milliseconds."
    )
    max_size_mb: float | None = Field(
        default=None,
        gt=0,
        description="Largest size of the ONNX file, in units of 1,000,000 bytes.",
    )
