"""The samples for training and for validation."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sodeploy.calib_data import Dataset, open_dataset
from sodeploy.calib_data.mask_sets import check_masks
from sodeploy.calib_data.sources import Source
from sodeploy.errors import UserError
from sodeploy.training.recipe import Validation


@dataclass(frozen=True)
class Splits:
    """Data sets for training and for validation, and the indices of the samples to use."""

    dataset: Dataset
    training: Sequence[int]
    validation_dataset: Dataset
    validation: Sequence[int]


@dataclass(frozen=True)
class TrainingData:
    """The training set of a run, as the command line names it.

    Attributes:
        source: the training set; the recipe names the default.
        root: the folder of the data sets, also of the data sets that the recipe names.
    """

    source: Source | Sequence[Source] | None = None
    root: Path | None = None


def open_splits(rule: Validation, source: Source | Sequence[Source], seed: int, root: Path | None = None) -> Splits:
    """The training set at `source`, and the validation samples by `rule`; `root` is the folder of both.

    Raises:
        UserError: a data set cannot be opened, its masks say nothing, or all of it would be held out.
    """
    dataset = open_dataset(source, root=root)
    check_masks(dataset, dataset.name)
    if rule.data is not None:
        other = open_dataset(rule.data, root=root)
        check_masks(other, other.name)
        return Splits(dataset, range(len(dataset)), other, range(len(other)))
    held_out = rule.hold_out
    if held_out >= len(dataset):
        raise UserError(
            f"{dataset.name} has {len(dataset)} samples, of which the recipe holds out {held_out} for validation; "
            f"lower that: --set validation.hold_out={max(1, len(dataset) // 10)}"
        )
    order = [int(index) for index in np.random.default_rng(seed).permutation(len(dataset))]
    return Splits(dataset, sorted(order[held_out:]), dataset, sorted(order[:held_out]))
