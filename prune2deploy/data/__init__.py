"""Where samples come from: image folders, torchvision's data sets, arrays, the digits, users' code.

`open_data` finds and splits the samples; the `DataSource` it returns hands out
batches of normalised images. Train, val and test never share a sample.
"""

from __future__ import annotations

from prune2deploy.data.base import Augment, Batch, SplitName
from prune2deploy.data.dataset import DataSource, Loader
from prune2deploy.data.opening import open_data

__all__ = ["Augment", "Batch", "DataSource", "Loader", "SplitName", "open_data"]
