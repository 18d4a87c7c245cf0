"""Searches of a made-up problem whose front is known: found, resumed, shared, never worse."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from prune2deploy.errors import MissingDependencyError, SearchError
from prune2deploy.search import Result, Settings, Space, Trial, open_study, pareto, run, trials_of
from prune2deploy.search.space import Counts

pytest.importorskip("optuna")

ALLOWED = [(32, 24, 16), (32, 24, 16, 8), (32, 16)]
IMPORTANCE = np.array([9.0, 1.0, 3.0])
PRICE = np.array([1, 2, 1])


def size(counts: Counts) -> int:
    return int((PRICE * counts).sum())


def gain(counts: Counts) -> float:
    return 100 - float((IMPORTANCE * (32 - counts) ** 2).sum()) / 100


SPACE = Space(["a", "b", "c"], ALLOWED, size, 0.25, 1.0)
STARTS = {"uniform at 50.0%": SPACE.uniform(0.5), "scores at 60.0%": np.array([24, 16, 16])}


class Evaluate:
    """Counts what is tried; stops after some."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.tried: list[tuple[int, ...]] = []
        self.stop_after = stop_after

    def __call__(self, counts: Counts) -> Result:
        if self.stop_after is not None and len(self.tried) == self.stop_after:
            raise KeyboardInterrupt
        self.tried.append(tuple(counts.tolist()))
        return Result(gain(counts), size(counts))


def settings(
    folder: Path, trials: int = 40, sampler: str = "tpe", seed: int = 0, shared: bool = False
) -> Settings:
    return Settings(str(folder / "s.journal"), "study", trials, sampler, seed, shared)  # type: ignore[arg-type]


def true_front() -> set[tuple[int, int]]:
    every = [np.array(counts) for counts in itertools.product(*ALLOWED)]
    trials = [Trial(0, tuple(c), gain(c), size(c)) for c in every if SPACE.holds(c)]
    return values(trials)


def values(trials: list[Trial]) -> set[tuple[int, int]]:
    found = pareto(trials, lambda t: t.gain, lambda t: t.cost)
    return {(int(t.gain * 1e6), int(t.cost)) for t in found}


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_a_small_space_is_searched_whole_and_nothing_twice(tmp_path: Path, sampler: str) -> None:
    evaluate = Evaluate()
    trials = run(SPACE, evaluate, STARTS, settings(tmp_path, 24, sampler))
    assert values(trials) == true_front()
    assert len(evaluate.tried) == len(set(evaluate.tried)) == len(trials)
    assert all(SPACE.holds(np.array(counts)) for counts in evaluate.tried)


def test_most_of_the_front_is_found_with_half_of_the_networks(tmp_path: Path) -> None:
    trials = run(SPACE, Evaluate(), STARTS, settings(tmp_path, 12))
    assert len(values(trials) & true_front()) >= 0.6 * len(true_front())


@pytest.mark.parametrize("trials", [1, 5])
def test_it_is_never_worse_than_what_it_starts_with(tmp_path: Path, trials: int) -> None:
    found = run(SPACE, Evaluate(), STARTS, settings(tmp_path, trials))
    assert {one.start for one in found} >= set(STARTS)
    for start in STARTS.values():
        assert any(one.gain >= gain(start) and one.cost <= size(start) for one in found)
    assert [one.start for one in found[:2]] == list(STARTS)[: len(found[:2])]


def test_the_same_seed_tries_the_same(tmp_path: Path) -> None:
    tried = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        evaluate = Evaluate()
        run(SPACE, evaluate, STARTS, settings(tmp_path / name, 12, seed=seed))
        tried.append(evaluate.tried)
    assert tried[0] == tried[1] != tried[2]


def test_it_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    stopped = Evaluate(stop_after=5)
    with pytest.raises(KeyboardInterrupt):
        run(SPACE, stopped, STARTS, settings(tmp_path, 11))
    rest = Evaluate()
    trials = run(SPACE, rest, STARTS, settings(tmp_path, 11))
    assert len(trials) == 11
    assert len(rest.tried) == 6
    assert not set(stopped.tried) & set(rest.tried)


