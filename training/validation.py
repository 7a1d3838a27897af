"""Validation during training, with the metrics, the pre-processing and the post-processing of deployment."""

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch

from sodeploy import terminal
from sodeploy.calib_data import Dataset
from sodeploy.runtime.contract import Contract
from sodeploy.runtime.measure import metrics
from sodeploy.runtime.processing import postprocess, predict
from sodeploy.training.models.network import SaliencyNetwork
from sodeploy.training.processes import Process

_PICTURES = 4  # rows of the picture of a validation
_PICTURE_HEIGHT = 192


def validate(
    network: SaliencyNetwork,
    dataset: Dataset,
    indices: Sequence[int],
    contract: Contract,
    process: Process,
    sees_masks: bool = False,
    stopped: Callable[[], int] = lambda: 0,
) -> tuple[dict[str, float], np.ndarray] | None:
    """Score `network` on some samples. The processes share the samples, and each gets the result of all.

    Args:
        stopped: not 0 as soon as this process is to stop; looked at before each sample.

    Returns:
        None if a process is to stop. Otherwise all metrics by their keys in `sodeploy.runtime.measure.metrics.METRICS`,
        and a picture (H, W, 3) uint8 RGB of the first samples: image, mask and prediction in each row. A mask without
        a defined score is left out with a warning.

    Raises:
        UserError: a sample cannot be read, the output of the network is not finite, or no mask has a defined score.
    """
    network.eval()
    mine: dict[int, metrics.Scores] = {}
    rows = []
    own = range(process.rank, len(indices), process.count)
    for number in terminal.progress(own, "validating") if process.leads else own:
        if stopped():
            break
        sample = dataset[indices[number]]
        image, mask = sample.image(), sample.mask()
        saliency = _predict(network, mask if sees_masks else image, contract, process.device, mask.shape)
        mine[number] = metrics.score(saliency, mask)
        if number < _PICTURES:
            rows.append(_row(image, mask, saliency))
    if process.highest(stopped()):
        return None
    scored = {number: scores for part in process.gather(mine) for number, scores in part.items()}
    every = metrics.join([scored[number] for number in range(len(indices))])
    (defined,), left_out = metrics.without_undefined([every], [dataset[index].name for index in indices], dataset.name)
    if left_out and process.rank == 0:
        terminal.warn(f"{dataset.name}: {metrics.left_out_in_words(left_out)}")
    return defined.summary(), _stack(rows)


def _predict(
    network: SaliencyNetwork, seen: np.ndarray, contract: Contract, device: torch.device, size: tuple[int, ...]
) -> np.ndarray:
    def run(tensor: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network.predict(torch.from_numpy(tensor).to(device)).float().cpu().numpy()

    if seen.ndim == 3:
        return predict(seen, contract, run)
    resized = cv2.resize(seen, (contract.width, contract.height), interpolation=cv2.INTER_LINEAR)
    probability = run(resized.astype(np.float32)[None, None] / 255)  # a mask is not normalized
    return postprocess(probability[0, 0], contract, (size[0], size[1]))


def _row(image: np.ndarray, *maps: np.ndarray) -> np.ndarray:
    row = np.hstack([image, *(np.repeat(grey[..., None], 3, axis=2) for grey in maps)])
    width = max(1, round(row.shape[1] * _PICTURE_HEIGHT / row.shape[0]))
    return cv2.resize(row, (width, _PICTURE_HEIGHT), interpolation=cv2.INTER_AREA)


def _stack(rows: Sequence[np.ndarray]) -> np.ndarray:
    width = max((row.shape[1] for row in rows), default=1)
    padded = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows]
    return np.vstack(padded) if padded else np.zeros((1, 1, 3), np.uint8)
