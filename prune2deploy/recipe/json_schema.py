"""The recipe's JSON Schema, for completion and checks in editors."""

from __future__ import annotations

from typing import Any

from prune2deploy.methods import METHODS, Method
from prune2deploy.recipe.schema import Recipe


def recipe_schema() -> dict[str, Any]:
    """Return the JSON Schema of a recipe as it is written, with every method's options inline."""
    schema = Recipe.model_json_schema()
    prune = schema["$defs"]["PruneSection"]
    # One form per method, told apart by the method's name: an editor then completes its
    # options, and refuses those of another.
    schema["$defs"]["PruneSection"] = {
        "description": prune["description"],
        "oneOf": [_prune_by(method, prune) for method in METHODS.values()],
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "prune2deploy recipe",
    }


def _prune_by(method: type[Method[Any]], prune: dict[str, Any]) -> dict[str, Any]:
    shared = {key: value for key, value in prune["properties"].items() if key != "options"}
    name = {"const": method.name, "description": method.summary}
    form = {
        **prune,
        "title": method.name,
        "properties": {
            **shared,
            "method": name,
            **method.options.model_json_schema().get("properties", {}),
        },
    }
    needed = [*prune["required"], *(["train"] if method.needs_training else [])]
    # Beside a search the budget may be left out.
    form["required"] = [key for key in needed if key != "budget"]
    form["anyOf"] = [{"required": ["budget"]}, {"required": ["search"]}]
    return form