def test_a_start_that_was_stopped_is_tried_again(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(SPACE, Evaluate(stop_after=0), STARTS, settings(tmp_path, 2))
    assert {one.start for one in run(SPACE, Evaluate(), STARTS, settings(tmp_path, 2))} == set(
        STARTS
    )


KILLED = """
import os, sys, numpy as np
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_study import *
class Dying(Evaluate):
    def __call__(self, counts):
        if len(self.tried) == 6:
            os._exit(9)
        return super().__call__(counts)
run(SPACE, Dying(), STARTS, settings(Path(sys.argv[1]), 12))
"""


def test_a_search_that_was_killed_goes_on(tmp_path: Path) -> None:
    here = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), here], check=False)
    assert done.returncode == 9
    journal = tmp_path / "s.journal"
    # What a kill in the midst of writing would leave.
    journal.write_bytes(journal.read_bytes() + b'{"op_code": 4, "wor')
    (tmp_path / "s.journal.lock").symlink_to(journal)
    rest = Evaluate()
    assert len(run(SPACE, rest, STARTS, settings(tmp_path, 12))) == 12
    assert len(rest.tried) == 6


SHARING = """
import sys, time
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_study import *
evaluate, folder = Evaluate(), Path(sys.argv[1])
(folder / f"{sys.argv[3]}.ready").touch()
while len(list(folder.glob("*.ready"))) < 2:
    time.sleep(0.01)
def slow(counts):
    time.sleep(0.2)
    return evaluate(counts)
run(SPACE, slow, STARTS, settings(Path(sys.argv[1]), 14, shared=True))
print(len(evaluate.tried))
"""


def test_two_processes_share_the_trials(tmp_path: Path) -> None:
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", SHARING, str(tmp_path), here]
    open_study(settings(tmp_path, shared=True))
    both = [subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True) for name in "ab"]
    tried = [int(one.communicate()[0]) for one in both]
    assert [one.returncode for one in both] == [0, 0]
    study = open_study(settings(tmp_path), create=False)
    assert study is not None
    found = trials_of(study)
    # Each may have had one in hand when the other finished the last.
    assert 14 <= len(found) <= 16
    assert len(found) <= sum(tried) <= len(found) + 2
    assert min(tried) > 0


def test_a_network_without_figures_is_left_out(tmp_path: Path) -> None:
    def evaluate(counts: Counts) -> Result:
        return Result(float("nan") if counts[1] == 8 else gain(counts), size(counts))

    trials = run(SPACE, evaluate, STARTS, settings(tmp_path, 10))
    assert len(trials) == 10
    assert all(one.counts[1] != 8 for one in trials)


def test_a_range_without_networks_is_told(tmp_path: Path) -> None:
    narrow = Space(["a", "b", "c"], ALLOWED, size, 0.501, 0.502)
    with pytest.raises(SearchError, match=r"between 50\.1% and 50\.2%"):
        run(narrow, Evaluate(), {}, settings(tmp_path, 5))


def test_a_storage_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    for storage in (str(tmp_path / "no" / "s.journal"), "nonsense://x", "sqlite:////no/such/a.db"):
        with pytest.raises(SearchError, match=r"prune\.search\.storage: .* cannot be used"):
            open_study(Settings(storage, "study", 5, "tpe", 0))


def test_sqlite_is_a_storage_too(tmp_path: Path) -> None:
    one = Settings(f"sqlite:///{tmp_path}/s.db", "study", 4, "random", 0)
    assert open_study(one, create=False) is None
    assert len(run(SPACE, Evaluate(), STARTS, one)) == 4
    again = Evaluate()
    assert len(run(SPACE, again, STARTS, one)) == 4
    assert again.tried == []


def test_without_optuna_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'prune2deploy\[search\]'"):
        open_study(settings(tmp_path))
