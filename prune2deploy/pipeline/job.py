"""What every stage of a run is given, and what it leaves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from safetensors.torch import load_file
from torch import nn

from prune2deploy.channels import Plan, load_pruned, load_weights
from prune2deploy.devices import Devices
from prune2deploy.latency import Campaign
from prune2deploy.methods import METHODS
from prune2deploy.pipeline import folder as files
from prune2deploy.pipeline.folder import RunFolder
from prune2deploy.pipeline.inputs import Inputs
from prune2deploy.pipeline.pruning import Checkpoints, Pruned
from prune2deploy.pipeline.stages import StageRecord
from prune2deploy.recipe import Recipe


@dataclass
class Job:
    """A run while it goes on.

    records: of the stages that are finished. checkpoints: where the trainings of the stage at
    work stand. campaign: what was measured, once somebody asked. follower: another process does the
    same, and this one writes nothing.
    """

    recipe: Recipe
    folder: RunFolder
    inputs: Inputs
    devices: Devices
    records: dict[str, StageRecord] = field(default_factory=dict)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    campaign: Campaign | None = None
    follower: bool = False
    _original: nn.Module | None = None

    @property
    def weights_file(self) -> str:
        """Where the weights of the network are that comes of pruning."""
        return files.WEIGHTS if self.recipe.finetune is None else files.CUT_WEIGHTS

    def original(self) -> nn.Module:
        """The network that is pruned, in eval mode; not to be changed."""
        if self._original is None:
            if self.recipe.pretrain is not None:
                load_weights(self.inputs.model, self.folder.file(files.ORIGINAL_WEIGHTS))
            self._original = self.inputs.model.eval()
        return self._original

    def pruned(self, weights: str) -> Pruned:
        """The pruned network with the weights of one of the run's files, in eval mode."""
        plan = self.folder.file(files.PLAN)
        model = load_pruned(self.original(), self.folder.file(weights), plan).eval()
        masks = None
        if METHODS[self.recipe.prune.method].granularity == "weight":
            held = load_file(self.folder.file(files.MASKS))
            # The file has them by name; the report wants them as the network has its layers.
            masks = {name: held[name] for name, _ in model.named_parameters() if name in held}
        return Pruned(model, Plan.from_json(plan.read_text(encoding="utf-8")), masks=masks)

    def result(self, stage: str) -> dict[str, Any]:
        """What a finished stage found."""
        return self.records[stage].result


@dataclass(frozen=True)
class Done:
    """What a stage leaves: its files in the folder, and figures that JSON can hold.

    whole: False: it is run again next time, for some of it could not be done.
    """

    files: list[str] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)
    whole: bool = True
