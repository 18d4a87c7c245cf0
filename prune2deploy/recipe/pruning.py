"""The section `prune`: by which method, how much, and when."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from prune2deploy.errors import nearest_name_hint
from prune2deploy.methods import METHODS, Method
from prune2deploy.methods.base import Unit
from prune2deploy.recipe.fields import DeviceNames, Section, Share
from prune2deploy.recipe.searching import SearchSection
from prune2deploy.recipe.training import TrainSection
from prune2deploy.yaml_text import Key

UNITS = get_args(Unit)
TIMES = ("latency_ms", "speedup")
LIMITS = ("macs", "params")
"""Units that may stand beside a time, as limits."""
SIZES = ("size_mb", "memory_mb")
"""What is measured of a network beside its time, and may be limited there."""


def _listed(names: Sequence[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def _share_or_table(value: object) -> str:
    return "table" if isinstance(value, dict) else "share"


def one_unit(found: str) -> str:
    """What is said of a budget that names too many units, or none."""
    return (
        f"should name exactly one of {_listed(UNITS)}, found {found}. "
        "To replace it on the command line: --set 'prune.budget={params: 0.5}'"
    )


class BudgetSection(Section):
    """How much of the original is kept, in one unit; a time may have limits beside it."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 6})

    macs: Share | None = Field(default=None, description="Share of the multiply-accumulates kept.")
    params: Share | None = Field(default=None, description="Share of the parameters kept.")
    channels: (
        Annotated[
            Annotated[Share, Tag("share")]
            | Annotated[dict[str, Share], Field(min_length=1), Tag("table")],
            Discriminator(_share_or_table),
        ]
        | None
    ) = Field(
        default=None,
        description="Share of the channels kept: one number for every group, or a number per "
        "pattern of layer names, such as {'layer1.*': 0.7}.",
    )
    latency_ms: float | None = Field(
        default=None,
        gt=0,
        description="Median time in milliseconds that the network may take on the devices of 'on'. "
        "Beside it macs and params are limits.",
    )
    speedup: float | None = Field(
        default=None,
        gt=1,
        description="How many times faster than the original it must be on the devices of 'on'. "
        "Beside it macs and params are limits.",
    )
    size_mb: float | None = Field(
        default=None,
        gt=0,
        description="Beside a time: the most that the fp32 ONNX file may have, in MB (10^6 bytes).",
    )
    memory_mb: float | None = Field(
        default=None,
        gt=0,
        description="Beside a time: the most that a process which runs the network may take on the "
        "devices of 'on' at its peak, with interpreter and runtime, in MB (10^6 bytes).",
    )
    on: DeviceNames = Field(
        default=("local",),
        min_length=1,
        description="Devices that a latency_ms or speedup is for, names of devices.yaml; all "
        "must hold.",
    )
    weights: Share | None = Field(
        default=None,
        description="Share of the weights of convolutions and linear layers kept, the others "
        "zero; for methods that prune single weights.",
    )
    pattern: Literal["2:4"] | None = Field(
        default=None,
        description="2:4: of each four weights along the input channels two are kept, as sparse "
        "tensor cores want it; for methods that prune single weights.",
    )

    def misfits(self) -> list[tuple[Key, str]]:
        """The unit."""
        if len(set(self.on)) < len(self.on):
            return [(("on",), f"names a device twice, found {', '.join(self.on)}")]
        named = list(self.asked())
        times = [unit for unit in TIMES if unit in named]
        for size in SIZES:
            if not times and getattr(self, size) is not None:
                return [((size,), f"is a limit beside {' or '.join(TIMES)}; remove it")]
        if not times and self.on != type(self).model_fields["on"].default:
            return [(("on",), f"is for a budget of {' or '.join(TIMES)}; remove it")]
        if not named:
            return []  # right or wrong beside a search
        limits = set(LIMITS) if len(times) == 1 else set()
        if len([unit for unit in named if unit not in limits]) == 1:
            return []
        return [((), one_unit(" and ".join(named)))]

    @property
    def timed(self) -> bool:
        """Whether it is a time that is asked for."""
        return self.latency_ms is not None or self.speedup is not None

    def target(self) -> dict[str, float | dict[str, float]]:
        """Return the one unit of channels with its share, as `prune2deploy.plan` takes it."""
        return {unit: share for unit, share in self.asked().items() if not isinstance(share, str)}

    def asked(self) -> dict[str, float | dict[str, float] | str]:
        """Return the one unit with what is asked for in it."""
        values = {unit: getattr(self, unit) for unit in UNITS}
        return {unit: asked for unit, asked in values.items() if asked is not None}


