"""L2 norm."""

from __future__ import annotations

import torch
from scoring import scores_of

from prune2deploy.channels import Graph
from prune2deploy.methods.common.readings import joint_norms


def test_the_filters_that_l1_ranks_otherwise() -> None:
    # methods.md 3.3: roots of 18, 25 and 40.5. L1 takes index 1 first, L2 index 0.
    weight = torch.tensor([[3.0, 3.0], [5.0, 0.0], [4.5, 4.5]])
    torch.testing.assert_close(joint_norms([weight]), torch.tensor([18.0, 25.0, 40.5]).sqrt())
    assert int(joint_norms([weight]).argmin()) == 0


def test_parts_are_summed_as_one_vector() -> None:
    parts = [torch.ones(2, 105), torch.full((2, 3), 2.0)]
    parts[0][1] = -2
    torch.testing.assert_close(joint_norms(parts), torch.tensor([117.0, 432.0]).sqrt())


def test_layers_that_share_channels_are_one_vector(mixed: Graph) -> None:
    squares = sum(
        mixed.model.get_parameter(f"{layer}.weight").detach().square().sum(dim=(1, 2, 3))
        for layer in ("stem", "inner", "depth")
    )
    assert isinstance(squares, torch.Tensor)
    first = scores_of("l2", mixed)[0]
    assert first is not None
    torch.testing.assert_close(first, squares.sqrt())
