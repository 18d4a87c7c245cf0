import numpy as np
import pytest
import torch

from prune2deploy.data.order import plan_batches, seed_from, split_off
from prune2deploy.errors import DataError


def indices(plans):
    return [plan.indices.tolist() for plan in plans]


def flat(batches):
    return [index for batch in batches for index in batch]


def test_every_class_gives_the_same_share():
    labels = np.repeat([0, 1, 2], [10, 20, 40])
    stays, goes = split_off(labels, 70, 0.2, seed=0, name="test")
    assert np.bincount(labels[goes]).tolist() == [2, 4, 8]
    assert sorted([*stays, *goes]) == list(range(70))


def test_a_small_class_gives_one_sample_and_keeps_one():
    labels = np.array([0, 0, 1, 1])
    for share in (0.01, 0.99):
        stays, goes = split_off(labels, 4, share, seed=0, name="val")
        assert labels[stays].tolist() == labels[goes].tolist() == [0, 1]


def test_split_depends_on_seed_and_name_alone():
    labels = np.zeros(100, dtype=np.int64)
    first = split_off(labels, 100, 0.3, seed=1, name="val")[1].tolist()
    assert split_off(labels, 100, 0.3, seed=1, name="val")[1].tolist() == first
    assert split_off(labels, 100, 0.3, seed=2, name="val")[1].tolist() != first
    assert split_off(labels, 100, 0.3, seed=1, name="test")[1].tolist() != first


def test_without_labels_the_split_is_random():
    stays, goes = split_off(None, 50, 0.1, seed=0, name="val")
    assert len(goes) == 5
    assert set(stays) | set(goes) == set(range(50))


def test_class_with_one_image_cannot_be_split():
    with pytest.raises(DataError, match=r"Class dog has 1 image.*at least 2"):
        split_off(np.array([0, 0, 1]), 3, 0.5, 0, "test", class_names=["cat", "dog"])


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_share_must_lie_between_zero_and_one(share):
    with pytest.raises(DataError, match=r"between 0 and 1.*data\.val"):
        split_off(np.zeros(4, dtype=np.int64), 4, share, 0, "val")


def test_order_is_a_function_of_seed_and_epoch():
    first = indices(plan_batches(20, 4, order_seed=(3, 1)))
    torch.manual_seed(5)
    assert indices(plan_batches(20, 4, order_seed=(3, 1))) == first
    assert indices(plan_batches(20, 4, order_seed=(3, 2))) != first
    assert indices(plan_batches(20, 4, order_seed=(4, 1))) != first
    assert sorted(flat(first)) == list(range(20))


def test_without_a_seed_samples_come_as_they_lie():
    assert indices(plan_batches(5, 2, order_seed=None)) == [[0, 1], [2, 3], [4]]


def test_lone_last_image_joins_the_batch_before():
    assert indices(plan_batches(5, 2, order_seed=None, min_batch=2)) == [[0, 1], [2, 3, 4]]


def test_the_only_batch_stays_even_if_small():
    assert indices(plan_batches(1, 2, order_seed=None, min_batch=2)) == [[0]]


def test_drop_last_leaves_out_what_is_not_full():
    assert indices(plan_batches(5, 2, order_seed=None, drop_last=True)) == [[0, 1], [2, 3]]
    assert indices(plan_batches(4, 2, order_seed=None, drop_last=True)) == [[0, 1], [2, 3]]


def test_limit_takes_the_first_of_the_random_order():
    whole = flat(indices(plan_batches(30, 7, order_seed=(0, 0))))
    some = flat(indices(plan_batches(30, 7, order_seed=(0, 0), limit=10)))
    assert some == whole[:10]


def test_skipping_batches_goes_on_where_a_run_stopped():
    whole = plan_batches(30, 7, order_seed=(0, 0))
    rest = plan_batches(30, 7, order_seed=(0, 0), skip=2)
    assert indices(rest) == indices(whole)[2:]
    assert [plan.number for plan in rest] == [2, 3, 4]


def test_shards_share_every_batch():
    whole = indices(plan_batches(16, 4, order_seed=(0, 0)))
    parts = [indices(plan_batches(16, 4, order_seed=(0, 0), shard=(rank, 2))) for rank in (0, 1)]
    for batch, first, second in zip(whole, *parts, strict=True):
        assert sorted(first + second) == sorted(batch)
        assert len(first) == len(second) == 2


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"limit": 0}, {"shard": (2, 2)}])
def test_values_without_sense_are_refused(wrong):
    with pytest.raises(ValueError, match="batch_size"):
        plan_batches(4, **{"batch_size": 2, "order_seed": None, **wrong})


def test_seeds_differ_with_every_part():
    seeds = {seed_from(a, b, c) for a in range(3) for b in range(3) for c in ("x", "y")}
    assert len(seeds) == 18
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_from(1, 23) != seed_from(12, 3)
