"""Batches of any size, for networks that may take only one size of batch."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from sodeploy.errors import UserError
from sodeploy.runtime.contract import Contract
from sodeploy.stages import command


def run_in_batches(
    run: Callable[[np.ndarray], np.ndarray], batch: np.ndarray, contract: Contract, path: Path
) -> np.ndarray:
    """The maps of a batch of any size, by a network that may take only one size of batch.

    Args:
        run: one run of the network, (n, 3, h, w) -> (n, 1, h, w), where n is the contract's batch if that is fixed. The
            last batch is filled up with zeros, and their maps are dropped.
        batch: (N, 3, h, w).
        path: the model, for messages.

    Returns:
        (N, 1, h, w) float32.

    Raises:
        UserError: h, w are not a size that the model takes, or the output is not one map per image.
        ValueError: `batch` is not (N, 3, h, w), N >= 1.
    """
    if batch.ndim != 4 or batch.shape[1] != 3 or not len(batch):
        raise ValueError(f"expected (N, 3, h, w), got {batch.shape}")
    native = (contract.height, contract.width)
    if not contract.dynamic_size and batch.shape[2:] != native:
        got = "x".join(map(str, batch.shape[2:]))
        raise UserError(f"{path} takes {native[0]}x{native[1]} only, got {got}; export it with that --size")
    step = contract.batch or len(batch)
    outputs = []
    for start in range(0, len(batch), step):
        images = batch[start : start + step]
        missing = step - len(images)
        if missing:
            images = np.concatenate([images, np.zeros((missing, *images.shape[1:]), images.dtype)])
        outputs.append(run(np.ascontiguousarray(images))[: step - missing])
    output = outputs[0] if len(outputs) == 1 else np.concatenate(outputs)
    if output.shape != (len(batch), 1, *batch.shape[2:]):
        raise UserError(
            f"{path}: output {contract.output_name} is {output.shape} for an input {batch.shape}; "
            f"a saliency network gives one map (N, 1, h, w); name that output to {command('adopt')}"
        )
    return output.astype(np.float32, copy=False)
