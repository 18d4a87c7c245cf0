"""What all sections of a recipe share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)

from prune2deploy.yaml_text import Key

Share = Annotated[float, Field(gt=0, lt=1)]


def _one_is_a_list_too(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


DeviceName = Annotated[str, Field(min_length=1)]
DeviceNames = Annotated[
    tuple[DeviceName, ...],
    BeforeValidator(_one_is_a_list_too, json_schema_input_type=DeviceName | tuple[DeviceName, ...]),
]
"""Devices, as a list or the name of one."""


class CrossCheckError(ValueError):
    """Settings that do not go together, each reported at one key of the section."""

    def __init__(self, problems: Sequence[tuple[Key, str]]) -> None:
        self.problems = list(problems)
        super().__init__(
            "; ".join(f"{'.'.join(map(str, key))}: {text}" for key, text in self.problems)
        )


class Section(BaseModel):
    """One mapping of a recipe: nothing unknown in it, nothing changed once it is read."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def misfits(self) -> list[tuple[Key, str]]:
        """Return which of the section's valid settings do not go together, and why not."""
        return []

    def all_misfits(self) -> list[tuple[Key, str]]:
        """Return its own misfits and those of the sections in it."""
        found = self.misfits()
        for name, field in type(self).model_fields.items():
            inner = getattr(self, name)
            if isinstance(inner, Section):
                found += [((field.alias or name, *key), text) for key, text in inner.all_misfits()]
        return found

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic reads true as 1; `epochs: true` is a slip, not one epoch.
        name = info.field_name
        if isinstance(value, bool) and name and cls.model_fields[name].annotation is not bool:
            raise ValueError(f"should not be true or false, found {str(value).lower()}")
        return value
