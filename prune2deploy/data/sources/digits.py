"""scikit-learn's handwritten digits: 1,797 real images, part of the package, no download."""

from __future__ import annotations

import hashlib

import torch

from prune2deploy.data.base import Found, Request, Split
from prune2deploy.data.memory import TensorSamples, label_array
from prune2deploy.errors import DataError

SHAPE = (1, 8, 8)
_BRIGHTEST = 16.0


def find(request: Request) -> Found:
    """Return the digits, scaled to 0..1; a quarter becomes the test set unless data.test says else.

    Raises:
        DataError: the model's input is not (1, 8, 8), or data.root or data.args is set.
    """
    if request.input_shape != SHAPE:
        raise DataError(
            f"The digits are images of shape {SHAPE}, the model's input is {request.input_shape}. "
            "Set model.input to [1, 8, 8]."
        )
    if request.root is not None or request.args:
        raise DataError(
            "Source 'digits' comes with scikit-learn; remove data.root and data.args, "
            "or choose another source."
        )
    from sklearn.datasets import load_digits

    images, numbers = load_digits(return_X_y=True)
    labels = label_array(numbers)
    tensor = torch.from_numpy(images).float().div_(_BRIGHTEST).view(-1, *SHAPE)
    return Found(
        splits={"train": Split(TensorSamples(tensor, labels), labels)},
        classes=tuple(str(digit) for digit in range(10)),
        fingerprint="sha256:" + hashlib.sha256(images.tobytes()).hexdigest(),
        kind="arrays",
        default_test_share=0.25,
    )
