"""Joining nodes: what is fixed freezes what it meets."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from prune2deploy.channels.labels import FIXED, NodeTable, Role, tensors_of


def ids(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def frozen(nodes: NodeTable) -> set[int]:
    return {int(i) for record in nodes.frozen for i in record.ids}


def table(*lengths: int) -> NodeTable:
    nodes = NodeTable()
    for number, length in enumerate(lengths):
        nodes.add_tensor(f"t{number}", (length,))
    return nodes


def test_every_index_of_a_long_dimension_is_a_node() -> None:
    nodes = NodeTable()
    labels = nodes.add_tensor("w", (4, 1, 3))
    assert [None if d is None else d.tolist() for d in labels.dims] == [
        [0, 1, 2, 3],
        None,
        [4, 5, 6],
    ]
    assert [(o.name, o.dim, o.start, o.size) for o in nodes.owners] == [
        ("w", 0, 0, 4),
        ("w", 2, 4, 3),
    ]


def test_joined_nodes_are_one_component() -> None:
    nodes = table(3, 3, 2)
    nodes.join(ids(0, 1, 2), ids(3, 4, 5), "why")
    nodes.join(ids(2), ids(6), "why")
    assert nodes.components().tolist() == [0, 1, 2, 0, 1, 2, 2, 3]
    assert nodes.frozen == []


def test_what_meets_an_unlabelled_dimension_is_frozen() -> None:
    nodes = table(3)
    assert nodes.join(None, None, "why") is None
    result = nodes.join(ids(0, 1), None, "why")
    assert result is not None
    assert frozen(nodes) == {0, 1}
    assert nodes.frozen[0].reason == "why"


def test_only_what_meets_a_fixed_index_is_frozen() -> None:
    nodes = table(3, 3)
    result = nodes.join(ids(0, FIXED, 2, FIXED), ids(3, 4, FIXED, FIXED), "why")
    assert result is not None
    assert result.tolist() == [0, 4, 2, FIXED]
    assert frozen(nodes) == {2, 4}
    assert nodes.components().tolist() == [0, 1, 2, 0, 3, 4]


def test_join_all_makes_each_row_one_channel() -> None:
    nodes = table(6)
    nodes.join_all(ids(0, 1, 2, 3, 4, 5).reshape(3, 2))
    assert nodes.components().tolist() == [0, 0, 1, 1, 2, 2]


def test_marks_say_what_nodes_do_and_that_they_are_used() -> None:
    nodes = table(4)
    nodes.mark(ids(0, 1, FIXED), Role.PRODUCER)
    nodes.mark(ids(1), Role.CONSUMER)
    nodes.mark(None, Role.SCALE)
    assert nodes.role_of_nodes().tolist() == [Role.PRODUCER, Role.CONSUMER, Role.OTHER, Role.OTHER]
    assert nodes.untouched().tolist() == [False, False, True, True]


def test_a_shared_tensor_is_listed_once_under_its_first_name() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[1].weight = model[0].weight
    names = list(tensors_of(model))
    assert names == [
        "0.weight", "0.bias", "1.bias", "2.weight", "2.bias",
        "2.running_mean", "2.running_var", "2.num_batches_tracked",
    ]  # fmt: skip
    assert tensors_of(model)["0.weight"] is model[1].weight


def test_an_empty_table_has_no_components() -> None:
    assert NodeTable().components().shape == (0,)
    assert torch.is_tensor(torch.from_numpy(NodeTable().components()))
