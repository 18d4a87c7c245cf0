"""What a recipe may say: values, and settings that must fit each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from prune2deploy.errors import RecipeError
from prune2deploy.methods import METHODS, Method
from prune2deploy.recipe import PruneSection, Recipe, TrainSection, dump_recipe, parse_recipe

Problems = Callable[..., list[str]]


def test_a_good_recipe_has_its_values_and_defaults(good: str) -> None:
    recipe = parse_recipe(good, "some/where/quick.yaml")
    assert recipe.name == "quick"
    assert recipe.model.input == (1, 8, 8)
    assert recipe.prune.options == {"images": 64, "batch_size": 128}
    assert recipe.prune.budget.target() == {"macs": 0.5}
    assert recipe.prune.round_to == "auto"
    assert recipe.profile.on == ("local",)
    assert (recipe.profile.threads, recipe.profile.retries) == (None, 1)
    assert not recipe.profile.allow_tainted
    assert recipe.finetune is not None
    assert recipe.finetune.lr == 0.05
    assert recipe.gates.min_speedup is None


@pytest.mark.parametrize(
    "budget",
    [
        "{speedup: 2}",
        "{latency_ms: 2.5, on: pi5}",
        "{speedup: 1.5, on: [pi5, local], macs: 0.7, params: 0.5}",
    ],
)
def test_budgets_of_time_with_rounds_and_limits(good: str, budget: str) -> None:
    schedule = "prune.schedule={kind: iterative, rounds: 3}"
    recipe = parse_recipe(good, "r.yaml", [f"prune.budget={budget}", schedule])
    assert recipe.prune.budget.timed
    assert recipe.prune.schedule.rounds == 3
    assert isinstance(recipe.prune.budget.on, tuple)


@pytest.mark.parametrize("key", ["profile.on", "prune.budget.on", "export.engines.on"])
def test_one_device_may_be_written_without_a_list(good: str, key: str) -> None:
    def devices(value: str) -> object:
        time = "prune.budget={speedup: 2}"
        found = parse_recipe(good, "r.yaml", [time, f"{key}={value}"])
        for name in key.split("."):
            found = getattr(found, name)
        return found

    assert devices("pi5") == devices("[pi5]") == ("pi5",)
    for empty in ("''", "['']"):
        with pytest.raises(RecipeError, match=f"{key}.*should have at least 1 character"):
            devices(empty)


def test_a_recipe_cannot_be_changed(good: str) -> None:
    recipe = parse_recipe(good, "r.yaml")
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 1


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        # Values out of range or of another kind.
        ("finetune.epochs=0", "should be greater than 0, found 0"),
        ("finetune.epochs=true", "should not be true or false, found true"),
        ("finetune.lr=fast", "should be a valid number, found 'fast'"),
        ("finetune.lr=.nan", "should be a finite number, found nan"),
        ("finetune.schedule=cosin", "should be 'cosine', 'step' or 'constant', found 'cosin'"),
        ("seed=1.5", "got a number with a fractional part, found 1.5"),
        ("seed=-1", "should be greater than or equal to 0, found -1"),
        ("prune.budget.macs=1", "should be less than 1, found 1"),
        ("prune.budget.macs=0", "should be greater than 0, found 0"),
        ("prune.round_to=0", "greater than or equal to 1"),
        ("prune.exclude=layer4", "should be a valid list, found 'layer4'"),
        ("model.input=[1, 8]", "has too few entries, found [1, 8]. Expected: shape of one input"),
        ("model.input=[1, 8, 8, 8]", "list should have at most 3 items, not 4"),
        ("model.input.0=0", "should be greater than or equal to 1, found 0"),
        ("model.args=5", "should be a valid mapping, found 5"),
        ("model=5", "should be a valid mapping, found 5"),
        ("model.source=", "should be a valid string, found nothing"),
        ("data.augment.flip=maybe", "should be a valid boolean, found 'maybe'"),
        # Names.
        ("model.source=torchvison:resnet18", "Did you mean 'torchvision'?"),
        ("model.source=resnet18", "Expected torchvision:NAME, timm:NAME, cifar:NAME"),
        ("model.source=net.py", "Expected torchvision:NAME"),
        ("data.source=imagefolders", "Did you mean 'imagefolder'?"),
        ("task=detection", "Expected classification, path/to/file.py:NAME"),
        ("prune.method=chipp", "no pruning method is named 'chipp'. Did you mean 'chip'?"),
        ("profile.on=5", "should be a valid list, found 5"),
        ("profile.retries=-1", "should be greater than or equal to 0, found -1"),
        ("profile.on=[local, local]", "names a device twice"),
        ("profile.on=[]", "at least 1 item"),
        ("name=a/b", "folder's name"),
        ("name=..", "folder's name"),
        # Settings that do not go together.
        ("prune.budget.params=0.3", "weights and pattern, found macs and params"),
        ("prune.budget={}", "weights and pattern, found nothing"),
        ("prune.budget={channels: {}}", "at least 1 item"),
        ("prune.budget={channels: {a: 2}}", "should be less than 1, found 2"),
        ("prune.schedule.rounds=3", "one_shot has 1 round, found 3"),
        ("prune.schedule.finetune_epochs=3", "'kind: iterative' only"),
        ("prune={method: ccprune, budget: {macs: .5}}", "prune.train: missing; ccprune learns"),
        ("prune.budget={weights: 0.2}", "chip removes channels, and its budget is macs or params"),
        ("prune.budget={pattern: '2:4'}", "chip removes channels"),
        ("prune.budget={speedup: 1}", "should be greater than 1, found 1"),
        ("prune.budget={speedup: 2, latency_ms: 3}", "exactly one of"),
        ("prune.budget={speedup: 2, channels: .5}", "exactly one of"),
        ("prune.budget={latency_ms: 0}", "should be greater than 0, found 0"),
        ("prune.budget={latency_ms: 2ms}", "should be a valid number, found '2ms'"),
        ("prune.budget={latency_ms: 2, macs: 1.5}", "should be less than 1, found 1.5"),
        ("prune.budget={latency_ms: 2, on: []}", "at least 1 item"),
        ("prune.budget={latency_ms: 2, on: [a, b, a]}", "names a device twice, found a, b, a"),
        ("prune.budget={macs: .5, on: pi5}", "is for a budget of latency_ms or speedup; remove it"),
        ("prune.budget={macs: .5, size_mb: 3}", "size_mb: is a limit beside latency_ms or speedup"),
        ("prune.budget={memory_mb: 90}", "memory_mb: is a limit beside latency_ms or speedup"),
        ("prune.budget={speedup: 2, size_mb: 0}", "should be greater than 0, found 0"),
        ("prune.budget={on: pi5}", "is for a budget of latency_ms or speedup; remove it"),
        (
            "prune={method: han, budget: {latency_ms: 2}}",
            "han removes weights, and its budget is weights or pattern, found latency_ms",
        ),
        ("prune={method: han, budget: {macs: .5}}", "its budget is weights or pattern, found macs"),
        ("prune={method: han, budget: {pattern: '1:4'}}", "should be '2:4', found '1:4'"),
        ("prune={method: han, budget: {weights: .5}, round_to: 16}", "round_to: is about channels"),
        (
            "prune={method: han, budget: {pattern: '2:4'}, schedule: {kind: iterative, rounds: 2}}",
            "a pattern is made at once, in 1 round, found 2",
        ),
        (
            "prune={method: gsm, budget: {weights: .5}, train: {epochs: 1, lr: .1}, "
            "schedule: {kind: iterative, rounds: 2}}",
            "gsm knows no rounds",
        ),
        (
            "prune={method: gsm, budget: {pattern: '2:4'}, train: {epochs: 1, lr: .1}}",
            "gsm removes weights, and its budget is weights, found pattern",
        ),
        (
            "prune={method: lottery_ticket, budget: {weights: .5}, train: {epochs: 1, lr: .1}, "
            "schedule: {kind: iterative, rounds: 2, finetune_epochs: 3}}",
            "which trains by prune.train in each round",
        ),
        ("prune={method: gsm, budget: {weights: .5}}", "prune.train: missing; gsm learns"),
        ("finetune.early_stop={patience: 3}", "Set data.val"),
        ("finetune.warmup_epochs=5", "should be shorter than the run of 5 epochs, found 5"),
        ("finetune.gamma=0.2", "'schedule: step' only, and the schedule is 'cosine'"),
        ("finetune.milestones=[0.3]", "'schedule: step' only"),
        ("finetune.momentum=0", "nesterov: needs a momentum above 0"),
        ("pretrain.distill={}", "distill belongs in finetune"),
        ("pretrain=", "starts from random weights"),
        ("data.root=here", "is not used by 'digits'"),
        ("data.val=1", "should be less than 1"),
        ("data={source: digits, normalize: none, val: .5, test: .5}", "leaves no training images"),
        ("data.normalize=imagenet", "'imagenet' has 3 channels, and model.input has 1"),
        ("data.normalize={mean: [0, 0], std: [1, 1]}", "mean has 2 channels, and model.input has"),
        ("data.normalize={mean: [0], std: [1, 1]}", "equally long, found 1 and 2"),
        ("data.normalize={mean: [0], std: [0]}", "should be greater than 0, found 0"),
        ("data.normalize={mean: [0]}", "std: missing. Expected: divided by, one per channel."),
        ("data.normalize=imagnet", "should be 'imagenet', 'cifar10' or 'none', found 'imagnet'"),
        ("data.resize=7", "should be at least 8, the model's input, found 7"),
        ("profile.batch=2", "fixed batch of 1 (export.onnx.batch)"),
        ("data={source: imagefolder}", "data.root: missing; it names the folder of the images"),
        ("data={source: npz}", "data.root: missing; it names the .npz file"),
    ],
)
def test_what_does_not_fit_is_one_problem_in_words(
    good: str, problems: Problems, override: str, problem: str
) -> None:
    found = problems(good, override)
    about = [line for line in found if problem in line]
    assert len(about) == 1, found
    key = override.partition("=")[0]
    # Most are reported where they were written, the rest at the key that has to change.
    assert about[0].startswith((f"--set {key}", "r.yaml:")), about


@pytest.mark.parametrize(
    "overrides",
    [
        ["finetune={epochs: 5, lr: .1, schedule: step, gamma: .2, milestones: [.3, .6]}"],
        ["finetune.early_stop={patience: 3}", "data.val=0.1"],
        ["finetune={epochs: 5, lr: .1, momentum: 0, nesterov: false}"],
        ["prune.budget={channels: 0.5}"],
        ["prune.budget={channels: {'layer1.*': 0.5, fc: .25}}"],
        ["prune={method: ccprune, budget: {params: .5}, train: {epochs: 1, lr: .1}}"],
        ["prune.schedule={kind: iterative, rounds: 3}"],
        ["prune={method: han, budget: {weights: .2}, schedule: {kind: iterative, rounds: 3}}"],
        ["prune={method: han, budget: {pattern: '2:4'}}"],
        [
            "prune={method: lottery_ticket, budget: {weights: .2}, train: {epochs: 1, lr: .1}, "
            "schedule: {kind: iterative, rounds: 3}}",
            "finetune=",
        ],
        ["prune.schedule={kind: iterative, rounds: 3, finetune_epochs: 0}", "finetune="],
        ["data.normalize={mean: [0.1], std: [0.3]}"],
        ["pretrain=", "model.checkpoint=w.pt"],
        ["pretrain=", "model.source=mine.py:build"],
        ["pretrain=", "model.source=timm:x", "model.args={pretrained: true}"],
        ["task=tasks.py:Segmentation"],
        ["data={source: data.py:make, normalize: none}"],
        ["export.onnx.batch=4", "profile.batch=4"],
    ],
)
def test_what_fits_is_accepted(good: str, overrides: list[str]) -> None:
    assert isinstance(parse_recipe(good, "r.yaml", overrides), Recipe)


def test_yes_and_no_are_true_and_false_where_a_switch_is_expected(good: str) -> None:
    recipe = parse_recipe(good, "r.yaml", ["export.onnx.simplify=no", "data.augment.flip=yes"])
    assert recipe.export.onnx.simplify is False
    assert recipe.data.augment.flip is True


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
def test_no_option_of_a_method_hides_a_key_of_prune(method: type[Method[Any]]) -> None:
    options = set(method.options.model_fields)
    assert options.isdisjoint(PruneSection.model_fields)


def test_every_setting_is_described() -> None:
    sections: list[type[BaseModel]] = [m.options for m in METHODS.values()]
    sections += [Recipe, PruneSection, TrainSection]
    undescribed = [
        f"{section.__name__}.{name}"
        for section in sections
        for name, field in section.model_fields.items()
        if not field.description
    ]
    assert undescribed == []


@pytest.mark.parametrize(
    ("search", "problem"),
    [
        ("{trials: 0}", "greater than or equal to 1, found 0"),
        ("{objectives: [accuracy]}", "has too few entries"),
        (
            "{objectives: [macs, params]}",
            "accuracy and one of macs, params and latency, found macs",
        ),
        ("{objectives: [accuracy, accuracy]}", "found accuracy and accuracy"),
        ("{objectives: [accuracy, flops]}", "found 'flops'"),
        ("{on: pi5}", "prune.search.on: is for the objective latency"),
        ("{measure: true}", "prune.search.measure: is for the objective latency"),
        ("{sampler: cmaes}", "should be 'tpe', 'nsga2' or 'random', found 'cmaes'"),
        ("{shares: [0.5, 0.4]}", "a smaller and a larger share, found 0.5 and 0.4"),
        ("{shares: [0, 0.4]}", "greater than 0"),
        ("{point: 0}", "greater than or equal to 1"),
        ("{trails: 5}", "unknown key. Did you mean 'trials'?"),
    ],
)
def test_a_search_that_makes_no_sense(
    problems: Problems, good: str, search: str, problem: str
) -> None:
    (found,) = problems(good, f"prune.search={search}")
    assert problem in found


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["prune.budget={channels: 0.5}"], "budget.channels: is no cost of a network"),
        (["prune.budget={speedup: 2}"], "is a time, and the search's cost is macs"),
        (
            [
                "prune.budget={speedup: 2, on: pi4}",
                "prune.search.objectives=[accuracy, latency]",
                "prune.search.on=pi5",
            ],
            "is not the device of the search, pi5",
        ),
        (
            ["prune.schedule={kind: iterative, rounds: 2}"],
            "schedule.kind: a search is done once",
        ),
        (["prune={method: han, budget: {weights: 0.5}, search: {}}"], "prunes single weights"),
        (
            ["prune={method: csgd, search: {}, train: {epochs: 1, lr: 0.1}}"],
            "csgd edits weights by what it learned in training",
        ),
    ],
)
def test_what_a_search_cannot_go_with(
    problems: Problems, good: str, overrides: list[str], problem: str
) -> None:
    (found,) = problems(good, "prune.search={}", *overrides)
    assert problem in found


def test_a_search_needs_no_budget_and_nothing_else_goes_without(
    problems: Problems, good: str
) -> None:
    recipe = parse_recipe(good, "r.yaml", ["prune={method: l1, search: {trials: 5}}"])
    assert recipe.prune.budget.asked() == {}
    assert recipe.prune.search is not None
    assert recipe.prune.search.cost == "macs"
    assert recipe.prune.search.bounds(None) == (0.1, 1.0)
    assert recipe.prune.search.bounds(0.4) == (0.2, 0.4)
    assert parse_recipe(dump_recipe(recipe), "r.yaml") == recipe
    (found,) = problems(good, "prune={method: l1}")
    assert "prune.budget: missing" in found


def test_a_storage_is_a_path_beside_the_recipe_or_a_url(good: str) -> None:
    def storage(text: str) -> str | None:
        recipe = parse_recipe(
            good.replace("  method: chip", f"  method: chip\n  search: {{storage: '{text}'}}"),
            "/a/r.yaml",
        )
        assert recipe.prune.search is not None
        return recipe.prune.search.storage

    assert storage("shared/s.journal") == "/a/shared/s.journal"
    assert storage("sqlite:///s.db") == "sqlite:///s.db"
