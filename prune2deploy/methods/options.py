"""The options of each method, written inline under `prune` in a recipe.

Kept apart from the methods themselves so that checking a recipe imports no torch.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class MethodOptions(BaseModel):
    """Base of a method's options; as it stands, for a method that has none."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NetworkSlimmingOptions(MethodOptions):
    """Options of network slimming."""

    penalty: float = Field(
        default=1e-4,
        ge=0,
        description="Weight of the L1 penalty on batch-norm scales; the paper's code uses 1e-4 "
        "for VGG and 1e-5 for ResNet and DenseNet.",
    )


class CCPruneOptions(MethodOptions):
    """Options of CCPrune."""

    weight_penalty: float = Field(
        default=1e-5, ge=0, description="Weight of the L1 penalty on convolution weights."
    )
    gamma_penalty: float = Field(
        default=1e-4, ge=0, description="Weight of the L1 penalty on batch-norm scales."
    )
    combine: Literal["product", "sum"] = Field(
        default="product",
        description="How a filter's size and its batch-norm scale become one score.",
    )
    layer_norm: bool = Field(
        default=True,
        description="Divide scores by their layer's largest, so that layers can be compared.",
    )


class ChipOptions(MethodOptions):
    """Options of CHIP."""

    images: int = Field(
        default=640, ge=1, description="Training images whose feature maps are scored."
    )
    batch_size: int = Field(default=128, ge=1, description="Images per forward pass while scoring.")
