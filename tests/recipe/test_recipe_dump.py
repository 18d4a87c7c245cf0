"""A resolved recipe, written and read again, is the same recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from prune2deploy.recipe import Recipe, dump_recipe, parse_recipe
from prune2deploy.yaml_text import write_yaml


def test_options_are_written_inline_with_their_defaults(good: str) -> None:
    text = dump_recipe(parse_recipe(good, "r.yaml"))
    assert "  method: chip\n  images: 64\n  batch_size: 128\n" in text
    assert "options" not in text
    assert "null" not in text


def test_paths_are_written_whole(good: str) -> None:
    recipe = parse_recipe(good, Path("/a/b/r.yaml"), ["model.checkpoint=/w/x.pt"])
    text = dump_recipe(recipe)
    assert "base_dir: /a/b\n" in text
    assert "checkpoint: /w/x.pt\n" in text
    assert parse_recipe(text, Path("/elsewhere/other.yaml")) == recipe


def test_a_null_in_the_arguments_is_kept(good: str) -> None:
    recipe = parse_recipe(good, "r.yaml", ["model.args={a: null, b: [null]}"])
    assert parse_recipe(dump_recipe(recipe), "r.yaml").model.args == {"a": None, "b": [None]}


shares = st.floats(0.01, 0.99)
names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=5,
)
arguments = st.dictionaries(names.filter(lambda name: name != "<<"), values, max_size=3)
distill = st.fixed_dictionaries(
    {}, optional={"from": st.just("original"), "temperature": st.floats(0.1, 9), "alpha": shares}
)
train = st.fixed_dictionaries(
    {"epochs": st.floats(1, 500), "lr": st.floats(1e-9, 9)},
    optional={
        "warmup_epochs": shares,
        "nesterov": st.booleans(),
        "weight_decay": st.floats(0, 1),
        "precision": st.sampled_from(["auto", "fp32", "bf16"]),
        "distill": distill | st.none(),
        "early_stop": st.fixed_dictionaries({"patience": st.integers(1, 99)}),
        "grad_clip": st.none() | st.floats(0.1, 9),
    },
)
step_train = st.builds(
    lambda base, milestones: {**base, "schedule": "step", "milestones": sorted(milestones)},
    train,
    st.sets(shares, max_size=4),
)
budget = (
    st.builds(lambda unit, share: {unit: share}, st.sampled_from(["macs", "params"]), shares)
    | st.builds(lambda share: {"channels": share}, shares)
    | st.builds(
        lambda table: {"channels": table}, st.dictionaries(names, shares, min_size=1, max_size=3)
    )
)
method = (
    st.builds(lambda n: {"method": "chip", "images": n}, st.integers(1, 10**9))
    | st.just({"method": "l1"})
    | st.builds(
        lambda p, c, t: {"method": "ccprune", "gamma_penalty": p, "combine": c, "train": t},
        st.floats(0, 1),
        st.sampled_from(["product", "sum"]),
        train,
    )
)
prune = st.builds(
    lambda method, budget, rest: {**method, "budget": budget, **rest},
    method,
    budget,
    st.fixed_dictionaries(
        {},
        optional={
            "round_to": st.integers(1, 64),
            "exclude": st.lists(st.text(max_size=8), max_size=3),
            "normalize": st.sampled_from([None, "none", "mean"]),
            "recalibrate": st.integers(0, 99),
        },
    ),
)
recipes = st.fixed_dictionaries(
    {
        "model": st.builds(
            lambda args, size: {
                "source": "mine.py:build",
                "args": args,
                "input": [3, *size],
                "checkpoint": "w/x y.pt",
            },
            arguments,
            st.tuples(st.integers(1, 512), st.integers(1, 512)),
        ),
        "data": st.builds(
            lambda args, val: {"source": "data.py:make", "args": args, "val": val},
            arguments,
            shares,
        ),
        "prune": prune,
    },
    optional={
        "name": st.sampled_from(["on", "1e-4", "ä ö", "~", "null", "-", "a: b", "#x"]),
        "seed": st.integers(0, 2**32 - 1),
        "finetune": train | step_train | st.none(),
        "pretrain": st.none(),
        "gates": st.fixed_dictionaries({}, optional={"min_speedup": st.floats(0.1, 9)}),
        "export": st.fixed_dictionaries({}, optional={"onnx": st.just({"opset": 18})}),
    },
)


@settings(max_examples=60, deadline=None)
@given(recipes)
def test_a_dumped_recipe_reads_back_as_the_same(data: dict[str, Any]) -> None:
    if "<<" in str(data):
        return
    recipe = parse_recipe(write_yaml(data), "/some/where/r.yaml")
    again = parse_recipe(dump_recipe(recipe), "/else/where/s.yaml")
    assert again == recipe
    assert isinstance(again, Recipe)
    assert dump_recipe(again) == dump_recipe(recipe)
