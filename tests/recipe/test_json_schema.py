from __future__ import annotations

import json
from typing import Any

from prune2deploy.methods import METHODS
from prune2deploy.recipe import recipe_schema


def forms() -> dict[str, dict[str, Any]]:
    prune = recipe_schema()["$defs"]["PruneSection"]
    return {form["properties"]["method"]["const"]: form for form in prune["oneOf"]}


def test_it_is_plain_json_with_every_section() -> None:
    schema = json.loads(json.dumps(recipe_schema()))
    assert {"model", "data", "prune", "finetune", "gates"} <= set(schema["properties"])
    assert schema["required"] == ["model", "data", "prune"]
    assert schema["additionalProperties"] is False


def test_prune_has_one_form_per_method_with_its_own_options() -> None:
    assert set(forms()) == set(METHODS)
    chip, slimming = forms()["chip"], forms()["network_slimming"]
    assert chip["properties"]["images"]["default"] == 640
    assert "images" not in slimming["properties"]
    assert slimming["properties"]["penalty"]["default"] == 1e-4
    for form in forms().values():
        assert form["additionalProperties"] is False
        assert "options" not in form["properties"]
        assert "round_to" in form["properties"]


def test_training_is_required_where_a_method_learns() -> None:
    required = {name: set(form["required"]) for name, form in forms().items()}
    assert required["l1"] == {"method"}
    assert required["ccprune"] == {"method", "train"}
    either = [{"required": ["budget"]}, {"required": ["search"]}]
    assert all(form["anyOf"] == either for form in forms().values())


def test_every_property_is_described() -> None:
    schema = recipe_schema()
    places = {"Recipe": schema, **schema["$defs"], **forms()}
    undescribed = [
        f"{place}.{name}"
        for place, section in places.items()
        for name, found in section.get("properties", {}).items()
        # A reference has the description of the section it leads to.
        if not {"description", "$ref"} & set(found)
    ]
    assert undescribed == []


def test_keys_have_the_names_of_the_recipe() -> None:
    assert "from" in recipe_schema()["$defs"]["DistillSection"]["properties"]