class ScheduleSection(Section):
    """When to prune: all at once, or in rounds with training in between."""

    kind: Literal["one_shot", "iterative"] = Field(
        default="one_shot",
        description="one_shot: everything at once; iterative: score, cut, train, again.",
    )
    rounds: int = Field(default=1, ge=1, description="Rounds of an iterative schedule.")
    finetune_epochs: float = Field(
        default=1.0, ge=0, description="Epochs between two rounds, with the settings of 'finetune'."
    )

    def misfits(self) -> list[tuple[Key, str]]:
        """What belongs to rounds only."""
        problems: list[tuple[Key, str]] = []
        if self.kind == "one_shot" and self.rounds != 1:
            problems.append(
                (
                    ("rounds",),
                    f"one_shot has 1 round, found {self.rounds}. For more, write kind: iterative",
                )
            )
        if self.kind == "one_shot" and self.finetune_epochs != 1:
            problems.append((("finetune_epochs",), "is used by 'kind: iterative' only"))
        return problems


class PruneSection(Section):
    """What is removed. The method's own options are written here too, beside these keys."""

    method: str = Field(description="Pruning method; 'prune2deploy methods' lists them.")
    options: dict[str, Any] = Field(
        default_factory=dict,
        validate_default=True,
        description="The method's options, complete with their defaults.",
    )
    budget: BudgetSection = Field(
        description="How much of the original is kept; beside a search it may be left out."
    )
    search: SearchSection | None = Field(
        default=None,
        description="Search for the widths; the front's best point within the budget is taken, "
        "without a budget its knee.",
    )
    round_to: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default="auto",
        description="Widths are multiples of this; auto: of the devices' own steps, which a budget "
        "of time measures; other budgets use what is known of profile.on's, else 8, which suits "
        "most CPUs.",
    )
    min_channels: int | None = Field(
        default=None,
        ge=1,
        description="Fewest channels a layer may keep; left out: the budget decides.",
    )
    normalize: Literal["mean", "max", "l2", "rank", "none"] | None = Field(
        default=None,
        description="How scores are made comparable between layers; "
        "left out: the method's own way. 'none' compares them as they are.",
    )
    exclude: tuple[str, ...] = Field(
        default=(),
        description="Patterns of layer or parameter names that are not cut, such as 'layer4.*'.",
    )
    schedule: ScheduleSection = Field(
        default=ScheduleSection(), description="When to prune; left out: all at once."
    )
    train: TrainSection | None = Field(
        default=None,
        description="Training before the scores are taken, with the method's penalties; "
        "methods that learn their scores need it.",
    )
    compensate: bool = Field(
        default=False,
        description="Give what removed channels gave on average, on training images, to biases of "
        "the layers that read them.",
    )
    recalibrate: int = Field(
        default=32,
        ge=0,
        description="Training batches that renew the batch-norm statistics after a cut.",
    )

    @model_validator(mode="before")
    @classmethod
    def _a_search_needs_no_budget(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("search") is not None and "budget" not in data:
            return {**data, "budget": {}}
        return data

    @field_validator("method")
    @classmethod
    def _method_exists(cls, name: str) -> str:
        if name not in METHODS:
            raise ValueError(
                f"no pruning method is named '{name}'. {nearest_name_hint(name, METHODS)} "
                "'prune2deploy methods' says what each does"
            )
        return name

    @field_validator("options")
    @classmethod
    def _options_fit_the_method(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "method" not in info.data:
            return value
        return METHODS[info.data["method"]].options.model_validate(value).model_dump()

    def misfits(self) -> list[tuple[Key, str]]:
        """What the method needs, and what it has no use for."""
        method = METHODS[self.method]
        problems = [*self._unit_problems(method), *self._schedule_problems(method)]
        if self.search is not None:
            problems += self._search_problems(method, self.search)
        elif not self.budget.asked():
            problems.append((("budget",), one_unit("nothing")))
        if method.granularity == "weight":
            problems += self._channel_settings()
        if self.train is None and method.needs_training:
            problems.append(
                (
                    ("train",),
                    f"missing; {self.method} learns in a training run what to keep. "
                    "Add for example: train: {epochs: 40, lr: 0.05}",
                )
            )
        return problems

    def _unit_problems(self, method: type[Method[Any]]) -> list[tuple[Key, str]]:
        return [
            (
                ("budget", unit),
                f"{method.name} removes {method.granularity}s, and its budget is "
                f"{' or '.join(method.budgets)}, found {unit}",
            )
            for unit in self.budget.asked()
            if unit not in method.budgets
        ]

    def _schedule_problems(self, method: type[Method[Any]]) -> list[tuple[Key, str]]:
        problems: list[tuple[Key, str]] = []
        rounds: Key = ("schedule", "rounds")
        if self.schedule.kind == "iterative" and method.rounds is None:
            text = f"{method.name} knows no rounds: its training does it all. Write kind: one_shot"
            problems.append((("schedule", "kind"), text))
        if self.schedule.rounds > 1 and self.budget.pattern is not None:
            text = f"a pattern is made at once, in 1 round, found {self.schedule.rounds}"
            problems.append((rounds, text))
        if self.schedule.finetune_epochs != 1 and method.rounds == "train":
            text = f"is not used by {method.name}, which trains by prune.train in each round"
            problems.append((("schedule", "finetune_epochs"), text))
        return problems

    def _search_problems(
        self, method: type[Method[Any]], search: SearchSection
    ) -> list[tuple[Key, str]]:
        """What a search cannot go with."""
        if method.granularity == "weight":
            text = f"is about the widths of layers, and {method.name} prunes single weights"
            return [(("search",), text)]
        problems: list[tuple[Key, str]] = []
        if self.schedule.kind == "iterative":
            text = "a search is done once, in 1 round. Write kind: one_shot"
            problems.append((("schedule", "kind"), text))
        if self.train is not None and method.before_cut is not Method.before_cut:
            text = f"{method.name} edits weights by what it learned in training; without 'train' "
            problems.append((("search",), text + "it can be searched with"))
        for unit in self.budget.asked():
            if unit not in (*LIMITS, *TIMES):
                text = f"is no cost of a network; beside a search use {_listed((*LIMITS, *TIMES))}"
                problems.append((("budget", unit), text))
        if self.budget.timed:
            if search.cost != "latency":
                text = (
                    f"is a time, and the search's cost is {search.cost}: write objectives: "
                    "[accuracy, latency] in prune.search"
                )
                problems.append((("budget",), text))
            elif self.budget.on not in (("local",), (search.on,)):
                text = f"is not the device of the search, {search.on}; leave it out"
                problems.append((("budget", "on"), text))
        return problems

    def _channel_settings(self) -> list[tuple[Key, str]]:
        """Settings of widths and of groups, which nothing looks at where single weights go."""
        return [
            ((key,), f"is about channels, and {self.method} prunes single weights; remove it")
            for key in ("round_to", "min_channels", "normalize")
            if getattr(self, key) != type(self).model_fields[key].default
        ]
